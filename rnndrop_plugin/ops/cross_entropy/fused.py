"""The output layer and its loss on a GPU: a Triton kernel computes the loss and replaces the logits by their gradient.

The host makes few launches and waits for none, so a CUDA graph can capture them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnndrop_plugin.ops.cross_entropy.chunked import rows_at_a_time
from rnndrop_plugin.ops.sums import sum_of_rows

BLOCK = 2048  # at most this many classes are in the registers of a program at a time
OF_WARP = 256  # classes per warp, eight per thread
ALIGNED = 16  # rows are padded to a multiple of this, so that kernel and products read vectors

NOWHERE = tl.constexpr(-float("inf"))


@triton.jit
def load_logits(logits, bias, place, classes, stride):
    """The logits of a row in the columns ``place``, with the bias; -inf beyond the last class."""
    ok = place < classes
    x = tl.load(logits + place, mask=place < stride, other=NOWHERE)  # this mask lets it read vectors
    if bias is not None:
        x += tl.load(bias + place, mask=ok, other=0.0)
    return tl.where(ok, x, NOWHERE)


@triton.jit(do_not_specialize=["first", "rows", "ignore_index"], debug=True)  # keeps the assertion
def softmax_loss(
    logits, bias, target, losses, first, rows, classes, stride, ignore_index, smoothing, share,
    SMOOTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of a row, and the gradient of its logits.

    logits ``(.., stride)`` are those of the rows from ``first`` on, without the bias. A row has ``classes`` of them,
    and what follows these is never read. They are replaced by their gradient if it is wanted. target is ``(rows,)``;
    losses ``(2, rows)`` are the loss and the negative log-likelihood.
    share: the smoothed probability of each class that is not the target.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    losses += first + row
    y = tl.load(target + first + row)
    block = tl.arange(0, BLOCK)
    if y == ignore_index:
        tl.store(losses, 0.0)
        tl.store(losses + rows, 0.0)
        if GRADIENT:
            for start in range(0, classes, BLOCK):
                tl.store(logits + start + block, tl.zeros((BLOCK,), tl.float32), mask=start + block < stride)
    else:
        is_class = (y >= 0) & (y < classes)
        tl.device_assert(is_class, "a target is out of bounds: it is not a class")
        of_target = tl.load(logits + y, mask=is_class, other=float("nan"))
        if bias is not None:
            of_target += tl.load(bias + y, mask=is_class, other=0.0)
        # Each place of the block has its own maximum and sums, which are combined at the end.
        top = tl.full((BLOCK,), NOWHERE, tl.float32)
        sum_of_exp = tl.zeros((BLOCK,), tl.float32)
        sum_of_logits = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, classes, BLOCK):
            x = load_logits(logits, bias, start + block, classes, stride)
            if SMOOTH:
                sum_of_logits += tl.where(start + block < classes, x, 0.0)
            new_top = tl.maximum(top, x)
            base = tl.where(new_top == NOWHERE, 0.0, new_top)
            sum_of_exp = sum_of_exp * tl.exp(top - base) + tl.exp(x - base)
            top = new_top
        largest = tl.max(top, 0)
        total = tl.sum(sum_of_exp * tl.exp(top - largest), 0)
        nll = (largest - of_target) + tl.log(total)
        loss = nll
        if SMOOTH:
            normaliser = largest + tl.log(total)
            loss = (1 - smoothing - share) * nll + share * (classes * normaliser - tl.sum(sum_of_logits, 0))
        tl.store(losses, loss)
        tl.store(losses + rows, nll)
        if GRADIENT:
            tl.debug_barrier()  # all threads have read the target's logit, which one of them overwrites
            place = y.to(tl.int32)
            for start in range(0, classes, BLOCK):
                x = load_logits(logits, bias, start + block, classes, stride)
                wanted = tl.where(start + block == place, 1 - smoothing, share)
                tl.store(logits + start + block, tl.exp(x - largest) / total - wanted, mask=start + block < stride)


@triton.jit(do_not_specialize=["rows"])
def sums(losses, loss, nll, rows, BLOCK: tl.constexpr):
    """Both sums of losses ``(2, rows)``, always in the same order."""
    block = tl.arange(0, BLOCK)
    loss_of_place = tl.zeros((BLOCK,), tl.float32)
    nll_of_place = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, rows, BLOCK):
        ok = start + block < rows
        loss_of_place += tl.load(losses + start + block, mask=ok, other=0.0)
        nll_of_place += tl.load(losses + rows + start + block, mask=ok, other=0.0)
    tl.store(loss, tl.sum(loss_of_place, 0))
    tl.store(nll, tl.sum(nll_of_place, 0))


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments.

    See :func:`rnndrop_plugin.ops.linear_cross_entropy`; here ``features`` is ``(rows, features)`` in float32.
    """
    rows, classes = len(target), weight.size(0)
    target, bias = target.contiguous(), None if bias is None else bias.contiguous()
    losses, loss, nll = features.new_empty(2, rows), features.new_empty(()), features.new_empty(())
    share = label_smoothing / max(classes - 1, 1)
    stride = triton.cdiv(classes, ALIGNED) * ALIGNED
    block = min(BLOCK, triton.next_power_of_2(stride))
    options = {"SMOOTH": label_smoothing > 0, "GRADIENT": any(wanted), "BLOCK": block}
    options |= {"num_warps": triton.cdiv(block, OF_WARP), "sanitize_overflow": False, "enable_fp_fusion": True}
    of_features, of_weight, of_bias = [], None, None
    first = 0
    with torch.cuda.device_of(features):
        for x in features.split(rows_at_a_time(target, classes)):
            logits = features.new_empty(len(x), stride)[:, :classes]
            torch.mm(x, weight.t(), out=logits)
            numbers = first, rows, classes, stride, ignore_index, label_smoothing, share
            softmax_loss[(len(x),)](logits, bias, target, losses, *numbers, **options)
            first += len(x)
            if wanted[0]:
                of_features.append(logits @ weight)
            if wanted[1]:
                of_weight = logits.t() @ x if of_weight is None else of_weight.addmm_(logits.t(), x)
            if wanted[2]:
                of_bias = sum_of_rows(logits) if of_bias is None else of_bias.add_(sum_of_rows(logits))
            del logits  # before those of the next chunk
        sums[(1,)](losses, loss, nll, rows, BLOCK=1024, enable_fp_fusion=True)
    if len(of_features) > 1:
        of_features = [torch.cat(of_features)]
    return loss, nll, [*(of_features or [None]), of_weight, of_bias]
