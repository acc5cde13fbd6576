"""Dropout masks of a recurrence: what they are, and the one place that draws them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_choice, check_rate
from rnndrop_plugin.ops.context import tracing, transformation, values_are_known

SAMPLINGS = ("step", "sequence")
SCALINGS = ("inverted", "expected")


class Mask(NamedTuple):
    """The dropout function d(x) = scale * keep * x.

    Attributes:
        keep: bool, ``(batch, hidden)`` for one mask per sequence or ``(time, batch, hidden)`` for one per
            step, False where a unit is dropped. None drops nothing and only scales.
        scale: the factor that kept units are multiplied by.
    """

    keep: Tensor | None
    scale: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Whether nothing is dropped and nothing scaled."""
        return self.keep is None and self.scale == 1

    def at(self, t: int) -> "Mask":
        """The mask of step ``t``, whose ``keep`` is ``(batch, hidden)`` or None."""
        if self.keep is not None and self.keep.dim() == 3:
            return Mask(self.keep[t], self.scale)
        return self

    def of_examples(self, order: Tensor) -> "Mask":
        """The mask for the examples in ``order`` ``(batch,)``; unchanged if it does not fit, for checks to refuse."""
        if isinstance(self.keep, Tensor) and self.keep.dim() in (2, 3) and self.keep.size(-2) == len(order):
            return Mask(self.keep.index_select(-2, order), self.scale)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Apply d to ``x`` of shape ``(batch, hidden)``."""
        if self.keep is not None:
            x = x * self.keep
        return x if self.scale == 1.0 else x * self.scale


IDENTITY = Mask(None)


class Masks(NamedTuple):
    """The masks of one layer and direction, named by what they drop.

    Attributes:
        update: the candidate g of an LSTM or GRU (Semeniuta et al. 2016, Eq. 9 and 13).
        hidden: h(t-1) where the gates and the candidate read it (Gal 2015, Eq. 7; for the RNN Eq. 2).
        cell: the new cell c of an LSTM, the new h of a GRU (Moon et al. 2015, Eq. 8).
    """

    update: Mask = IDENTITY
    hidden: Mask = IDENTITY
    cell: Mask = IDENTITY

    def at(self, t: int) -> "Masks":
        """The masks of step ``t``."""
        return Masks(*(mask.at(t) for mask in self))

    def of_examples(self, order: Tensor) -> "Masks":
        """The masks for the examples in ``order`` ``(batch,)``."""
        return Masks(*(mask.of_examples(order) for mask in self))


NO_MASKS = Masks()


def draw_mask(
    rate: float,
    time: int,
    batch: int,
    hidden: int,
    *,
    sampling: str = "step",
    scaling: str = "inverted",
    training: bool = True,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Mask:
    """Draw the mask of one kind of dropout for one layer and direction.

    Units are dropped independently with probability ``rate``, with torch's generator.

    Args:
        rate: the probability p of dropping a unit, in [0, 1).
        time, batch, hidden: the numbers of steps, sequences and units.
        sampling: ``"step"`` draws a mask for each step, ``"sequence"`` one for all steps.
        scaling: ``"inverted"`` divides by 1-p in training and does nothing in evaluation (Eq. 18 of
            arXiv v2, 14 of COLING); ``"expected"`` multiplies by 1-p in evaluation (Eq. 3).
        training: False for evaluation, which draws nothing.
        device: the device of the mask, torch's default device if None.
        generator: a generator on ``device``, torch's default one if None.

    Returns:
        The mask and its scale. ``keep`` is bool, ``(time, batch, hidden)`` by step or ``(batch, hidden)`` by sequence,
        and None where nothing is drawn.

    Raises:
        ValueError: a rate outside [0, 1), an unknown sampling or scaling.
    """
    rate = check_rate("rate", rate)
    check_choice("sampling", sampling, SAMPLINGS)
    check_choice("scaling", scaling, SCALINGS)
    if rate == 0:
        return IDENTITY
    if not training:
        return IDENTITY if scaling == "inverted" else Mask(None, 1 - rate)
    shape = (time, batch, hidden) if sampling == "step" else (batch, hidden)
    keep = _bernoulli(1 - rate, shape, device, generator)
    return Mask(keep, 1 / (1 - rate) if scaling == "inverted" else 1.0)


def _bernoulli(p: float, shape: tuple[int, ...], device, generator: torch.Generator | None) -> Tensor:
    """True with probability ``p``."""
    if values_are_known():
        return _draw(p, shape, device, generator)
    if tracing() or transformation():
        return torch.rand(shape, device=device, generator=generator) < p
    if generator is None:
        place = torch.empty((), device=device)
        return torch.ops.rnndrop.draw(p, shape, place, device=place.device)
    return _draw(p, shape, device, generator)


def _draw(p: float, shape: tuple[int, ...], device, generator: torch.Generator | None = None) -> Tensor:
    """True with probability ``p``; on a CPU faster than torch's bernoulli_, and exact to 2**-33."""
    keep = torch.empty(shape, dtype=torch.bool, device=device)
    if keep.device.type != "cpu":
        return keep.bernoulli_(p, generator=generator)
    dtype = next((t for t in (torch.int8, torch.int16) if (p * 2 ** (8 * t.itemsize)).is_integer()), torch.int32)
    values = 2 ** (8 * dtype.itemsize)
    words = torch.empty(-(-keep.numel() * dtype.itemsize // 8), dtype=torch.int64, device=keep.device)
    bits = words.random_(-(2**63), None, generator=generator).view(dtype)[: keep.numel()].view(shape)
    # numpy vectorises a comparison that writes bool; torch does not.
    np.less(bits.numpy(), min(round(p * values), values - 1) - values // 2, out=keep.numpy())
    return keep


# As an operator it draws the same masks under torch.compile as in eager mode, and as fast. In training, torch.compile
# merges calls with equal arguments in spite of the tag. It never merges torch.empty, so ``place`` makes each call a
# different one. torch looks for a keyword ``device`` to save the state of a random operator's generator (for
# checkpointing).
LIBRARY = torch.library.Library("rnndrop", "FRAGMENT")
LIBRARY.define(
    "draw(float p, SymInt[] shape, Tensor place, *, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
LIBRARY.impl("draw", lambda p, shape, place, *, device: _draw(p, tuple(shape), device), "CompositeExplicitAutograd")


@torch.library.register_fake("rnndrop::draw", lib=LIBRARY)
def _(p, shape, place, *, device):
    return torch.empty(shape, dtype=torch.bool, device=device)
