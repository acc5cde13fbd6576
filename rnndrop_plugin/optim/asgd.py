"""Averaged SGD, which fairseq lacks. The trigger of NT-ASGD starts the averaging."""

import logging
import math
from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from rnndrop_plugin.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class AveragedSGDConfig(FairseqDataclass):
    asgd_nonmonotone: int = field(
        default=5,
        metadata={
            "help": "begin to average after a validation that is worse than the best one before the last N validations "
            "(0: the best one so far)"
        },
    )
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: list[float] = II("optimization.lr")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_optimizer("rnndrop_asgd", dataclass=AveragedSGDConfig)
class AveragedSGD(FairseqOptimizer):
    """SGD with averaged parameters (torch.optim.ASGD). The averaging starts when a trigger fires.

    This is NT-ASGD of Merity et al. (2018), "Regularizing and optimizing LSTM language models", Algorithm 1. It is
    plain SGD until a validation v_t is worse than the best of v_1 ... v_(t-n-1), where n is --asgd-nonmonotone. From
    then on it also keeps the mean of all parameters since. A validation's value is that of --best-checkpoint-metric at
    the end of an epoch.

    Validations and checkpoints use the averaged parameters; training goes on with those of SGD. A checkpoint has these,
    too, in the optimizer's state: while the model has the averages, torch's ``ax`` has the parameters of SGD.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(self, cfg: AveragedSGDConfig, params):
        super().__init__(cfg)
        if cfg.asgd_nonmonotone < 0:
            raise InputError(f"--asgd-nonmonotone must not be negative, got {cfg.asgd_nonmonotone}")
        if cfg.weight_decay < 0:
            raise InputError(f"--weight-decay must not be negative, got {cfg.weight_decay}")
        params = list(params)
        # Unless capturable is set, torch reads the state from the GPU at every step and waits for it.
        self.capturable = all(parameter.is_cuda for parameter in params)
        self._optimizer = torch.optim.ASGD(params, t0=math.inf, **self.optimizer_config)
        self.validations: list[float] = []
        self.model_has_averages = False

    @property
    def optimizer_config(self) -> dict:
        """The settings of torch's optimizer."""
        settings = {"lr": self.cfg.lr[0], "lambd": 0.0, "weight_decay": self.cfg.weight_decay}
        return {**settings, "capturable": self.capturable}

    @property
    def averaging(self) -> bool:
        """Whether the averaging has started."""
        return self.param_groups[0]["t0"] < math.inf

    def end_validation(self, value: float) -> None:
        """Record the validation at an epoch's end, and begin to average if it is the trigger."""
        sign = -1 if self.cfg.maximize_best_checkpoint_metric else 1
        earlier = self.validations[: max(len(self.validations) - self.cfg.asgd_nonmonotone, 0)]
        if not self.averaging and earlier and sign * value > min(sign * v for v in earlier):
            steps = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
            for group in self.param_groups:
                group["t0"] = steps - 1  # torch uses a weight one step after it has computed it
            logger.info(f"averaging of the parameters begins after {steps} updates")
        self.validations.append(float(value))

    @torch.no_grad()
    def use_averages(self, averages: bool) -> None:
        """Put the averages (or, if False, the parameters of SGD) into the model, and the others into the state."""
        if not self.averaging or averages == self.model_has_averages:
            return
        for parameter in self.params:
            other = self.optimizer.state.get(parameter, {}).get("ax")
            if other is not None:
                value = parameter.clone()
                parameter.copy_(other)
                other.copy_(value)
        self.model_has_averages = averages

    def zero_grad(self) -> None:
        """Clear the gradients, and give the model the parameters of SGD, because every training step begins here."""
        self.use_averages(False)
        super().zero_grad()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, if it is a new one: schedules call this at every update."""
        if lr != self.get_lr():
            super().set_lr(lr)
            self._take_lr()

    def _take_lr(self) -> None:
        """Make the next step use the learning rate, which torch.optim.ASGD itself would use one step late."""
        for state in self.optimizer.state.values():
            state["eta"].fill_(self.get_lr())

    def state_dict(self) -> dict:
        state = {"validations": list(self.validations), "model_has_averages": self.model_has_averages}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state_dict: dict, optimizer_overrides: dict | None = None) -> None:
        # The checkpoint may come from training on another device.
        groups = [{**group, "capturable": self.capturable} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups}, optimizer_overrides)
        self._take_lr()
        self.validations = list(state_dict["validations"])
        self.model_has_averages = state_dict["model_has_averages"]
