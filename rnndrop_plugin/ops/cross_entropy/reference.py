"""The output layer and its loss in plain operations: the specification of all other forms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.context import readable


def linear_cross_entropy(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """See :func:`rnndrop_plugin.ops.linear_cross_entropy`; here ``features`` is ``(rows, features)``.

    It takes any dtype and is differentiable any number of times.
    """
    counted = target != ignore_index
    if not readable(counted):  # the number of rows that count is unknown
        features = features.masked_fill(~counted.unsqueeze(1), 0)
    elif not counted.all():
        features, target, counted = features[counted], target[counted], counted[counted]
    logits = F.linear(features, weight, bias)
    log_probs = F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nll = loss = F.nll_loss(log_probs, target, ignore_index=ignore_index, reduction="none")
    if label_smoothing:
        share = label_smoothing / (weight.size(0) - 1)
        loss = (1 - label_smoothing - share) * nll - share * log_probs.sum(1).masked_fill(~counted, 0)
    return loss.sum(), nll.sum().detach()
