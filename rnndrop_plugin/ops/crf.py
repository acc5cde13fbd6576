"""A linear-chain conditional random field (Lafferty et al. 2001): its likelihood and its best path.

The score of a path y is the sum over its steps of ``emissions[t, y_t]`` and over neighbours of
``transitions[y_(t-1), y_t]``, and ``start[y_1]`` and ``end[y_T]``.
"""

from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from rnndrop_plugin.ops import availability
from rnndrop_plugin.ops.checks import check_device, check_integers, check_lengths, check_tensor
from rnndrop_plugin.ops.context import is_plain, readable, tracing, transformation


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
        ``(batch,)``, at least float32 whatever the dtype of the arguments.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: something that is no tensor.
        IndexError: a tag that the scores do not have. On a GPU, whose values are not read, it ends in torch's
            device-side assertion.
    """
    emissions, transitions, start, end, lengths = _checked(emissions, transitions, start, end, lengths)
    check_integers("tags", tags, emissions.shape[:2])
    check_device("tags", tags, "emissions", emissions)
    inside = torch.arange(emissions.size(1), device=emissions.device) < lengths.unsqueeze(1)
    tags = tags.long().where(inside, 0)
    if readable(tags) and tags.numel() > 0:
        for extreme in map(int, tags.aminmax()):
            if not 0 <= extreme < len(start):
                raise IndexError(f"tag {extreme} is out of bounds: there are {len(start)} tags")
    scores = (emissions, transitions, start, end)
    by_steps = partial(_nll, inside)
    if kernels := _kernels(*scores):
        return kernels.nll(by_steps, *scores, tags, lengths)
    return by_steps(*scores, tags, lengths)


def _nll(
    inside: Tensor, emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, tags: Tensor, lengths: Tensor
) -> Tensor:
    """:func:`crf_nll` of paths that have tags past their ends, too; inside is bool ``(batch, time)``."""
    steps = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
    moves = transitions[tags[:, :-1], tags[:, 1:]]
    last = tags.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
    path = (steps * inside).sum(1) + (moves * inside[:, 1:]).sum(1) + start[tags[:, 0]] + end[last]
    return _log_partition(emissions, transitions, start, end, lengths) - path


def _log_partition(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """The logarithm of the sum of exp(score) over all paths, ``(batch,)``."""
    total = start + emissions[:, 0]
    for t in range(1, emissions.size(1)):
        new = torch.logsumexp(total.unsqueeze(2) + transitions, dim=1) + emissions[:, t]
        total = torch.where((t < lengths).unsqueeze(1), new, total)
    return torch.logsumexp(total + end, dim=1)


def crf_decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """The path of the highest score (Viterbi), ``(batch, time)``; past a sequence's end its last tag is repeated.

    The arguments and errors are those of :func:`crf_nll`.
    """
    emissions, transitions, start, end, lengths = _checked(emissions, transitions, start, end, lengths)
    if kernels := _kernels(emissions, transitions, start, end):
        return kernels.decode(emissions, transitions, start, end, lengths)
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


def _kernels(emissions: Tensor, *scores: Tensor) -> ModuleType | None:
    """The module ``crf_triton`` where its kernels can run, which need one launch for all steps."""
    recorded = torch.compiler.is_compiling() or tracing() or transformation() or not is_plain((emissions, *scores))
    if recorded or len(emissions) == 0 or availability.obstacle(emissions.device, emissions.dtype):
        return None
    from rnndrop_plugin.ops import crf_triton

    same = all(x.dtype == torch.float32 for x in (emissions, *scores))
    return crf_triton if same and emissions.size(2) <= crf_triton.MOST_TAGS else None


def _checked(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> list[Tensor]:
    """The arguments in at least float32: sums over a sequence lose too much in half types."""
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
