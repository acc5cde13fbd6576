"""The output layer and its loss in torch operations, some rows at a time."""

import math

import torch
from torch import Tensor

CHUNK = 2**22  # logits at a time on a CPU: 16 MB, so that the softmax and the products find them in the cache
# On a GPU, whose memory is fast and whose launches cost the host time, chunks only save memory: this many logits are
# 256 MB in float32. An update of the paper's models (11 million) is one chunk, and the work of a full chunk takes
# the GPU longer than its launches take the host.
GPU_CHUNK = 2**26
ROWS = 256  # the fewest in a chunk: smaller products are slow


def rows_at_a_time(target: Tensor, vocabulary: int) -> int:
    """The rows of a chunk, at least one; the last chunk may have fewer."""
    limit = CHUNK if target.device.type == "cpu" else GPU_CHUNK
    chunks = min(math.ceil(len(target) * vocabulary / limit), math.ceil(len(target) / ROWS))
    return math.ceil(len(target) / max(chunks, 1)) or 1


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments.

    See :func:`rnndrop_plugin.ops.linear_cross_entropy`; here ``features`` is ``(rows, features)``.

    Args:
        counted: bool, ``(rows,)``, False for rows that do not count; None if all count.
    """
    if counted is not None:
        features, target = features.masked_fill(~counted.unsqueeze(1), 0), target.where(counted, 0)
    vocabulary = weight.size(0)
    grad_features = torch.empty_like(features) if wanted[0] else None
    grad_weight = torch.zeros_like(weight) if wanted[1] else None
    grad_bias = torch.zeros_like(bias) if wanted[2] else None
    loss, nll = features.new_zeros(()), features.new_zeros(())
    share = label_smoothing / max(vocabulary - 1, 1)
    rows = rows_at_a_time(target, vocabulary)
    # A product is up to a third slower where the rows of its result do not begin at cache lines of 64 bytes.
    padded = features.new_empty(rows, math.ceil(vocabulary / 16) * 16)
    ones = features.new_ones(len(target)) if counted is None else counted.to(features.dtype)
    for start in range(0, len(target), rows):
        chunk = slice(start, start + rows)
        x, y = features[chunk], target[chunk].unsqueeze(1)
        whole_rows = padded[: len(x)]
        whole_rows[:, vocabulary:] = -torch.inf
        logits = whole_rows[:, :vocabulary]
        if bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(bias, x, weight.t(), out=logits)
        of_target = logits.gather(1, y)
        sums_of_logits = logits.sum(1, keepdim=True) if label_smoothing else 0.0
        largest = whole_rows.amax(1, keepdim=True)
        probs = torch.softmax(whole_rows, dim=1, out=whole_rows)
        # log(sum(exp(logits))), from a probability that is never small
        normaliser = largest - probs.amax(1, keepdim=True).log()
        here = None if counted is None else counted[chunk].unsqueeze(1)
        chunk_nll = _sum(normaliser - of_target, here)
        nll += chunk_nll
        loss += (1 - label_smoothing - share) * chunk_nll
        if share:
            loss += share * _sum(vocabulary * normaliser - sums_of_logits, here)
        if not any(wanted):
            continue
        grad = probs[:, :vocabulary]  # the logits' gradient: the probabilities less those of the smoothed target
        if label_smoothing:
            grad -= share
        grad.scatter_add_(1, y, grad.new_full((), label_smoothing + share - 1).expand_as(y))
        if grad_features is not None:
            torch.mm(grad, weight, out=grad_features[chunk])
        if grad_weight is not None:
            grad_weight.addmm_(grad.t(), x)
        if grad_bias is not None:
            grad_bias.addmv_(grad.t(), ones[chunk])
    if counted is not None and grad_features is not None:
        grad_features.masked_fill_(~counted.unsqueeze(1), 0)
    return loss, nll, [grad_features, grad_weight, grad_bias]


def _sum(x: Tensor, counted: Tensor | None) -> Tensor:
    return x.sum() if counted is None else x.where(counted, 0).sum()
