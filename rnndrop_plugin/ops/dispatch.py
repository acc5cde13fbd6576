"""The one place that chooses which backend runs a recurrence."""

import torch
from torch import Tensor

from rnndrop_plugin.ops import reference
from rnndrop_plugin.ops.masks import NO_MASKS, Masks
from rnndrop_plugin.ops.reference import State, Weights

BACKENDS = ("auto", "reference")


def recurrence(
    cell: str,
    input: Tensor,
    state: State,
    weights: Weights,
    masks: Masks = NO_MASKS,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """:func:`rnndrop_plugin.ops.reference.recurrence` on the backend asked for.

    Under autocast everything is computed in autocast's dtype, as torch's own recurrent kernels are.

    Raises:
        ValueError: a mask whose shape does not fit, or a backend that cannot do what is asked.
    """
    if cell not in reference.STEPS:
        raise ValueError(f"cell must be one of {', '.join(reference.STEPS)}, got {cell!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    time, batch, _ = input.shape
    hidden = weights.hh.size(1)
    for name, mask in masks._asdict().items():
        if mask.keep is not None and tuple(mask.keep.shape) not in ((batch, hidden), (time, batch, hidden)):
            raise ValueError(
                f"the {name} mask must be ({batch}, {hidden}) or ({time}, {batch}, {hidden}), "
                f"got {tuple(mask.keep.shape)}"
            )
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, state = input.to(dtype), tuple(s.to(dtype) for s in state)
        weights = Weights(*(w if w is None else w.to(dtype) for w in weights))
    return reference.recurrence(
        cell, input, state, weights, masks, nonlinearity=nonlinearity, lengths=lengths, reverse=reverse
    )
