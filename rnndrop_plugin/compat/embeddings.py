"""Building a model to load a checkpoint into it: FairseqTask.build_model."""

import copy
import functools

from fairseq.tasks import FairseqTask

upstream_build_model = FairseqTask.build_model


@functools.wraps(upstream_build_model)
def build_model(task, cfg, from_checkpoint=False):
    """fairseq/models/lstm.py and others read the files of pretrained embeddings, which may be gone, even if the model
    gets its embeddings from a checkpoint.
    """
    if from_checkpoint:
        cfg = copy.copy(cfg)
        for name in ("encoder_embed_path", "decoder_embed_path"):
            if getattr(cfg, name, None) is not None:
                setattr(cfg, name, None)
    return upstream_build_model(task, cfg, from_checkpoint)
