"""Which form of the conditional random field runs."""

from types import ModuleType

import torch
from torch import Tensor

from rnndrop_plugin.ops import availability
from rnndrop_plugin.ops.checks import check_device, check_integers
from rnndrop_plugin.ops.context import is_plain, readable, values_are_known
from rnndrop_plugin.ops.crf import reference
from rnndrop_plugin.ops.crf.checks import check_scores


def crf_nll(
    emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, tags: Tensor, lengths: Tensor
) -> Tensor:
    """The negative log-likelihood of each path.

    Args:
        emissions: ``(batch, time, tags)``.
        transitions: ``(tags, tags)``, from the row's tag to the column's.
        start, end: ``(tags,)``.
        tags: ``(batch, time)``, the paths; what stands past a sequence's end does not matter.
        lengths: ``(batch,)``, each at least 1.

    Returns:
        ``(batch,)``, in at least float32 whatever the dtype of the arguments.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: an argument that is not a tensor.
        IndexError: a tag that the scores do not have. On a GPU values are not read, and such a tag ends in torch's
            device-side assertion.
    """
    emissions, transitions, start, end, lengths = check_scores(emissions, transitions, start, end, lengths)
    check_integers("tags", tags, emissions.shape[:2])
    check_device("tags", tags, "emissions", emissions)
    inside = torch.arange(emissions.size(1), device=emissions.device) < lengths.unsqueeze(1)
    tags = tags.long().where(inside, 0)
    if readable(tags) and tags.numel() > 0:
        for extreme in map(int, tags.aminmax()):
            if not 0 <= extreme < len(start):
                raise IndexError(f"tag {extreme} is out of bounds: there are {len(start)} tags")
    scores = (emissions, transitions, start, end)
    return _form(*scores).nll(*scores, tags, lengths)


def crf_decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """The path of the highest score (Viterbi), ``(batch, time)``; past a sequence's end its last tag is repeated.

    The arguments and errors are those of :func:`crf_nll`.
    """
    emissions, transitions, start, end, lengths = check_scores(emissions, transitions, start, end, lengths)
    scores = (emissions, transitions, start, end)
    return _form(*scores).decode(*scores, lengths)


def _form(emissions: Tensor, *scores: Tensor) -> ModuleType:
    """The module ``fused``, which needs one launch for all steps, where its kernels can run; else ``reference``."""
    recorded = not values_are_known() or not is_plain((emissions, *scores))
    if recorded or len(emissions) == 0 or availability.obstacle(emissions.device, emissions.dtype):
        return reference
    from rnndrop_plugin.ops.crf import fused

    same = all(x.dtype == torch.float32 for x in (emissions, *scores))
    return fused if same and emissions.size(2) <= fused.MOST_TAGS else reference
