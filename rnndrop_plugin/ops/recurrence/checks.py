"""Checks of a recurrence's arguments, before a backend is chosen, so that every backend refuses the same ones.

The input and ``weights.hh`` determine the sizes; everything else has to fit them.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_choice, check_device, check_lengths, check_like, check_tensor
from rnndrop_plugin.ops.context import values_are_known
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence.reference import GATES, NONLINEARITIES, STEPS, State, Weights


def check_recurrence(
    cell: str, input: Tensor, state: State, weights: Weights, masks: Masks, nonlinearity: str, lengths: Tensor | None
) -> tuple[State, Masks, Tensor | None]:
    """The state as a tuple, the masks as bool and the lengths as int64 on the input's device.

    The arguments are those of :func:`rnndrop_plugin.ops.recurrence`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit.
        TypeError: an argument of the wrong type (not a tensor, Weights or Masks).
    """
    check_choice("cell", cell, STEPS)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_tensor("input", input)
    if input.dim() != 3 or input.size(0) == 0:
        raise ValueError(f"the input must be (time, batch, input) with at least one step, got {tuple(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"the input must be of a floating-point dtype, got {input.dtype}")
    time, batch, features = input.shape
    hidden = _check_weights(cell, input, weights, features)
    state = _check_state(cell, input, state, batch, hidden)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks must be Masks, got {type(masks).__name__}")
    masks = Masks(*(check_mask(cell, kind, mask, input, hidden) for kind, mask in masks._asdict().items()))
    if lengths is not None:
        lengths = check_lengths(lengths, batch, time, 0, input.device)
    return state, masks, lengths


def _check_weights(cell: str, input: Tensor, weights: Weights, features: int) -> int:
    """The hidden size. Raise unless the weights fit the cell and an input with this number of features."""
    if not isinstance(weights, Weights):
        raise TypeError(f"weights must be Weights, got {type(weights).__name__}")
    check_tensor("weight hh", weights.hh)
    shape = tuple(weights.hh.shape)
    gates = GATES[cell]
    if len(shape) != 2 or shape[1] == 0 or shape[0] != gates * shape[1]:
        raise ValueError(f"the weight hh of the cell {cell} must be ({gates} * hidden, hidden), got {shape}")
    rows, hidden = shape
    check_like("weight hh", weights.hh, shape, "input", input)
    check_like("weight ih", weights.ih, (rows, features), "input", input)
    if (weights.bias_ih is None) != (weights.bias_hh is None):
        raise ValueError("only one bias was given: give both bias_ih and bias_hh, or none")
    if weights.bias_ih is not None:
        check_like("bias ih", weights.bias_ih, (rows,), "input", input)
        check_like("bias hh", weights.bias_hh, (rows,), "input", input)
    return hidden


def _check_state(cell: str, input: Tensor, state: State, batch: int, hidden: int) -> State:
    """The state as a tuple. Raise unless it fits the cell and the sizes."""
    names = ("h", "c") if cell == "lstm" else ("h",)
    if not isinstance(state, Sequence) or len(state) != len(names):
        got = len(state) if isinstance(state, Sequence) else type(state).__name__
        raise ValueError(f"the state of the cell {cell} must be a tuple of {len(names)}: {', '.join(names)}; got {got}")
    for name, s in zip(names, state, strict=True):
        check_like(f"state {name}", s, (batch, hidden), "input", input)
    return tuple(state)


def check_mask(cell: str, kind: str, mask: Mask, input: Tensor, hidden: int) -> Mask:
    """The mask as bool; ``kind`` is what it drops.

    Raises:
        ValueError: the cell has nothing of this kind to drop, or a shape, dtype, device or value does not fit.
        TypeError: it is not a Mask.
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"the {kind} mask must be a Mask, got {type(mask).__name__}")
    keep, scale = mask
    number = _as_float(scale)
    if keep is None and number == 1:
        return Mask(None)
    if cell == "rnn" and kind != "hidden":
        raise ValueError(f"an RNN has no {kind} to drop: it takes only a hidden mask (Eq. 2)")
    if not math.isfinite(number):
        raise ValueError(f"the scale of the {kind} mask must be a finite number, got {scale!r}")
    if keep is None:
        return Mask(None, number)
    check_tensor(f"{kind} mask", keep)
    time, batch, _ = input.shape
    if keep.shape != (time, batch, hidden) and keep.shape != (batch, hidden):
        raise ValueError(
            f"the {kind} mask must be ({batch}, {hidden}) or ({time}, {batch}, {hidden}), got {tuple(keep.shape)}"
        )
    check_device(f"{kind} mask", keep, "input", input)
    return Mask(keep if keep.dtype == torch.bool else _as_bool(kind, keep), number)


def _as_float(scale: Any) -> float:
    """The scale of a mask; NaN if it is not a number."""
    if type(scale) is float:  # the usual case, in a tenth of the time
        return scale
    try:
        return float(scale) if isinstance(scale, Real) else math.nan
    except OverflowError:
        return math.inf


def _as_bool(kind: str, keep: Tensor) -> Tensor:
    if keep.requires_grad:
        raise ValueError(f"the {kind} mask requires a gradient, which a mask does not get: detach it")
    if keep.is_meta:
        return keep.bool()
    if not values_are_known():
        raise ValueError(f"the {kind} mask must be bool where its values cannot be checked, got {keep.dtype}")
    dropped, kept = keep == 0, keep == 1
    if not (dropped | kept).all():
        raise ValueError(f"the {kind} mask must be bool or hold only 0 and 1, got other values in {keep.dtype}")
    return kept
