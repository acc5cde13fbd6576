"""The conditional random field in plain operations, step by step: the specification of the kernels."""

import torch
from torch import Tensor

FORBIDDEN = -1e30  # instead of -inf, for which torch's logsumexp has a gradient of NaN; the sum of many stays finite


def nll(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
    """See :func:`rnndrop_plugin.ops.crf_nll`; here the values past a sequence's end must be tags, too."""
    inside = torch.arange(emissions.size(1), device=emissions.device) < lengths.unsqueeze(1)
    emissions = emissions.masked_fill(~inside.unsqueeze(2), 0)
    steps = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
    moves = transitions[tags[:, :-1], tags[:, 1:]].masked_fill(~inside[:, 1:], 0)
    last = tags.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
    path = steps.sum(1) + moves.sum(1) + start[tags[:, 0]] + end[last]
    scores = (x.clamp(min=FORBIDDEN) for x in (emissions, transitions, start, end))
    return _log_partition(*scores, lengths) - path


def _log_partition(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """The logarithm of the sum of exp(score) over all paths, ``(batch,)``."""
    total = start + emissions[:, 0]
    for t in range(1, emissions.size(1)):
        new = torch.logsumexp(total.unsqueeze(2) + transitions, dim=1) + emissions[:, t]
        total = torch.where((t < lengths).unsqueeze(1), new, total)
    return torch.logsumexp(total + end, dim=1)


def decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """See :func:`rnndrop_plugin.ops.crf_decode`."""
    batch, time, tags = emissions.shape
    stay = torch.arange(tags, device=emissions.device).expand(batch, tags)
    best = start + emissions[:, 0]
    came_from = []
    for t in range(1, time):
        scores, previous = (best.unsqueeze(2) + transitions).max(dim=1)
        running = (t < lengths).unsqueeze(1)
        best = torch.where(running, scores + emissions[:, t], best)
        came_from.append(torch.where(running, previous, stay))
    path = [(best + end).argmax(dim=1)]
    for previous in reversed(came_from):
        path.append(previous.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(path[::-1], dim=1)
