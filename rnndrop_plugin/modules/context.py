"""Layers that let each word see its neighbours before a recurrence reads it (section 4.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnndrop_plugin.ops import NONLINEARITIES
from rnndrop_plugin.ops.checks import ArgumentError, check_choice


def _check_width(width: int) -> None:
    if width < 1 or width % 2 == 0:
        raise ArgumentError("width", f"must be odd, the word and as many to its left as to its right, got {width}")


def _check_input(x: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"the input must be (batch, time, features), got {tuple(x.shape)}")


class ConvContext(nn.Module):
    """A convolution over time, phi(W [x_(t-w) ... x_(t+w)] + b), with zeros beyond both ends (COLING 2016).

    Args:
        input_size: the number of features of a word.
        filters: the number of features that a word gets.
        width: the number of words in a window, 2w + 1.
        nonlinearity: ``"tanh"`` or ``"relu"``, the function phi.
        device, dtype: as in torch.nn.

    Raises:
        ValueError: a width that is not odd, or an unknown nonlinearity.
    """

    def __init__(
        self,
        input_size: int,
        filters: int,
        width: int = 5,
        nonlinearity: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_width(width)
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        self.convolution = nn.Conv1d(input_size, filters, width, padding=width // 2, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity
        self.output_size = filters

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, input_size)`` to ``(batch, time, filters)``; ValueError for another number of dimensions."""
        _check_input(x)
        return NONLINEARITIES[self.nonlinearity](self.convolution(x.transpose(1, 2)).transpose(1, 2))

    def extra_repr(self) -> str:
        """The nonlinearity."""
        return f"nonlinearity={self.nonlinearity}"


class ConcatContext(nn.Module):
    """The concatenated features of neighbouring words, [x_(t-w) ... x_(t+w)], with zeros beyond both ends (arXiv v2).

    Args:
        input_size: the number of features of a word.
        width: the number of words in a window, 2w + 1.

    Raises:
        ValueError: a width that is not odd.
    """

    def __init__(self, input_size: int, width: int = 5) -> None:
        super().__init__()
        _check_width(width)
        self.width = width
        self.output_size = width * input_size

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, input_size)`` to ``(batch, time, width * input_size)``; ValueError for another number of
        dimensions.
        """
        _check_input(x)
        time, side = x.size(1), self.width // 2
        padded = F.pad(x, (0, 0, side, side))
        return torch.cat([padded[:, i : i + time] for i in range(self.width)], dim=2)

    def extra_repr(self) -> str:
        """The number of words."""
        return f"width={self.width}"
