"""The recurrences in one launch: a kernel runs through all steps, one in the forward and one in the backward pass.

A block owns BH units of BB sequences. What the other blocks need from a step (h, or the gradients of the gates) goes
through memory, where each step has a place of its own, with a barrier among the blocks of the same sequences. So all
blocks must be on the device at once, which a cooperative launch makes sure of.
"""

import triton
import triton.language as tl

from rnndrop_plugin.ops.recurrence.triton.cells import (
    gru_reset_backward,
    gru_state,
    gru_state_backward,
    lstm_backward,
    lstm_forward,
    phi,
    phi_slope,
)
from rnndrop_plugin.ops.recurrence.triton.product import (
    SPACING,
    arrive,
    drop,
    four_gates,
    kept_weights,
    product,
    two_gates,
    wait,
)

#: Arguments that come from outside: compiled code assumes nothing about their values or alignment.
NUMBERS = ["T", "B", "polls", "step_u", "step_h", "step_c", "scale_u", "scale_h", "scale_c"]
OUTSIDE = ["h0", "c0", "bias", "lengths", "keep_u", "keep_h", "keep_c", "grad", "dh_n", "dc_n"]


@triton.jit
def tile(pointer, at, ok):
    """Read a tile as float32."""
    return tl.load(pointer + at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def gate(now, bias, at, unit, ok, k: tl.constexpr, H: tl.constexpr, BIAS: tl.constexpr):
    """What a step adds to the product with h for gate k: the product with the input and the bias."""
    x = tile(now + k * H, at, ok)
    if BIAS:
        x += tile(bias + k * H, unit, unit < H)
    return x


@triton.jit
def put(pointer, at, ok, value):
    """Write a tile in the type of the memory."""
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=OUTSIDE)
def forward(
    gates, hs, hx, out, cs, extra, h0, c0, h_n, c_n, u, bias, lengths,
    keep_u, keep_h, keep_c, step_u, step_h, step_c, scale_u, scale_h, scale_c, counters, failed, polls, T, B,
    CELL: tl.constexpr, RELU: tl.constexpr, REVERSE: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr,
    MU: tl.constexpr, MH: tl.constexpr, MC: tl.constexpr, H: tl.constexpr, LD: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, SPLIT: tl.constexpr, KC: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    """All steps forward.

    Args:
        gates: ``(T, B, gates * H)``, in: the products with the input; out: the gates, which the backward pass needs.
        hs, hx: ``(T + 1, B, LD)``, h as the next step finds it, and as its product reads it (with the hidden mask; the
            same tensor if there is none). Step t reads slot t and writes slot t + 1, or the reverse in REVERSE.
        out: ``(T, B, LD)``, the output, a part of hs unless sequences begin in the middle (REVERSE and LENGTHS).
        cs: ``(T + 1, B, H)``, an LSTM's c.
        extra: what else a GRU needs: ``(T, B, LD)``, r * h as U_n reads it, or ``(T, B, H)``, U_n h + b_hn
            (reset_after).
        h0, c0, h_n, c_n: ``(B, H)``, the state before and after.
        u, bias: the recurrent weights and their bias. lengths: ``(B,)``.
    """
    COLUMNS: tl.constexpr = 1 if CELL == "rnn" else 2 if CELL == "gru" else 4
    FIRST: tl.constexpr = 4 if CELL == "lstm" else 3 if CELL == "gru_reset_after" else COLUMNS
    G: tl.constexpr = 3 if CELL == "gru" else FIRST
    b, n = tl.program_id(1) * BB, tl.program_id(0) * BH
    blocks = tl.num_programs(0)
    counter = counters + tl.program_id(1) * SPACING
    kept = kept_weights(u, n, H, H, FIRST, COLUMNS, BH, SPLIT, KC, KEEP, True)
    kept_n = ()
    if CELL == "gru":
        kept_n = kept_weights(u + 2 * H * H, n, H, H, 1, 1, BH, SPLIT, KC, KEEP, True)
    row = b + tl.arange(0, BB)[:, None]
    unit = n + tl.arange(0, BH)[None, :]
    ok = (row < B) & (unit < H)
    padded = (row < B) & (unit < LD)
    at, at_ld, at_g = row * H + unit, row * LD + unit, row * (G * H) + unit
    if LENGTHS:
        length = tl.load(lengths + row, mask=row < B, other=0)

    t = tl.full((), 0, tl.int64)
    if REVERSE:
        t += T - 1
    h = tile(h0, at, ok)
    hidden = h * drop(keep_h + t * step_h, at, ok, scale_h, MH)
    put(hx + (t + REVERSE) * (B * LD), at_ld, padded, hidden)
    arrive(counter, BARRIER)
    if MH > 0:
        put(hs + (t + REVERSE) * (B * LD), at_ld, padded, h)
    if CELL == "lstm":
        c = tile(c0, at, ok)
        put(cs + (t + REVERSE) * (B * H), at, ok, c)
    target = blocks
    for _ in tl.range(0, T, num_stages=1):
        now = gates + t * (B * G * H)
        x0 = gate(now, bias, at_g, unit, ok, 0, H, BIAS)
        if G > 1:
            x1 = gate(now, bias, at_g, unit, ok, 1, H, BIAS)
            x2 = gate(now, bias, at_g, unit, ok, 2, H, BIAS and CELL != "gru_reset_after")
        if G > 3:
            x3 = gate(now, bias, at_g, unit, ok, 3, H, BIAS)
        d_u = drop(keep_u + t * step_u, at, ok, scale_u, MU)
        d_c = drop(keep_c + t * step_c, at, ok, scale_c, MC)
        following = tl.maximum(t - 1, 0) if REVERSE else tl.minimum(t + 1, T - 1)  # not used after the last step
        d_h = drop(keep_h + following * step_h, at, ok, scale_h, MH)

        polls = wait(counter, target, polls, failed, BARRIER)
        z = product(hx + (t + REVERSE) * (B * LD), LD, u, kept, b, n, B, polls, LD, H, H, FIRST, COLUMNS,
                    BB, BH, SPLIT, KC, GROUP, KEEP, STAGES, PRECISION, True)  # fmt: skip
        if CELL == "lstm":
            z0, z1, z2, z3 = four_gates(z, BB, BH)
            x0, x1, x2, x3, new_h, new_c = lstm_forward(x0 + z0, x1 + z1, x2 + z2, x3 + z3, c, d_u, d_c, RELU)
        elif CELL == "rnn":
            new_h = phi(x0 + z, RELU)
        elif CELL == "gru":
            z0, z1 = two_gates(z, BB, BH)
            x0, x1 = tl.sigmoid(x0 + z0), tl.sigmoid(x1 + z1)
            put(extra + t * (B * LD), at_ld, padded, x0 * hidden)
            arrive(counter, BARRIER)
            target += blocks
            polls = wait(counter, target, polls, failed, BARRIER)
            z2 = product(extra + t * (B * LD), LD, u + 2 * H * H, kept_n, b, n, B, polls, LD, H, H, 1, 1,
                         BB, BH, SPLIT, KC, GROUP, KEEP, STAGES, PRECISION, True)  # fmt: skip
            x2 = phi(x2 + z2, RELU)
            new_h = gru_state(h, x1, x2, d_u, d_c)
        else:
            z0, z1, z2, _ = four_gates(z, BB, BH)
            if BIAS:
                z2 += tile(bias + 2 * H, unit, unit < H)
            x0, x1 = tl.sigmoid(x0 + z0), tl.sigmoid(x1 + z1)
            x2 = phi(x2 + x0 * z2, RELU)
            new_h = gru_state(h, x1, x2, d_u, d_c)

        if LENGTHS:
            running = t < length
            output = tl.where(running, new_h, 0.0)
            new_h = tl.where(running, new_h, h)
            if CELL == "lstm":
                new_c = tl.where(running, new_c, c)
        h = tl.where(unit < H, new_h, 0.0)  # the padding of a row is read as zeros
        hidden = h * d_h
        found = h
        if LENGTHS and not REVERSE:  # nothing is read past a sequence's end, so that hs can be the output
            found = tl.where(unit < H, output, 0.0)
        slot = (t + 1 - REVERSE) * (B * LD)
        if MH > 0:
            put(hx + slot, at_ld, padded, hidden)
        else:
            put(hx + slot, at_ld, padded, found)
        arrive(counter, BARRIER)
        target += blocks
        if MH > 0:
            put(hs + slot, at_ld, padded, found)
        if LENGTHS and REVERSE:
            put(out + t * (B * LD), at_ld, padded, output)
        if CELL == "lstm":
            c = new_c
            put(cs + (t + 1 - REVERSE) * (B * H), at, ok, c)
            put(now + 3 * H, at_g, ok, x3)
        if CELL == "gru_reset_after":
            put(extra + t * (B * H), at, ok, z2)
        if CELL != "rnn":
            put(now, at_g, ok, x0)
            put(now + H, at_g, ok, x1)
            put(now + 2 * H, at_g, ok, x2)
        t = following
    put(h_n, at, ok, h)
    if CELL == "lstm":
        put(c_n, at, ok, c)


@triton.jit
def saved_step(
    gates, hs, cs, extra, grad, keep_u, keep_h, keep_c, step_u, step_h, step_c, scale_u, scale_h, scale_c,
    t, B, row, unit, ok,
    CELL: tl.constexpr, REVERSE: tl.constexpr, MU: tl.constexpr, MH: tl.constexpr, MC: tl.constexpr,
    H: tl.constexpr, LD: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """What the backward pass reads for step t: gates, states, masks and the gradient of the output."""
    at, at_g = row * H + unit, row * (G * H) + unit
    now = gates + t * (B * G * H)
    dy = tile(grad + t * (B * H), at, ok)
    d_h = drop(keep_h + t * step_h, at, ok, scale_h, MH)
    if CELL == "rnn":
        h = tile(hs + (t + 1 - REVERSE) * (B * LD), row * LD + unit, ok)  # what the step wrote
        return dy, d_h, h
    else:
        d_u = drop(keep_u + t * step_u, at, ok, scale_u, MU)
        d_c = drop(keep_c + t * step_c, at, ok, scale_c, MC)
        g0, g1, g2 = tile(now, at_g, ok), tile(now + H, at_g, ok), tile(now + 2 * H, at_g, ok)
        if CELL == "lstm":
            c = tile(cs + (t + REVERSE) * (B * H), at, ok)
            return dy, d_h, d_u, d_c, g0, g1, g2, tile(now + 3 * H, at_g, ok), c
        else:
            h = tile(hs + (t + REVERSE) * (B * LD), row * LD + unit, ok)
            if CELL == "gru":
                return dy, d_h, d_u, d_c, g0, g1, g2, h, h * d_h
            else:
                return dy, d_h, d_u, d_c, g0, g1, g2, h, tile(extra + t * (B * H), at, ok)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=OUTSIDE)
def backward(
    gates, hs, cs, extra, grad, dh_n, dc_n, d_gates, d_hn, dh0, dc0, u, lengths,
    keep_u, keep_h, keep_c, step_u, step_h, step_c, scale_u, scale_h, scale_c, counters, failed, polls, T, B,
    CELL: tl.constexpr, RELU: tl.constexpr, REVERSE: tl.constexpr, LENGTHS: tl.constexpr,
    MU: tl.constexpr, MH: tl.constexpr, MC: tl.constexpr, H: tl.constexpr, LD: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, SPLIT: tl.constexpr, KC: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    """All steps backward, from what :func:`forward` left in gates, hs, cs and extra.

    Args:
        grad: ``(T, B, H)``, the gradient of the output. dh_n, dc_n, dh0, dc0: ``(B, H)``, of the states.
        d_gates: ``(T, B, gates * H)``, out: the gradients of the products with the input.
        d_hn: ``(T, B, H)``, out (reset_after): the gradient of U_n h + b_hn.
    """
    G: tl.constexpr = 4 if CELL == "lstm" else 1 if CELL == "rnn" else 3
    WHOLE: tl.constexpr = G if CELL == "lstm" or CELL == "rnn" else 2  # gates in one product; for a GRU r and z
    b, n = tl.program_id(1) * BB, tl.program_id(0) * BH
    blocks = tl.num_programs(0)
    counter = counters + tl.program_id(1) * SPACING
    kept = kept_weights(u, n, WHOLE * H, H, 1, 1, BH, SPLIT, KC, KEEP, False)
    kept_n = ()
    if WHOLE < G:
        kept_n = kept_weights(u + 2 * H * H, n, H, H, 1, 1, BH, SPLIT, KC, KEEP, False)
    row = b + tl.arange(0, BB)[:, None]
    unit = n + tl.arange(0, BH)[None, :]
    ok = (row < B) & (unit < H)
    at, at_g = row * H + unit, row * (G * H) + unit
    if LENGTHS:
        length = tl.load(lengths + row, mask=row < B, other=0)

    t = tl.full((), 0, tl.int64)
    if not REVERSE:
        t += T - 1
    dh = tile(dh_n, at, ok)
    if CELL == "lstm":
        dc = tile(dc_n, at, ok)
        c = tile(cs + (t + 1 - REVERSE) * (B * H), at, ok)
    saved = saved_step(gates, hs, cs, extra, grad, keep_u, keep_h, keep_c, step_u, step_h, step_c,
                       scale_u, scale_h, scale_c, t, B, row, unit, ok, CELL, REVERSE, MU, MH, MC, H, LD, G)  # fmt: skip
    tl.debug_barrier()  # d_gates may be where gates are: all threads have read before one overwrites
    target = blocks * 0
    for _ in tl.range(0, T, num_stages=1):
        now = d_gates + t * (B * G * H)
        live = ok
        if LENGTHS:
            live = ok & (t < length)
        if CELL == "lstm":
            dy, d_h, d_u, d_c, i, f, g, o, c_before = saved
            d0, d1, d2, d3, new_dc = lstm_backward(i, f, g, o, c_before, c, dh + dy, dc, d_u, d_c, RELU)
            put(now, at_g, ok, tl.where(live, d0, 0.0))
            put(now + H, at_g, ok, tl.where(live, d1, 0.0))
            put(now + 2 * H, at_g, ok, tl.where(live, d2, 0.0))
            put(now + 3 * H, at_g, ok, tl.where(live, d3, 0.0))
            carried = tl.zeros((BB, BH), tl.float32)
            dc = tl.where(live, new_dc, dc)
            c = c_before
        elif CELL == "rnn":
            dy, d_h, h = saved
            put(now, at_g, ok, tl.where(live, (dh + dy) * phi_slope(h, RELU), 0.0))
            carried = tl.zeros((BB, BH), tl.float32)
        else:
            dy, d_h, d_u, d_c, r, z, g, h_before, reset = saved
            d1, d2, carried = gru_state_backward(h_before, z, g, dh + dy, d_u, d_c, RELU)
            d1, d2 = tl.where(live, d1, 0.0), tl.where(live, d2, 0.0)
            put(now + H, at_g, ok, d1)
            put(now + 2 * H, at_g, ok, d2)
            if CELL == "gru":
                arrive(counter, BARRIER)
                target += blocks
                polls = wait(counter, target, polls, failed, BARRIER)
                d_reset = product(now + 2 * H, G * H, u + 2 * H * H, kept_n, b, n, B, polls, H, H, H, 1, 1,
                                  BB, BH, SPLIT, KC, GROUP, KEEP, STAGES, PRECISION, False)  # fmt: skip
                carried += d_h * d_reset * r
            else:
                d_reset = d2
                put(d_hn + t * (B * H), at, ok, d2 * r)
            put(now, at_g, ok, gru_reset_backward(r, reset, d_reset))
        arrive(counter, BARRIER)
        target += blocks
        running = live
        following = tl.minimum(t + 1, T - 1) if REVERSE else tl.maximum(t - 1, 0)
        saved = saved_step(gates, hs, cs, extra, grad, keep_u, keep_h, keep_c, step_u, step_h, step_c,
                           scale_u, scale_h, scale_c, following, B, row, unit, ok, CELL,
                           REVERSE, MU, MH, MC, H, LD, G)  # fmt: skip
        polls = wait(counter, target, polls, failed, BARRIER)
        d_hidden = product(now, G * H, u, kept, b, n, B, polls, WHOLE * H, WHOLE * H, H, 1, 1,
                           BB, BH, SPLIT, KC, GROUP, KEEP, STAGES, PRECISION, False)  # fmt: skip
        if CELL == "gru_reset_after":
            d_hidden += product(d_hn + t * (B * H), H, u + 2 * H * H, kept_n, b, n, B, polls, H, H, H, 1, 1,
                                BB, BH, SPLIT, KC, GROUP, KEEP, STAGES, PRECISION, False)  # fmt: skip
        dh = tl.where(running, carried + d_h * d_hidden, dh)
        t = following
    put(dh0, at, ok, dh)
    if CELL == "lstm":
        put(dc0, at, ok, dc)
