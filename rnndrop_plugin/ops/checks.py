"""Checks that the operations share: of the shape, dtype, device and values of a tensor."""

from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rnndrop_plugin.ops.context import PLAIN, captured, in_autocast, values_are_known


class ArgumentError(ValueError):
    """An argument that cannot be used.

    Attributes:
        argument: its name.
        problem: what is wrong with it. The message is the name followed by this.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument} {self.problem}"


def check_rate(name: str, rate: float) -> float:
    """``rate`` as a float. Raise ArgumentError, which calls it ``name``, unless it is in [0, 1)."""
    if not isinstance(rate, Real) or not 0 <= rate < 1 or float(rate) == 1:
        raise ArgumentError(name, f"must be in [0, 1), got {rate!r}")
    return float(rate)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ArgumentError, which calls the value ``name``, unless it is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(name, f"must be one of {', '.join(choices)}, got {value!r}")


def check_tensor(name: str, x: Any) -> None:
    """Raise TypeError unless ``x`` is a tensor, ValueError unless it is a dense one."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the {name} must be a tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        raise ValueError(f"the {name} must be a dense tensor, got {'a nested one' if x.is_nested else x.layout}")


def check_like(name: str, x: Any, shape: tuple[int, ...], of: str, like: Tensor) -> None:
    """Raise unless ``x`` is a tensor with this shape and the device and (except under autocast) dtype of ``like``."""
    if type(x) in PLAIN and x.layout is torch.strided and not x.is_nested:  # the usual case, checked in one go
        if x.shape == shape and x.dtype == like.dtype and x.device == like.device:
            return
    check_tensor(name, x)
    if x.shape != shape:
        raise ValueError(f"the {name} must be {tuple(shape)}, got {tuple(x.shape)}")
    check_device(name, x, of, like)
    if x.dtype != like.dtype and not in_autocast(like.device.type):
        raise ValueError(f"the {name} is of {x.dtype}, the {of} of {like.dtype}: they must be the same")


def check_device(name: str, x: Tensor, of: str, like: Tensor) -> None:
    """Raise ValueError unless ``x`` is on the device of ``like``."""
    if x.device != like.device:
        raise ValueError(f"the {name} is on {x.device}, the {of} on {like.device}: not on the same device")


def check_integers(name: str, x: Any, shape: tuple[int, ...]) -> None:
    """Raise unless ``x`` is a tensor of integers with this shape."""
    check_tensor(name, x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"the {name} must be of an integer dtype, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"the {name} must be {tuple(shape)}, got {tuple(x.shape)}")


def check_lengths(lengths: Any, batch: int, time: int, least: int, device: torch.device) -> Tensor:
    """The lengths of sequences as int64 on ``device``; they may also be given on a CPU."""
    check_integers("lengths", lengths, (batch,))
    if lengths.device != device and lengths.device.type != "cpu":
        raise ValueError(f"the lengths are on {lengths.device}, the input on {device}: not on the same device")
    lengths = lengths.long()  # torch has no aminmax for some unsigned integer types
    recorded = captured(device)  # a CUDA graph cannot wait for values
    if recorded and not lengths.is_cuda:  # each replay would read them again, from memory that was freed
        raise ValueError("lengths on the CPU, as a packed batch has them, cannot go into a CUDA graph")
    if batch > 0 and not lengths.is_meta and not recorded and values_are_known():
        low, high = map(int, lengths.aminmax())
        if low < least or high > time:
            raise ValueError(f"lengths must be from {least} to {time}, got {low if low < least else high}")
    return lengths.to(device, non_blocking=True)
