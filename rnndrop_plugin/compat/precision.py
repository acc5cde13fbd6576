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
    --fp16 fails within torch without a GPU. In mixed precision fairseq wraps the optimizer, which would not be asked
    for its averages."""
    if cfg.common.tpu and utils.xm is None:
        raise InputError(
            f"{'--bf16' if cfg.common.bf16 else '--tpu'} asks fairseq for a TPU, and torch_xla is not installed: "
            "to train in bfloat16 without one, use fairseq-hydra-train with common.bf16=true"
        )
    if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise InputError("--fp16 needs a GPU, and there is none (or --cpu is given)")
    if getattr(cfg.optimizer, "_name", None) == "rnndrop_asgd" and (
        cfg.common.fp16 or cfg.common.bf16 or cfg.common.amp
    ):
        raise InputError("--optimizer rnndrop_asgd averages parameters of float32: drop --fp16, --bf16 and --amp")
    upstream_init(trainer, cfg, *args, **kwargs)
