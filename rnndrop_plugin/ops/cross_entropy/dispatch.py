"""The output layer and its loss as one function, without keeping the logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops import c_library
from rnndrop_plugin.ops.cross_entropy import compiled

SMALL = 2**20  # up to this many logits the plain operations are as fast
CHUNK = 2**22  # logits at a time: 16 MB, so that the softmax and the products find them in the cache
ROWS = 256  # at a time at least: the products of fewer are slow


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of a linear layer's softmax, summed over the targets.

    On many logits of single or double precision, the forward pass takes the rows in chunks and forms the
    gradients of each chunk at once: the logits are neither kept nor computed twice. Half precisions and
    autocast take the reference, since the scale of float16's gradients is known in the backward pass only.

    Args:
        features: ``(..., features)``.
        weight: ``(vocabulary, features)``.
        bias: ``(vocabulary,)`` or None.
        target: ``(...)``, class indices.
        ignore_index: targets of this value count for nothing.
        label_smoothing: probability taken from the target and shared by all other classes, as fairseq's
            label_smoothed_cross_entropy does (torch shares it among all classes).

    Returns:
        The loss and the negative log-likelihood of the targets, in nats and at least float32. The latter
        is detached; without smoothing the two are equal.
    """
    features, target = _counted(features, target, ignore_index)
    half = features.dtype not in (torch.float32, torch.float64)
    small = target.numel() * weight.size(0) <= SMALL
    if half or small or _in_autocast(features.device.type):
        return _plain(features, weight, bias, target, label_smoothing)
    inputs = features, weight, bias
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _LinearCrossEntropy.apply(*inputs, target, label_smoothing)
    loss, nll, _ = _compute(*inputs, target, label_smoothing, (False, False, False))
    return loss, nll


def linear_cross_entropy_ref(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`linear_cross_entropy` in plain operations; any dtype, differentiable twice."""
    features, target = _counted(features, target, ignore_index)
    return _plain(features, weight, bias, target, label_smoothing)


def _in_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _counted(features: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The rows whose targets count, ``(rows, features)`` and ``(rows,)``."""
    features, target = features.flatten(0, -2), target.flatten()
    counted = target != ignore_index
    return (features, target) if counted.all() else (features[counted], target[counted])


def _plain(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    logits = F.linear(features, weight, bias)
    log_probs = F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nll = loss = F.nll_loss(log_probs, target, reduction="sum")
    if label_smoothing:
        share = label_smoothing / (weight.size(0) - 1)
        loss = (1 - label_smoothing - share) * nll - share * log_probs.sum()
    return loss, nll.detach()


def _compute(features: Tensor, *arguments) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """:func:`_chunked`, compiled where it can be."""
    in_c = features.device.type == "cpu" and c_library.unavailable() is None and len(features) > 0
    return (compiled.linear_cross_entropy if in_c else _chunked)(features, *arguments)


def _chunked(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments."""
    vocabulary = weight.size(0)
    grad_features = torch.empty_like(features) if wanted[0] else None
    grad_weight = torch.zeros_like(weight) if wanted[1] else None
    grad_bias = torch.zeros_like(bias) if wanted[2] else None
    loss, nll = features.new_zeros(()), features.new_zeros(())
    share = label_smoothing / (vocabulary - 1)
    chunks = min(math.ceil(len(target) * vocabulary / CHUNK), math.ceil(len(target) / ROWS))
    rows = math.ceil(len(target) / chunks)
    # A product is up to a third slower where the rows of its result do not begin at cache lines of 64 bytes.
    padded = features.new_empty(rows, math.ceil(vocabulary / 16) * 16)
    ones = features.new_ones(rows)
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
        sum_of_logits = logits.sum() if label_smoothing else 0.0
        largest = whole_rows.amax(1, keepdim=True)
        probs = torch.softmax(whole_rows, dim=1, out=whole_rows)
        # log(sum(exp(logits))), from a probability that is never small
        normaliser = largest - probs.amax(1, keepdim=True).log()
        chunk_nll = (normaliser - of_target).sum()
        nll += chunk_nll
        loss += (1 - label_smoothing - share) * chunk_nll + share * (vocabulary * normaliser.sum() - sum_of_logits)
        if not any(wanted):
            continue
        grad = probs[:, :vocabulary]  # of the logits: the probabilities less those of the smoothed target
        if label_smoothing:
            grad -= share
        grad.scatter_add_(1, y, grad.new_full((), label_smoothing + share - 1).expand_as(y))
        if grad_features is not None:
            torch.mm(grad, weight, out=grad_features[chunk])
        if grad_weight is not None:
            grad_weight.addmm_(grad.t(), x)
        if grad_bias is not None:
            grad_bias.addmv_(grad.t(), ones[: len(x)])
    return loss, nll, [grad_features, grad_weight, grad_bias]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, target, label_smoothing):
        wanted = ctx.needs_input_grad[:3]
        loss, nll, ctx.gradients = _compute(features, weight, bias, target, label_smoothing, wanted)
        ctx.save_for_backward(features, weight, bias, target)
        ctx.label_smoothing = label_smoothing
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx, grad_loss, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or torch.is_grad_enabled():  # a second time, or create_graph
            return *_plain_gradients(ctx, grad_loss), None, None
        if grad_loss != 1:
            gradients = [None if g is None else g.mul_(grad_loss) for g in gradients]
        return *gradients, None, None


def _plain_gradients(ctx, grad_loss: Tensor) -> list[Tensor | None]:
    create_graph = torch.is_grad_enabled()
    *tensors, target = ctx.saved_tensors
    wanted = [k for k in range(3) if ctx.needs_input_grad[k]]
    with torch.enable_grad():
        # Views, so that a tensor that was given twice gets each gradient once.
        tensors = [x if x is None else x.view_as(x) for x in tensors]
        loss, _ = _plain(*tensors, target, ctx.label_smoothing)
        found = torch.autograd.grad(loss, [tensors[k] for k in wanted], grad_loss, create_graph=create_graph)
    gradients: list[Tensor | None] = [None] * 3
    for k, gradient in zip(wanted, found, strict=True):
        gradients[k] = gradient
    return gradients
