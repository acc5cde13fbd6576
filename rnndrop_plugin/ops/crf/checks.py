"""Checks of the arguments of a conditional random field, before one of its forms is chosen."""

import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_device, check_lengths, check_tensor


def check_scores(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> list[Tensor]:
    """The arguments in at least float32, because sums over a sequence lose too much precision in half types.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: an argument that is not a tensor.
    """
    check_tensor("emissions", emissions)
    if emissions.dim() != 3 or 0 in emissions.shape[1:]:
        raise ValueError(f"the emissions must be (batch, time, tags), got {tuple(emissions.shape)}")
    batch, time, tags = emissions.shape
    scores = {"emissions": emissions, "transitions": transitions, "start": start, "end": end}
    shapes = {"transitions": (tags, tags), "start": (tags,), "end": (tags,)}
    for name, x in scores.items():
        check_tensor(name, x)
        if x.shape != (shape := shapes.get(name, emissions.shape)):
            raise ValueError(f"the {name} must be {shape}, got {tuple(x.shape)}")
        check_device(name, x, "emissions", emissions)
        if not x.is_floating_point():
            raise ValueError(f"the {name} must be of a floating-point dtype, got {x.dtype}")
    scores = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in scores.values()]
    return [*scores, check_lengths(lengths, batch, time, 1, emissions.device)]
