"""Averaged SGD for fairseq, which lacks it, begun by the trigger of NT-ASGD."""

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
            "help": "begin to average after a validation that is worse than the best of all validations but the last "
            "N; 0: than the best so far"
        },
    )
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: list[float] = II("optimization.lr")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_optimizer("rnndrop_asgd", dataclass=AveragedSGDConfig)
class AveragedSGD(FairseqOptimizer):
    """SGD whose parameters are averaged from a trigger on, on torch.optim.ASGD.

    NT-ASGD of Merity et al. (2018), "Regularizing and optimizing LSTM language models", Algorithm 1: plain SGD until a
    validation v_t is worse than the best of v_1 ... v_(t-n-1), n being --asgd-nonmonotone; from then on the mean of all
    parameters that follow is kept beside them. The validation is the metric named by --best-checkpoint-metric, at the
    end of an epoch.

    Validation and checkpoints have the averaged parameters, training goes on with those of SGD. A checkpoint holds
    these, too, in the optimizer's state: while the model has the averages, torch's ``ax`` has the parameters of SGD.

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
        # torch reads a state that is on a GPU at every step, and waits for it, unless it is to be capturable.
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
        """Whether the trigger has been pulled."""
        return self.param_groups[0]["t0"] < math.inf

    def end_validation(self, value: float) -> None:
        """Take note of the validation at an epoch's end, and begin to average if it pulls the trigger."""
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
        """Put the averages into the model, or the parameters of SGD, and the other ones into the state."""
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
        """Clear the gradients; as every training step begins so, it trains the parameters of SGD."""
        self.use_averages(False)
        super().zero_grad()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate; schedules do so at every update, mostly to what it is."""
        if lr != self.get_lr():
            super().set_lr(lr)
            self._take_lr()

    def _take_lr(self) -> None:
        """Have the next step use the learning rate. torch.optim.ASGD alone would use it one step late."""
        for state in self.optimizer.state.values():
            state["eta"].fill_(self.get_lr())

    def state_dict(self) -> dict:
        state = {"validations": list(self.validations), "model_has_averages": self.model_has_averages}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state_dict: dict, optimizer_overrides: dict | None = None) -> None:
        # The checkpoint may be of a training on another device.
        groups = [{**group, "capturable": self.capturable} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups}, optimizer_overrides)
        self._take_lr()
        self.validations = list(state_dict["validations"])
        self.model_has_averages = state_dict["model_has_averages"]
