"""The recurrences step by step: torch computes the product of a step, and a kernel computes the rest.

This is for problems whose blocks do not fit on the device at once. The tensors are those of ``loops``. h, c, dh, dc
and carried, ``(B, H)`` in float32, pass from step to step, and product is the step's, ``(B, its columns)``.
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
from rnndrop_plugin.ops.recurrence.triton.loops import OUTSIDE, put, saved_step, tile
from rnndrop_plugin.ops.recurrence.triton.product import drop

NUMBERS = ["t", "T", "B", "step_u", "step_h", "step_c", "scale_u", "scale_h", "scale_c"]


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=OUTSIDE)
def forward_step(
    product, gates, hs, hx, out, cs, extra, h, c, bias, lengths,
    keep_u, keep_h, keep_c, step_u, step_h, step_c, scale_u, scale_h, scale_c, t, T, B,
    CELL: tl.constexpr, RELU: tl.constexpr, REVERSE: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr,
    MU: tl.constexpr, MH: tl.constexpr, MC: tl.constexpr, H: tl.constexpr, LD: tl.constexpr,
    RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t forward. The paper's GRU takes two launches: that with RESET gives r, z and r * h, the other the rest."""
    G: tl.constexpr = 4 if CELL == "lstm" else 1 if CELL == "rnn" else 3
    COLUMNS: tl.constexpr = G if CELL != "gru" else 2 if RESET else 1
    B = B.to(tl.int64)  # a step of many sequences can have more numbers than 32 bits count
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = index < B * H
    row, unit = index // H, index % H
    at_ld, at_g, at_p = row * LD + unit, row * (G * H) + unit, row * (COLUMNS * H) + unit
    t = t.to(tl.int64)
    now = gates + t * (B * G * H)
    before = tile(h, index, ok)
    d_u = drop(keep_u + t * step_u, index, ok, scale_u, MU)
    d_c = drop(keep_c + t * step_c, index, ok, scale_c, MC)
    x0, z0 = tile(now, at_g, ok), tile(product, at_p, ok)
    if BIAS and not (CELL == "gru" and not RESET):
        x0 += tile(bias, unit, ok)
    if G > 1:
        x1, x2 = tile(now + H, at_g, ok), tile(now + 2 * H, at_g, ok)
        b2 = tl.zeros((BLOCK,), tl.float32)
        if BIAS:
            b2 = tile(bias + 2 * H, unit, ok)
    if G > 1 and not (CELL == "gru" and not RESET):
        z1 = tile(product + H, at_p, ok)
        if BIAS:
            x1 += tile(bias + H, unit, ok)

    if CELL == "gru" and RESET:
        r, z = tl.sigmoid(x0 + z0), tl.sigmoid(x1 + z1)
        put(now, at_g, ok, r)
        put(now + H, at_g, ok, z)
        hidden = before * drop(keep_h + t * step_h, index, ok, scale_h, MH)
        put(extra + t * (B * LD), at_ld, ok, r * hidden)
    else:
        if CELL == "lstm":
            x3 = tile(now + 3 * H, at_g, ok) + tile(product + 3 * H, at_p, ok)
            if BIAS:
                x3 += tile(bias + 3 * H, unit, ok)
            c_before = tile(c, index, ok)
            x2 += tile(product + 2 * H, at_p, ok) + b2
            i, f, g, o, new_h, new_c = lstm_forward(x0 + z0, x1 + z1, x2, x3, c_before, d_u, d_c, RELU)
            put(now, at_g, ok, i)
            put(now + H, at_g, ok, f)
            put(now + 2 * H, at_g, ok, g)
            put(now + 3 * H, at_g, ok, o)
            if LENGTHS:
                running = t < tl.load(lengths + row, mask=ok, other=0)
                new_c = tl.where(running, new_c, c_before)
            put(c, index, ok, new_c)
            put(cs + (t + 1 - REVERSE) * (B * H), index, ok, new_c)
        elif CELL == "rnn":
            new_h = phi(x0 + z0, RELU)
        elif CELL == "gru":
            n = phi(x2 + z0 + b2, RELU)
            new_h = gru_state(before, x1, n, d_u, d_c)
            put(now + 2 * H, at_g, ok, n)
        else:
            r, z, hn = tl.sigmoid(x0 + z0), tl.sigmoid(x1 + z1), tile(product + 2 * H, at_p, ok) + b2
            n = phi(x2 + r * hn, RELU)
            new_h = gru_state(before, z, n, d_u, d_c)
            put(now, at_g, ok, r)
            put(now + H, at_g, ok, z)
            put(now + 2 * H, at_g, ok, n)
            put(extra + t * (B * H), index, ok, hn)

        output = new_h
        if LENGTHS:
            running = t < tl.load(lengths + row, mask=ok, other=0)
            output = tl.where(running, new_h, 0.0)
            new_h = tl.where(running, new_h, before)
        put(h, index, ok, new_h)
        slot = (t + 1 - REVERSE) * (B * LD)
        if LENGTHS and REVERSE:
            put(out + t * (B * LD), at_ld, ok, output)
            put(hs + slot, at_ld, ok, new_h)
        else:
            put(hs + slot, at_ld, ok, output)
        if MH > 0:
            following = tl.maximum(t - 1, 0) if REVERSE else tl.minimum(t + 1, T - 1)  # not used after the last step
            d_h = drop(keep_h + following * step_h, index, ok, scale_h, MH)
            put(hx + slot, at_ld, ok, new_h * d_h)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=OUTSIDE)
def backward_step(
    product, gates, hs, cs, extra, grad, dh, dc, carried, d_gates, d_hn, lengths,
    keep_u, keep_h, keep_c, step_u, step_h, step_c, scale_u, scale_h, scale_c, t, T, B,
    CELL: tl.constexpr, RELU: tl.constexpr, REVERSE: tl.constexpr, LENGTHS: tl.constexpr,
    MU: tl.constexpr, MH: tl.constexpr, MC: tl.constexpr, H: tl.constexpr, LD: tl.constexpr,
    RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t backward. ``product`` is that of the step computed before; a t past the last step only finishes that one.

    The paper's GRU takes two launches: that with RESET follows the product with U_n and gives r's gradient.
    """
    G: tl.constexpr = 4 if CELL == "lstm" else 1 if CELL == "rnn" else 3
    B = B.to(tl.int64)  # a step of many sequences can have more numbers than 32 bits count
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = index < B * H
    row, unit = index // H, index % H
    at_g = row * (G * H) + unit
    t = t.to(tl.int64)
    now = d_gates + t * (B * G * H)
    length = row * 0 + T
    if LENGTHS:
        length = tl.load(lengths + row, mask=ok, other=0)
    d_hidden = tile(product, index, ok)
    if RESET:
        r = tile(gates + t * (B * G * H), at_g, ok)
        d_h = drop(keep_h + t * step_h, index, ok, scale_h, MH)
        hidden = tile(hs + (t + REVERSE) * (B * LD), row * LD + unit, ok) * d_h
        put(now, at_g, ok, gru_reset_backward(r, hidden, d_hidden))
        put(carried, index, ok, tile(carried, index, ok) + d_h * d_hidden * r)
    else:
        earlier = tl.where(t > 0, t - 1, T) if REVERSE else t + 1  # T where there is none
        finished = ok & (earlier < length)
        state = tile(dh, index, ok)
        d_h = drop(keep_h + earlier * step_h, index, finished, scale_h, MH)
        state = tl.where(finished, tile(carried, index, ok) + d_h * d_hidden, state)
        put(dh, index, ok, state)
        if (t >= 0) & (t < T):
            live = ok & (t < length)
            saved = saved_step(gates, hs, cs, extra, grad, keep_u, keep_h, keep_c, step_u, step_h, step_c,
                               scale_u, scale_h, scale_c, t, B, row, unit, ok, CELL,
                               REVERSE, MU, MH, MC, H, LD, G)  # fmt: skip
            total = state + saved[0]  # dy
            rest = tl.zeros((BLOCK,), tl.float32)
            if CELL == "lstm":
                c = tile(cs + (t + 1 - REVERSE) * (B * H), index, ok)
                old_dc = tile(dc, index, ok)
                _, _, d_u, d_c, i, f, g, o, c_before = saved
                d_i, d_f, d_g, d_o, new_dc = lstm_backward(i, f, g, o, c_before, c, total, old_dc, d_u, d_c, RELU)
                put(now, at_g, ok, tl.where(live, d_i, 0.0))
                put(now + H, at_g, ok, tl.where(live, d_f, 0.0))
                put(now + 2 * H, at_g, ok, tl.where(live, d_g, 0.0))
                put(now + 3 * H, at_g, ok, tl.where(live, d_o, 0.0))
                put(dc, index, ok, tl.where(live, new_dc, old_dc))
            elif CELL == "rnn":
                _, _, h = saved
                put(now, at_g, ok, tl.where(live, total * phi_slope(h, RELU), 0.0))
            else:
                _, _, d_u, d_c, r, z, n, h_before, reset = saved
                d_z, d_n, rest = gru_state_backward(h_before, z, n, total, d_u, d_c, RELU)
                d_n = tl.where(live, d_n, 0.0)
                put(now + H, at_g, ok, tl.where(live, d_z, 0.0))
                put(now + 2 * H, at_g, ok, d_n)
                if CELL == "gru_reset_after":
                    put(now, at_g, ok, gru_reset_backward(r, reset, d_n))
                    put(d_hn + t * (B * H), index, ok, d_n * r)
            put(carried, index, ok, rest)
