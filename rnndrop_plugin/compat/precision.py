"""Half precision: what the machine can do, and a rate that does not depend on how."""

import functools

import torch
from fairseq import utils
from fairseq.trainer import Trainer

from rnndrop_plugin.errors import InputError

upstream_init = Trainer.__init__


@functools.wraps(upstream_init)
def init_trainer(trainer, cfg, *args, **kwargs):
    """fairseq/trainer.py, Trainer.__init__: --bf16 implies --tpu, which ends in an AttributeError without torch_xla;
    --fp16 fails within torch without a GPU."""
    if cfg.common.tpu and utils.xm is None:
        raise InputError(
            f"{'--bf16' if cfg.common.bf16 else '--tpu'} asks fairseq for a TPU, and torch_xla is not installed: "
            "to train in bfloat16 without one, use fairseq-hydra-train with common.bf16=true"
        )
    if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise InputError("--fp16 needs a GPU, and there is none (or --cpu is given)")
    upstream_init(trainer, cfg, *args, **kwargs)
