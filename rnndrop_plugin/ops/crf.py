"""A linear-chain conditional random field (Lafferty et al. 2001): its likelihood and its best path.

The score of a path y is the sum over its steps of ``emissions[t, y_t]`` and over neighbours of
``transitions[y_(t-1), y_t]``, and ``start[y_1]`` and ``end[y_T]``.
"""

import torch
from torch import Tensor


def crf_nll(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, tags: Tensor, lengths: Tensor
) -> Tensor:
    """The negative log-likelihood of each path.

    Args:
        emissions: ``(batch, time, tags)``.
        transitions: ``(tags, tags)``, from the row's tag to the column's.
        start, end: ``(tags,)``.
        tags: ``(batch, time)``, the paths; past a sequence's end anything.
        lengths: ``(batch,)``, each at least 1.

    Returns:
        ``(batch,)``.
    """
    time = emissions.size(1)
    inside = torch.arange(time, device=emissions.device) < lengths.unsqueeze(1)
    tags = tags.where(inside, 0)
    steps = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
    moves = transitions[tags[:, :-1], tags[:, 1:]]
    last = tags.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
    path = (steps * inside).sum(1) + (moves * inside[:, 1:]).sum(1) + start[tags[:, 0]] + end[last]

    total = start + emissions[:, 0]
    for t in range(1, time):
        new = torch.logsumexp(total.unsqueeze(2) + transitions, dim=1) + emissions[:, t]
        total = torch.where(inside[:, t, None], new, total)
    return torch.logsumexp(total + end, dim=1) - path


def crf_decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """The path of the highest score (Viterbi), ``(batch, time)``; past a sequence's end its last tag is repeated.

    The arguments are those of :func:`crf_nll`.
    """
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
