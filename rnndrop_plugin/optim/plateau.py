"""The learning-rate schedule of the paper's word language models."""

import math
from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from rnndrop_plugin.errors import InputError

OTHER_SCHEDULER = "the checkpoint is of another --lr-scheduler: use that one, or --reset-lr-scheduler"


@dataclass
class PlateauConfig(FairseqDataclass):
    lr_shrink: float = field(
        default=1 / 1.5,
        metadata={"help": "factor for the learning rate after an epoch whose validation is not the best so far"},
    )
    lr: list[float] = II("optimization.lr")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_lr_scheduler("rnndrop_plateau", dataclass=PlateauConfig)
class Plateau(FairseqLRScheduler):
    """Multiplies the rate by --lr-shrink after every epoch whose validation is not the best so far (section 4.2).

    A validation's value is that of --best-checkpoint-metric. A checkpoint keeps the best value and the rate.
    """

    def __init__(self, cfg: PlateauConfig, optimizer):
        super().__init__(cfg, optimizer)
        if len(cfg.lr) > 1:
            raise InputError(f"--lr-scheduler rnndrop_plateau takes one learning rate, got {len(cfg.lr)}")
        if not 0 < cfg.lr_shrink <= 1:
            raise InputError(f"--lr-shrink must be in (0, 1], got {cfg.lr_shrink}")
        self.forget_best()
        self.lr = cfg.lr[0]
        self.optimizer.set_lr(self.lr)

    def forget_best(self):
        """Count the next validation as the best one, whatever its value."""
        self.best = -math.inf if self.cfg.maximize_best_checkpoint_metric else math.inf

    def step(self, epoch, val_loss=None):
        """End an epoch; without a validation the rate stays as it is."""
        if val_loss is not None:
            better = val_loss > self.best if self.cfg.maximize_best_checkpoint_metric else val_loss < self.best
            if better:
                self.best = val_loss
            else:
                self.lr *= self.cfg.lr_shrink
        return self.step_update(None)

    def step_update(self, num_updates):
        """Give the optimizer the rate. It may have another one from a checkpoint (with --reset-lr-scheduler)."""
        self.optimizer.set_lr(self.lr)
        return self.lr

    def state_dict(self):
        return {"best": self.best, "lr": self.lr}

    def load_state_dict(self, state_dict):
        """Go on from a checkpoint.

        Raises:
            InputError: the checkpoint is of another schedule.
        """
        if not {"best", "lr"} <= state_dict.keys():
            raise InputError(OTHER_SCHEDULER)
        self.best, self.lr = state_dict["best"], state_dict["lr"]
        self.optimizer.set_lr(self.lr)
