"""The conditional random field of ``crf.py`` as Triton kernels: one launch for all steps of all sequences.

A block has a sequence, and its scores by tag in registers. Sums are in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnndrop_plugin.ops.gradients import need_reference, reference_gradients

MOST_TAGS = 64  # a block has a square of so many in its registers

NOWHERE = tl.constexpr(-float("inf"))


@triton.jit
def log_sum_exp(x, axis: tl.constexpr):
    """The logarithm of a sum of exponentials; -inf where all of ``x`` are."""
    top = tl.max(x, axis)
    top = tl.where(top == NOWHERE, 0.0, top)
    return top + tl.log(tl.sum(tl.exp(x - tl.expand_dims(top, axis)), axis))


@triton.jit
def load_scores(transitions, TAGS: tl.constexpr, K: tl.constexpr):
    """The transitions, from the row's tag to the column's, -inf for tags that there are not."""
    tag = tl.arange(0, K)
    ok = (tag[:, None] < TAGS) & (tag[None, :] < TAGS)
    return tl.load(transitions + tag[:, None] * TAGS + tag[None, :], mask=ok, other=NOWHERE)


@triton.jit
def length_of(lengths, b, T):
    """The length of a sequence; never beyond its memory, since a replayed CUDA graph cannot check what it is given."""
    return tl.minimum(tl.maximum(tl.load(lengths + b), 1), T)


@triton.jit(do_not_specialize=["T"])
def forward(emissions, transitions, start, end, lengths, alphas, total, T, TAGS: tl.constexpr, K: tl.constexpr):
    """alphas ``(B, T, TAGS)``, logarithms of sums over all beginnings that end in a tag; total ``(B,)``, over all."""
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_scores(transitions, TAGS, K)
    here = b * T * TAGS + tag
    alpha = tl.load(start + tag, mask=ok, other=NOWHERE) + tl.load(emissions + here, mask=ok, other=0.0)
    tl.store(alphas + here, alpha, mask=ok)
    for _ in range(1, length_of(lengths, b, T)):
        here += TAGS
        alpha = log_sum_exp(alpha[:, None] + moves, 0) + tl.load(emissions + here, mask=ok, other=0.0)
        tl.store(alphas + here, alpha, mask=ok)
    tl.store(total + b, log_sum_exp(alpha + tl.load(end + tag, mask=ok, other=NOWHERE), 0))


@triton.jit(do_not_specialize=["T"])
def backward(
    emissions, transitions, end, lengths, alphas, total, grad, d_emissions, d_transitions, T,
    TAGS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients: the probability of each tag at each step, and of each transition, summed over the steps.

    d_emissions ``(B, T, TAGS)`` is zero past a sequence's end; d_transitions ``(B, TAGS, TAGS)``.
    """
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_scores(transitions, TAGS, K)
    whole, scale = tl.load(total + b), tl.load(grad + b)
    length = length_of(lengths, b, T)
    here = (b * T + length - 1) * TAGS + tag
    beta = tl.load(end + tag, mask=ok, other=NOWHERE)  # of all that may follow a tag
    alpha = tl.load(alphas + here, mask=ok, other=NOWHERE)
    tl.store(d_emissions + here, scale * tl.exp(alpha + beta - whole), mask=ok)
    found = tl.zeros((K, K), tl.float32)
    for _ in range(1, length):
        next = moves + (beta + tl.load(emissions + here, mask=ok, other=0.0))[None, :]
        here -= TAGS
        alpha = tl.load(alphas + here, mask=ok, other=NOWHERE)
        found += tl.exp(alpha[:, None] + next - whole)
        beta = log_sum_exp(next, 1)
        tl.store(d_emissions + here, scale * tl.exp(alpha + beta - whole), mask=ok)
    square = tag[:, None] * TAGS + tag[None, :]
    tl.store(d_transitions + b * (TAGS * TAGS) + square, scale * found, mask=ok[:, None] & ok[None, :])


@triton.jit(do_not_specialize=["T"])
def best_path(emissions, transitions, start, end, lengths, came_from, path, T, TAGS: tl.constexpr, K: tl.constexpr):
    """path ``(B, T)``, of the highest score, with its last tag past the end. came_from: ``(B, T, TAGS)``, scratch."""
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_scores(transitions, TAGS, K)
    here = b * T * TAGS + tag
    best = tl.load(start + tag, mask=ok, other=NOWHERE) + tl.load(emissions + here, mask=ok, other=0.0)
    length = length_of(lengths, b, T)
    for _ in range(1, length):
        here += TAGS
        scores, previous = tl.max(best[:, None] + moves, 0, return_indices=True)
        best = scores + tl.load(emissions + here, mask=ok, other=0.0)
        tl.store(came_from + here, previous, mask=ok)
    tl.debug_barrier()  # what all threads have stored is read below
    last = tl.argmax(best + tl.load(end + tag, mask=ok, other=NOWHERE), 0)
    for t in range(length - 1, T):
        tl.store(path + b * T + t, last.to(tl.int64))
    for k in range(1, length):
        t = length - k
        last = tl.load(came_from + (b * T + t) * TAGS + last)
        tl.store(path + b * T + t - 1, last.to(tl.int64))


def _constants(emissions: Tensor) -> dict[str, int | bool]:
    tags = emissions.size(2)
    return {"TAGS": tags, "K": max(4, triton.next_power_of_2(tags)), "enable_fp_fusion": True}


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, emissions, transitions, start, end, lengths):
        emissions, transitions = emissions.contiguous(), transitions.contiguous()
        alphas, total = torch.empty_like(emissions), emissions.new_empty(len(emissions))
        with torch.cuda.device_of(emissions):
            arguments = (emissions, transitions, start.contiguous(), end.contiguous(), lengths, alphas, total)
            forward[(len(emissions),)](*arguments, emissions.size(1), **_constants(emissions))
        ctx.function = function
        ctx.save_for_backward(emissions, transitions, start, end, lengths, alphas, total)
        return total

    @staticmethod
    def backward(ctx, grad):
        emissions, transitions, start, end, lengths, alphas, total = ctx.saved_tensors
        if need_reference((grad,)):
            inputs = (emissions, transitions, start, end)

            def function(*scores: Tensor) -> tuple[Tensor]:
                return (ctx.function(*scores, lengths),)

            return None, *reference_gradients(function, inputs, ctx.needs_input_grad[1:5], (grad,)), None
        batch, time, tags = emissions.shape
        d_emissions, d_transitions = torch.zeros_like(emissions), emissions.new_empty(batch, tags, tags)
        with torch.cuda.device_of(emissions):
            arguments = (emissions, transitions, end.contiguous(), lengths, alphas, total, grad.contiguous())
            backward[(batch,)](*arguments, d_emissions, d_transitions, time, **_constants(emissions))
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, tags)
        d_end = d_emissions.gather(1, last).sum((0, 1))
        return None, d_emissions, d_transitions.sum(0), d_emissions[:, 0].sum(0), d_end, None


def log_partition(
    function, emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
) -> Tensor:
    """The logarithm of the sum of exp(score) over all paths, ``(batch,)``.

    Args:
        function: computes the same of the other arguments in torch operations, for a gradient of the gradient.
        emissions, transitions, start, end, lengths: those of :func:`rnndrop_plugin.ops.crf_nll`, in float32.
    """
    return _LogPartition.apply(function, emissions, transitions, start, end, lengths)


def decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """See :func:`rnndrop_plugin.ops.crf_decode`; the arguments are in float32."""
    batch, time, _ = emissions.shape
    came_from = torch.empty_like(emissions, dtype=torch.int32, memory_format=torch.contiguous_format)
    path = lengths.new_empty(batch, time)
    with torch.no_grad(), torch.cuda.device_of(emissions):
        scores = (x.contiguous() for x in (emissions, transitions, start, end))
        best_path[(batch,)](*scores, lengths, came_from, path, time, **_constants(emissions))
    return path
