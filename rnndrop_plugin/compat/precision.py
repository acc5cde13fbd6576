"""Half precision: the loss scale must not change the rate, and checkpoints must keep it and the float32 parameters."""

import functools

import torch
from fairseq.optim import AMPOptimizer
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin, _MemoryEfficientFP16OptimizerMixin
from torch import Tensor

upstream_amp_init = AMPOptimizer.__init__
upstream_amp_step = AMPOptimizer.step
upstream_amp_state_dict = AMPOptimizer.state_dict
upstream_amp_load_state_dict = AMPOptimizer.load_state_dict
upstream_state_dict = _FP16OptimizerMixin.state_dict
upstream_load_state_dict = _FP16OptimizerMixin.load_state_dict
upstream_memory_efficient_state_dict = _MemoryEfficientFP16OptimizerMixin.state_dict
upstream_memory_efficient_load_state_dict = _MemoryEfficientFP16OptimizerMixin.load_state_dict

#: What a resume restores of torch's GradScaler; the flags set the rest.
SCALE = ("scale", "_growth_tracker")
#: What a resume restores of fairseq's scaler.
OVERFLOWS = ("_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")


@functools.wraps(upstream_amp_init)
def init_amp(optimizer, cfg, params, fp32_optimizer, **kwargs):
    """fairseq/optim/amp_optimizer.py, AMPOptimizer.__init__, wrongly reads --fp16-init-scale for --amp-init-scale, and
    --amp-init-scale for --amp-scale-window."""
    upstream_amp_init(optimizer, cfg, params, fp32_optimizer, **kwargs)
    window = cfg.common.amp_scale_window
    interval = {} if window is None else {"growth_interval": window}
    device = optimizer.optimizer.param_groups[0]["params"][0].device.type
    optimizer._grad_scaler = torch.amp.GradScaler(device, init_scale=cfg.common.amp_init_scale, **interval)


@functools.wraps(upstream_amp_step)
def step_amp(optimizer):
    """fairseq/optim/amp_optimizer.py: clip_grad_norm unscales the gradients of torch's optimizer. But AMPOptimizer.step
    steps fairseq's optimizer around it, whose gradients torch's GradScaler believes to be scaled, and unscales again.
    This divides the rate by the loss scale, which makes no difference to optimizers such as Adam, but to SGD."""
    optimizer.scaler.step(optimizer.optimizer)
    optimizer.scaler.update()


@functools.wraps(upstream_amp_state_dict)
def amp_state_dict(optimizer) -> dict:
    """fairseq/optim/amp_optimizer.py: a checkpoint lacks the loss scale, so a resume starts from the initial one."""
    scaler = optimizer.scaler.state_dict()
    return upstream_amp_state_dict(optimizer) | {"scaler": {name: scaler[name] for name in SCALE}}


@functools.wraps(upstream_amp_load_state_dict)
def load_amp_state_dict(optimizer, state_dict, *args, **kwargs):
    """Restore the loss scale, if the checkpoint has one."""
    upstream_amp_load_state_dict(optimizer, state_dict, *args, **kwargs)
    optimizer.scaler.load_state_dict(optimizer.scaler.state_dict() | state_dict.get("scaler", {}))


@functools.wraps(upstream_state_dict)
def half_state_dict(optimizer) -> dict:
    """fairseq/optim/fp16_optimizer.py, _FP16OptimizerMixin.state_dict, leaves out the float32 parameters, which are
    those that it updates. A resume would copy them from those in half precision, and lose all updates that are too
    small for half precision."""
    parameters = {"fp32_params": [p.data for p in _single_precision(optimizer)]}
    return upstream_state_dict(optimizer) | parameters | _overflows(optimizer)


@functools.wraps(upstream_load_state_dict)
def load_half_state_dict(optimizer, state_dict, *args, **kwargs):
    """Restore the float32 parameters, if the checkpoint has them."""
    upstream_load_state_dict(optimizer, state_dict, *args, **kwargs)
    own, saved = _single_precision(optimizer), state_dict.get("fp32_params", [])
    # The shapes differ if the training had no such copies, or had them in one piece.
    if [p.shape for p in own] == [p.shape for p in saved]:
        for p, value in zip(own, saved, strict=True):
            p.data.copy_(value)
    _set_overflows(optimizer, state_dict)


@functools.wraps(upstream_memory_efficient_state_dict)
def memory_efficient_state_dict(optimizer) -> dict:
    """Save when the loss last overflowed. There are no float32 parameters to save."""
    return upstream_memory_efficient_state_dict(optimizer) | _overflows(optimizer)


@functools.wraps(upstream_memory_efficient_load_state_dict)
def load_memory_efficient_state_dict(optimizer, state_dict, *args, **kwargs):
    """Restore when the loss last overflowed, if the checkpoint has it."""
    upstream_memory_efficient_load_state_dict(optimizer, state_dict, *args, **kwargs)
    _set_overflows(optimizer, state_dict)


def _overflows(optimizer) -> dict:
    """fairseq/optim/fp16_optimizer.py saves the loss scale, but not how long it has had this value, which decides when
    it grows."""
    if optimizer.scaler is None:  # bfloat16 needs no scale
        return {}
    return {"scaler": {name: getattr(optimizer.scaler, name) for name in OVERFLOWS}}


def _set_overflows(optimizer, state_dict: dict) -> None:
    saved = state_dict.get("scaler", {})
    if optimizer.scaler is not None and all(name in saved for name in OVERFLOWS):
        for name in OVERFLOWS:
            setattr(optimizer.scaler, name, saved[name])


def _single_precision(optimizer) -> list[Tensor]:
    """The float32 parameters: one tensor for each parameter, or one for all parameters of a GPU."""
    parameters = optimizer.fp32_params
    return list(parameters.values() if isinstance(parameters, dict) else parameters)
