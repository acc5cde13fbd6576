"""The only place that chooses which form of the output layer and its loss runs."""

from types import ModuleType

import torch
from torch import Tensor

from rnndrop_plugin.ops import availability, c_library
from rnndrop_plugin.ops.context import captured, in_autocast, is_plain, readable, tracing, transformation
from rnndrop_plugin.ops.cross_entropy import chunked, compiled, operators, reference
from rnndrop_plugin.ops.cross_entropy.checks import check_linear_cross_entropy
from rnndrop_plugin.ops.gradients import gradient_is_wanted, need_reference, reference_gradients
from rnndrop_plugin.ops.version import VERSION

SMALL = 2**20  # up to this many logits plain operations are as fast on a CPU (on a GPU they are more launches)


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
    autocast use the reference, since the scale of float16's gradients is known only in the backward pass.
    On a GPU, in single precision, a Triton kernel does this for any number of logits. There, as with torch's own
    losses, the features of targets that do not count must be finite, or the gradient of the weight is not.

    Args:
        features: ``(..., features)``.
        weight: ``(vocabulary, features)``.
        bias: ``(vocabulary,)`` or None.
        target: ``(...)``, class indices of any integer dtype.
        ignore_index: targets of this value do not count.
        label_smoothing: the probability that is taken from the target and shared by all other classes, as in
            fairseq's label_smoothed_cross_entropy (torch shares it among all classes).

    Returns:
        The loss and the negative log-likelihood of the targets, in nats and at least float32. The latter
        is detached; without smoothing the two are equal.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit.
        TypeError: an argument that is not a tensor.
        IndexError: a target that is not a class. On a GPU values are not read, and it ends in a device-side assertion.
    """
    arguments = features, weight, bias, target, ignore_index, label_smoothing
    if torch.compiler.is_compiling():
        return torch.ops.rnndrop.linear_cross_entropy(VERSION, *arguments)
    return _linear_cross_entropy(*arguments)


def linear_cross_entropy_ref(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """:func:`linear_cross_entropy` in plain operations; any dtype, differentiable any number of times."""
    given = features, weight, bias, target, ignore_index, label_smoothing
    target, label_smoothing = check_linear_cross_entropy(*given)
    features, target = _in_rows(features, target)
    return reference.linear_cross_entropy(features, weight, bias, target, ignore_index, label_smoothing)


def _in_rows(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(rows, features)`` and as many targets."""
    features = features.unsqueeze(0) if features.dim() == 1 else features
    return features.flatten(0, -2), target.flatten()


def _linear_cross_entropy(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    given = features, weight, bias, target, ignore_index, label_smoothing
    target, label_smoothing = check_linear_cross_entropy(*given)
    features, target = _in_rows(features, target)
    inputs = features, weight, bias
    arguments = *inputs, target, ignore_index, label_smoothing
    half = features.dtype not in (torch.float32, torch.float64)
    small = target.numel() * weight.size(0) <= (0 if _fused(features) else SMALL)
    nothing = features.size(1) == 0
    if half or small or nothing or in_autocast(features.device.type) or tracing() or transformation():
        return reference.linear_cross_entropy(*arguments)
    kernel = _run if is_plain((*inputs, target)) else _operator
    if gradient_is_wanted(inputs):
        return _LinearCrossEntropy.apply(kernel, *arguments)
    loss, nll, _ = kernel(*arguments, (False, False, False))
    return loss, nll


def _fused(features: Tensor) -> ModuleType | None:
    """The module ``fused`` where its kernel can run."""
    if features.dtype != torch.float32 or availability.obstacle(features.device, features.dtype):
        return None
    from rnndrop_plugin.ops.cross_entropy import fused

    return fused


def _run(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments."""
    if fused := _fused(features):
        return fused.linear_cross_entropy(features, weight, bias, target, ignore_index, label_smoothing, wanted)
    counted = target != ignore_index
    if not readable(counted):  # the number of rows that count is unknown
        return chunked.linear_cross_entropy(features, weight, bias, target, label_smoothing, wanted, counted)
    everything = bool(counted.all())
    rows, target = (features, target) if everything else (features[counted], target[counted])
    in_c = features.device.type == "cpu" and c_library.unavailable() is None and len(rows) > 0
    form = compiled.linear_cross_entropy if in_c else chunked.linear_cross_entropy
    loss, nll, gradients = form(rows, weight, bias, target, label_smoothing, wanted)
    if wanted[0] and not everything:
        gradients[0] = features.new_zeros(features.shape).index_put_((counted,), gradients[0])
    return loss, nll, gradients


_operator = operators.register(_linear_cross_entropy, _run)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, features, weight, bias, target, ignore_index, label_smoothing):
        wanted = ctx.needs_input_grad[1:4]
        loss, nll, ctx.gradients = kernel(features, weight, bias, target, ignore_index, label_smoothing, wanted)
        ctx.save_for_backward(features, weight, bias, target)
        ctx.options = ignore_index, label_smoothing
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx, grad_loss, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or need_reference((grad_loss,)):  # gradients is None the second time
            *inputs, target = ctx.saved_tensors

            def loss(*inputs: Tensor | None) -> tuple[Tensor]:
                return reference.linear_cross_entropy(*inputs, target, *ctx.options)[:1]

            gradients = reference_gradients(loss, inputs, ctx.needs_input_grad[1:4], (grad_loss,))
        elif not is_plain((grad_loss,)) or captured(grad_loss.device):  # a replay would multiply them again
            gradients = [None if g is None else g * grad_loss for g in gradients]
        elif not readable(grad_loss) or grad_loss != 1:
            torch._foreach_mul_([g for g in gradients if g is not None], grad_loss)  # one launch on a GPU
        return None, *gradients, None, None, None
