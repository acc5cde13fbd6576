"""The context of a call, which decides what may compute it: autocast, and transformations of PyTorch."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)  # no subclass, which might intercept operations


def in_autocast(device: str) -> bool:
    """Whether autocast is on for ``device``; some devices (meta) do not have it."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast is off for ``device``."""
    return torch.autocast(device, enabled=False) if in_autocast(device) else nullcontext()


def computed_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a recurrence over ``x`` is computed in: autocast's where it is on, except for float64."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if x.dtype != torch.float64 and in_autocast(device) else x.dtype


def tracing() -> str | None:
    """What is recording torch's operations and would not see compiled code; None if nothing is."""
    exporter = sys.modules.get("torch.onnx._internal.exporter")
    if exporter is not None and torch.onnx.is_in_onnx_export():
        return "export to ONNX"
    return "torch.jit.trace" if torch.jit.is_tracing() else None


def transformation() -> str | None:
    """What differentiates or vectorises torch's operations in its own way; None if nothing does."""
    if torch._C._are_functorch_transforms_active():
        return "a transformation of torch.func (grad, jvp, vmap, ...)"
    return "forward-mode differentiation" if forward_ad._current_level >= 0 else None


def values_are_known() -> bool:
    """Whether tensors have values that checks can read; under torch.compile and the like they have none."""
    return not (torch.compiler.is_compiling() or intercepted() or tracing() or transformation())


def readable(x: Tensor) -> bool:
    """Whether the values of ``x`` can be read at once. For those on a GPU the host would have to wait."""
    return x.device.type == "cpu" and values_are_known()


def captured(device: torch.device) -> bool:
    """Whether a CUDA graph records what runs on ``device``, to run it again on other values in the same memory."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether compiled code may be called directly: nothing intercepts the operations on these tensors.

    Otherwise (torch.compile, torch.export, fake tensors, subclasses) it has to be called as an operator of torch.
    """
    return not intercepted() and all(x is None or type(x) in PLAIN for x in tensors)


def intercepted() -> bool:
    """Whether something sees every operation before it runs: torch.compile and torch.export do while they record."""
    return torch._C._len_torch_dispatch_stack() > 0
