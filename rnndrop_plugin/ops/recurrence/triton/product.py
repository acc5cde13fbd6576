"""The product of a step with the recurrent weights, and the barrier between the steps."""

import triton
import triton.language as tl

SPACING = tl.constexpr(32)  # elements between two barriers' counters, so that no two share a cache line


@triton.jit
def drop(keep, at, ok, scale, MODE: tl.constexpr):
    """A tile of a mask, its scale included. MODE 0: nothing is dropped; 1: only scaled; 2: dropped and scaled."""
    if MODE == 2:
        return tl.where(tl.load(keep + at, mask=ok, other=0) != 0, scale, 0.0)
    else:
        if MODE == 1:
            return tl.full(ok.shape, 1.0, tl.float32) * scale
        else:
            return tl.full(ok.shape, 1.0, tl.float32)


@triton.jit
def arrive(counter, BARRIER: tl.constexpr):
    """Signal the other blocks of this counter that they may read what this block has stored."""
    if BARRIER:
        tl.debug_barrier()  # all threads have stored before one of them releases
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target, polls, failed, BARRIER: tl.constexpr):
    """Wait until ``counter`` reaches ``target``, polling ``polls`` times at most; returns the polls for the next wait.

    The counter only grows, so a block that comes late never misses its turn. A block that has waited in vain sets
    ``failed`` and does not wait again: the kernel ends, with results that are NaN.
    """
    if BARRIER:
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        left = polls
        while (seen < target) & (left > 0):
            seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
            left -= 1
        if seen < target:
            tl.store(failed, 1)
        polls = tl.where(seen < target, 0, polls)
        tl.debug_barrier()
    return polls


@triton.jit
def rows(left, ld, j, b, B, K: tl.constexpr, BB: tl.constexpr, SPLIT: tl.constexpr, KC: tl.constexpr):
    """Chunk j of the left operand, ``(SPLIT, BB, KC)`` or ``(BB, KC)``. The load bypasses L1, since other blocks wrote
    the chunk (if rows are not aligned to 16 bytes it goes through L1, which the barrier's acquire has emptied)."""
    if SPLIT > 1:
        row = (b + tl.arange(0, BB))[None, :, None]
        k = tl.arange(0, SPLIT)[:, None, None] * KC + tl.arange(0, KC)[None, None, :]
    else:
        row = (b + tl.arange(0, BB))[:, None]
        k = tl.arange(0, KC)[None, :]
    at = left + j * (SPLIT * KC) + row * ld + k
    if K % (SPLIT * KC) == 0:
        return tl.load(at, mask=(row < B) & (k >= 0), other=0, cache_modifier=".cg")
    else:
        return tl.load(at, mask=(row < B) & (k < K - j * (SPLIT * KC)), other=0, cache_modifier=".cg")


@triton.jit
def recurrent_weights(
    u, j, n, K: tl.constexpr, H: tl.constexpr, GATES: tl.constexpr, COLUMNS: tl.constexpr, BH: tl.constexpr,
    SPLIT: tl.constexpr, KC: tl.constexpr, FORWARD: tl.constexpr,
):  # fmt: skip
    """Chunk j of the right operand, for the units from ``n``.

    In the forward pass it is ``(.., KC, COLUMNS * BH)`` of U transposed, and column m is gate m % COLUMNS of unit
    m // COLUMNS (COLUMNS is a power of two, so there may be more columns than gates). In the backward pass it is
    ``(.., KC, BH)`` of U.
    """
    N: tl.constexpr = COLUMNS * BH if FORWARD else BH
    m = tl.arange(0, N)
    if SPLIT > 1:
        m = m[None, None, :]
        k = j * (SPLIT * KC) + tl.arange(0, SPLIT)[:, None, None] * KC + tl.arange(0, KC)[None, :, None]
    else:
        m = m[None, :]
        k = j * KC + tl.arange(0, KC)[:, None]
    if FORWARD:
        gate = m % COLUMNS
        unit = n + m // COLUMNS
        return tl.load(u + (gate * H + unit) * H + k, mask=(gate < GATES) & (unit < H) & (k < H), other=0)
    else:
        return tl.load(u + k * H + (n + m), mask=(n + m < H) & (k < K), other=0)


@triton.jit
def kept_weights(
    u, n, K: tl.constexpr, H: tl.constexpr, GATES: tl.constexpr, COLUMNS: tl.constexpr, BH: tl.constexpr,
    SPLIT: tl.constexpr, KC: tl.constexpr, KEEP: tl.constexpr, FORWARD: tl.constexpr,
):  # fmt: skip
    """All chunks of the right operand, to be kept on the chip from step to step; none unless KEEP."""
    chunks = ()
    if KEEP:
        for j in tl.static_range(0, (K + SPLIT * KC - 1) // (SPLIT * KC)):
            chunks = chunks + (recurrent_weights(u, j, n, K, H, GATES, COLUMNS, BH, SPLIT, KC, FORWARD),)
    return chunks


@triton.jit
def product(
    left, ld, u, kept, b, n, B, polls,
    WIDTH: tl.constexpr, K: tl.constexpr, H: tl.constexpr, GATES: tl.constexpr, COLUMNS: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, SPLIT: tl.constexpr, KC: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, FORWARD: tl.constexpr,
):  # fmt: skip
    """The product ``(BB, N)`` of the left operand ``(B, K)``, of row stride ``ld``, and the recurrent weights.

    The chunks of the weights are ``kept``, or loaded again (from L2) if KEEP is not set. SPLIT parts of K are summed
    separately, which gives each warp work of its own if the batch is small. The left operand can be read up to
    WIDTH >= K and is zero beyond K. If a barrier failed, no polls are left, and everything becomes NaN.
    """
    C: tl.constexpr = SPLIT * KC
    CHUNKS: tl.constexpr = (K + C - 1) // C
    N: tl.constexpr = COLUMNS * BH if FORWARD else BH
    start = tl.where(polls > 0, 0.0, float("nan"))
    if SPLIT > 1:
        total = tl.zeros((SPLIT, BB, N), tl.float32) + start
    else:
        total = tl.zeros((BB, N), tl.float32) + start
    if KEEP:
        for g in tl.static_range(0, CHUNKS, GROUP):  # the loads of a group are in flight together
            group = ()
            for j in tl.static_range(0, GROUP):
                if g + j < CHUNKS - 1:  # a full chunk
                    group = group + (rows(left, ld, g + j, b, B, CHUNKS * C, BB, SPLIT, KC),)
                elif g + j < CHUNKS:
                    group = group + (rows(left, ld, g + j, b, B, WIDTH, BB, SPLIT, KC),)
            for j in tl.static_range(0, GROUP):
                if g + j < CHUNKS:
                    total = tl.dot(group[j], kept[g + j], total, input_precision=PRECISION)
    else:
        for j in tl.range(0, CHUNKS, num_stages=STAGES):
            part = rows(left, ld, j, b, B, WIDTH, BB, SPLIT, KC)
            weights = recurrent_weights(u, j, n, K, H, GATES, COLUMNS, BH, SPLIT, KC, FORWARD)
            total = tl.dot(part, weights, total, input_precision=PRECISION)
    if SPLIT > 1:
        return tl.sum(total, axis=0)
    else:
        return total


@triton.jit
def four_gates(z, BB: tl.constexpr, BH: tl.constexpr):
    """The columns of four gates, each ``(BB, BH)``."""
    even, odd = tl.split(tl.reshape(z, (BB, BH, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def two_gates(z, BB: tl.constexpr, BH: tl.constexpr):
    """The columns of two gates, each ``(BB, BH)``."""
    return tl.split(tl.reshape(z, (BB, BH, 2)))


@triton.jit
def nothing(number):
    """Launched once to see whether kernels can be built and launched here."""
    tl.debug_barrier()
