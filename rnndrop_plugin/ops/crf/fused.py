"""The conditional random field as Triton kernels: one launch for all steps of all sequences.

A block works on one sequence and holds the scores of its tags in registers. Sums are in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnndrop_plugin.ops.crf import reference
from rnndrop_plugin.ops.gradients import need_reference, reference_gradients

MOST_TAGS = 64  # a block holds a square matrix of this size in its registers

NOWHERE = tl.constexpr(-float("inf"))


@triton.jit
def log_sum_exp(x, axis: tl.constexpr):
    """The logarithm of a sum of exponentials; -inf where all of ``x`` are."""
    top = tl.max(x, axis)
    top = tl.where(top == NOWHERE, 0.0, top)
    return top + tl.log(tl.sum(tl.exp(x - tl.expand_dims(top, axis)), axis))


@triton.jit
def load_transitions(transitions, TAGS: tl.constexpr, K: tl.constexpr):
    """The transitions, from the row's tag to the column's, -inf for tags that do not exist."""
    tag = tl.arange(0, K)
    ok = (tag[:, None] < TAGS) & (tag[None, :] < TAGS)
    return tl.load(transitions + tag[:, None] * TAGS + tag[None, :], mask=ok, other=NOWHERE)


@triton.jit
def length_of(lengths, b, T):
    """The length of a sequence, limited to its memory, since a replayed CUDA graph cannot check what it is given."""
    return tl.minimum(tl.maximum(tl.load(lengths + b), 1), T)


@triton.jit(do_not_specialize=["T"])
def forward(
    emissions, transitions, start, end, tags, lengths, alphas, total, nll, T, TAGS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Write alphas ``(B, T, TAGS)``, the logarithms of sums over all beginnings of paths that end in a tag; total
    ``(B,)``, the same over all paths; and nll ``(B,)``, total less the score of the path ``tags``, ``(B, T)``."""
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_transitions(transitions, TAGS, K)
    here = b * T * TAGS + tag
    y = tl.load(tags + b * T)
    score = tl.load(start + y) + tl.load(emissions + b * T * TAGS + y)
    alpha = tl.load(start + tag, mask=ok, other=NOWHERE) + tl.load(emissions + here, mask=ok, other=0.0)
    tl.store(alphas + here, alpha, mask=ok)
    for t in range(1, length_of(lengths, b, T)):
        here += TAGS
        before = y
        y = tl.load(tags + b * T + t)
        score += tl.load(transitions + before * TAGS + y) + tl.load(emissions + (b * T + t) * TAGS + y)
        emitted = tl.load(emissions + here, mask=ok, other=0.0)  # loaded before the sum, which synchronises the threads
        alpha = log_sum_exp(alpha[:, None] + moves, 0) + emitted
        tl.store(alphas + here, alpha, mask=ok)
    whole = log_sum_exp(alpha + tl.load(end + tag, mask=ok, other=NOWHERE), 0)
    tl.store(total + b, whole)
    score += tl.load(end + y)
    tl.store(nll + b, tl.where(whole == NOWHERE, float("inf"), whole - score))


@triton.jit(do_not_specialize=["T"])
def backward(
    emissions, transitions, end, tags, lengths, alphas, total, grad, d_emissions, d_scores, T,
    TAGS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients: the probability of each tag at each step, and that of each transition summed over the steps, less
    1 for those of the path.

    d_emissions ``(B, T, TAGS)`` is zero past a sequence's end; d_scores ``(B, TAGS + 2, TAGS)`` has the gradients of
    the transitions, and below them those of start and end.
    """
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_transitions(transitions, TAGS, K)
    whole, scale = tl.load(total + b), tl.load(grad + b)
    whole = tl.where(whole == NOWHERE, 0.0, whole)  # where no path is possible, none has a probability
    length = length_of(lengths, b, T)
    here = (b * T + length - 1) * TAGS + tag
    beta = tl.load(end + tag, mask=ok, other=NOWHERE)  # the score of all that may follow a tag
    alpha = tl.load(alphas + here, mask=ok, other=NOWHERE)
    y = tl.load(tags + b * T + length - 1)
    d = scale * (tl.exp(alpha + beta - whole) - (tag == y).to(tl.float32))
    tl.store(d_emissions + here, d, mask=ok)
    d_scores += b * ((TAGS + 2) * TAGS)
    tl.store(d_scores + (TAGS + 1) * TAGS + tag, d, mask=ok)
    found = tl.zeros((K, K), tl.float32)
    for k in range(1, length):
        next = moves + (beta + tl.load(emissions + here, mask=ok, other=0.0))[None, :]
        here -= TAGS
        alpha = tl.load(alphas + here, mask=ok, other=NOWHERE)
        after = y
        y = tl.load(tags + b * T + length - 1 - k)
        taken = (tag == y)[:, None] & (tag == after)[None, :]
        found += tl.exp(alpha[:, None] + next - whole) - taken.to(tl.float32)
        beta = log_sum_exp(next, 1)
        d = scale * (tl.exp(alpha + beta - whole) - (tag == y).to(tl.float32))
        tl.store(d_emissions + here, d, mask=ok)
    tl.store(d_scores + TAGS * TAGS + tag, d, mask=ok)
    tl.store(d_scores + tag[:, None] * TAGS + tag[None, :], scale * found, mask=ok[:, None] & ok[None, :])


@triton.jit(do_not_specialize=["T"])
def best_path(emissions, transitions, start, end, lengths, came_from, path, T, TAGS: tl.constexpr, K: tl.constexpr):
    """Write path ``(B, T)``, the one of the highest score; its last tag is repeated past the end.

    came_from ``(B, T, TAGS)`` is scratch memory.
    """
    b = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, K)
    ok = tag < TAGS
    moves = load_transitions(transitions, TAGS, K)
    here = b * T * TAGS + tag
    best = tl.load(start + tag, mask=ok, other=NOWHERE) + tl.load(emissions + here, mask=ok, other=0.0)
    length = length_of(lengths, b, T)
    for _ in range(1, length):
        here += TAGS
        emitted = tl.load(emissions + here, mask=ok, other=0.0)
        scores, previous = tl.max(best[:, None] + moves, 0, return_indices=True)
        best = scores + emitted
        tl.store(came_from + here, tl.minimum(previous, TAGS - 1), mask=ok)  # with NaN the largest may not be a tag
    tl.debug_barrier()  # what all threads have stored is read below
    last = tl.minimum(tl.argmax(best + tl.load(end + tag, mask=ok, other=NOWHERE), 0), TAGS - 1)
    for t in range(length - 1, T):
        tl.store(path + b * T + t, last.to(tl.int64))
    for k in range(1, length):
        t = length - k
        last = tl.load(came_from + (b * T + t) * TAGS + last)
        tl.store(path + b * T + t - 1, last.to(tl.int64))


def _constants(emissions: Tensor) -> dict[str, int | bool]:
    tags = emissions.size(2)
    return {"TAGS": tags, "K": max(4, triton.next_power_of_2(tags)), "enable_fp_fusion": True}


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, emissions, transitions, start, end, tags, lengths):
        emissions.gather(2, tags.unsqueeze(2))  # for torch's bounds check: the kernels index by tags unchecked
        alphas, total, nll = torch.empty_like(emissions), *(emissions.new_empty(len(emissions)) for _ in range(2))
        with torch.cuda.device_of(emissions):
            arguments = (emissions, transitions, start, end, tags, lengths, alphas, total, nll, emissions.size(1))
            forward[(len(emissions),)](*arguments, **_constants(emissions))
        ctx.save_for_backward(emissions, transitions, start, end, tags, lengths, alphas, total)
        return nll

    @staticmethod
    def backward(ctx, grad):
        emissions, transitions, start, end, tags, lengths, alphas, total = ctx.saved_tensors
        if need_reference((grad,)):
            inputs = (emissions, transitions, start, end)

            def function(*scores: Tensor) -> tuple[Tensor]:
                return (reference.nll(*scores, tags, lengths),)

            return *reference_gradients(function, inputs, ctx.needs_input_grad[:4], (grad,)), None, None
        batch, time, kinds = emissions.shape
        d_emissions, d_scores = emissions.new_zeros(emissions.shape), emissions.new_empty(batch, kinds + 2, kinds)
        with torch.cuda.device_of(emissions):
            arguments = (emissions, transitions, end, tags, lengths, alphas, total, grad)
            arguments = [x.contiguous() for x in arguments]  # a hook may have changed their layout
            backward[(batch,)](*arguments, d_emissions, d_scores, time, **_constants(emissions))
        d_transitions, d_start, d_end = d_scores.sum(0).split_with_sizes((kinds, 1, 1))
        return d_emissions, d_transitions, d_start[0], d_end[0], None, None


def nll(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
    """See :func:`rnndrop_plugin.ops.crf_nll`; here scores are in float32, with tags past a sequence's end, too."""
    return _NLL.apply(*(x.contiguous() for x in (emissions, transitions, start, end, tags, lengths)))


def decode(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> Tensor:
    """See :func:`rnndrop_plugin.ops.crf_decode`; here the scores are in float32."""
    batch, time, _ = emissions.shape
    came_from = torch.empty_like(emissions, dtype=torch.int32, memory_format=torch.contiguous_format)
    path = lengths.new_empty(batch, time)
    with torch.no_grad(), torch.cuda.device_of(emissions):
        arguments = (x.contiguous() for x in (emissions, transitions, start, end, lengths))
        best_path[(batch,)](*arguments, came_from, path, time, **_constants(emissions))
    return path
