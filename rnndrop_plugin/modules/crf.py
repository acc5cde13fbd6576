"""A conditional random field as an output layer."""

import torch
from torch import Tensor, nn

from rnndrop_plugin.ops import crf_decode, crf_nll


class CRF(nn.Module):
    """A linear-chain conditional random field over tags, with trained transition scores.

    Args:
        tags: the number of tags.
        device, dtype: as in torch.nn.
    """

    def __init__(self, tags: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags, device=device, dtype=dtype))
        self.start = nn.Parameter(torch.zeros(tags, device=device, dtype=dtype))
        self.end = nn.Parameter(torch.zeros(tags, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """The number of tags."""
        return str(len(self.start))

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError("torch.jit.script cannot compile CRF: use torch.compile, torch.export or torch.jit.trace")

    def forward(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """The negative log-likelihood of each path, see :func:`rnndrop_plugin.ops.crf_nll`."""
        return crf_nll(emissions, self.transitions, self.start, self.end, tags, lengths)

    def decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The best path, see :func:`rnndrop_plugin.ops.crf_decode`."""
        return crf_decode(emissions, self.transitions, self.start, self.end, lengths)
