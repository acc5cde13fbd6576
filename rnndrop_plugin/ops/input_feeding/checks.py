"""Checks of the arguments of input feeding, so that both implementations refuse the same ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_device, check_like, check_tensor
from rnndrop_plugin.ops.input_feeding.reference import Attention
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence.checks import check_mask, check_recurrence
from rnndrop_plugin.ops.recurrence.reference import State, Weights


def check_input_feeding(
    cell: str,
    input: Tensor,
    feed: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    attention: Attention,
    masks: Sequence[Masks],
    dropout_between: Sequence[Mask],
    dropout_out: Mask,
    nonlinearity: str,
) -> tuple[list[Masks], list[Mask], Mask]:
    """The masks of :func:`rnndrop_plugin.ops.input_feeding` as bool.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit.
        TypeError: an argument of the wrong type (not a tensor, Weights or a mask).
    """
    layers = len(weights)
    if layers == 0 or (len(states), len(masks), len(dropout_between)) != (layers, layers, layers - 1):
        raise ValueError(
            f"{layers} layers take as many states and masks, and a mask between any two, got {len(states)} states, "
            f"{len(masks)} masks and {len(dropout_between)} between"
        )
    check_tensor("input", input)
    if input.dim() != 3 or input.size(0) == 0:
        raise ValueError(f"the input must be (time, batch, input) with at least one step, got {tuple(input.shape)}")
    time, batch, features = input.shape
    if not isinstance(weights[0], Weights):
        raise TypeError(f"weights must be Weights, one for each layer, got {type(weights[0]).__name__}")
    if not isinstance(attention, Attention):
        raise TypeError(f"the attention must be an Attention, got {type(attention).__name__}")
    check_tensor("weight hh", weights[0].hh)
    hidden = weights[0].hh.size(-1) if weights[0].hh.dim() > 0 else 0
    checked = []
    for k in range(layers):
        read = input.new_empty(()).expand(time, batch, features + hidden if k == 0 else hidden)  # only its shape counts
        checked.append(check_recurrence(cell, read, states[k], weights[k], masks[k], nonlinearity, None)[1])
    check_like("feed", feed, (batch, hidden), "input", input)
    check_tensor("keys", attention.keys)
    source = attention.keys.size(1) if attention.keys.dim() == 3 else 0
    for name in ("keys", "values"):
        check_like(name, getattr(attention, name), (batch, source, hidden), "input", input)
    check_like("attention's weight", attention.weight, (hidden, hidden), "input", input)
    padding = attention.padding
    if padding is not None:
        check_tensor("padding", padding)
        if padding.shape != (batch, source) or padding.dtype != torch.bool:
            got = f"{padding.dtype}, {tuple(padding.shape)}"
            raise ValueError(f"the padding must be bool, ({batch}, {source}), got {got}")
        check_device("padding", padding, "input", input)
    between = [check_mask(cell, "hidden", mask, input, hidden) for mask in dropout_between]
    return checked, between, check_mask(cell, "hidden", dropout_out, input, hidden)
