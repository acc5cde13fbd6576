"""torch.optim.RMSprop, which fairseq lacks."""

from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from rnndrop_plugin.errors import InputError


@dataclass
class RMSpropConfig(FairseqDataclass):
    rmsprop_alpha: float = field(
        default=0.9, metadata={"help": "decay of the running average of squared gradients per update (paper: rho)"}
    )
    rmsprop_eps: float = field(default=1e-8, metadata={"help": "added to the root that gradients are divided by"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("rnndrop_rmsprop", dataclass=RMSpropConfig)
class RMSprop(FairseqOptimizer):
    """RMSprop, with which the taggers and classifiers of arXiv v2 are trained (sections 4.4 and 4.5).

    Raises:
        InputError: a number out of its range.
    """

    def __init__(self, cfg: RMSpropConfig, params):
        super().__init__(cfg)
        if not 0 <= cfg.rmsprop_alpha < 1:
            raise InputError(f"--rmsprop-alpha must be in [0, 1), got {cfg.rmsprop_alpha}")
        if cfg.rmsprop_eps <= 0:
            raise InputError(f"--rmsprop-eps must be positive, got {cfg.rmsprop_eps}")
        if cfg.weight_decay < 0:
            raise InputError(f"--weight-decay must not be negative, got {cfg.weight_decay}")
        self._optimizer = torch.optim.RMSprop(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict:
        """The settings of torch's optimizer."""
        return {
            "lr": self.cfg.lr[0],
            "alpha": self.cfg.rmsprop_alpha,
            "eps": self.cfg.rmsprop_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        return True
