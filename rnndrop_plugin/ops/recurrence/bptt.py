"""Backpropagation through time by hand, in torch operations (backend ``"torch"``).

The input product of all steps is one product, and so is each weight gradient; what a step must do
itself is its product with the state and what depends on that. Any device and dtype. Gates and gradients
have the reference's names; all tensors are ``(time, batch, ...)``.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.recurrence.autograd import Options
from rnndrop_plugin.ops.recurrence.reference import NONLINEARITIES, State, Weights

IN_PLACE = {"tanh": torch.tanh_, "relu": torch.relu_}


class _Steps:
    """The order of the steps, and the states between them.

    Step t reads slot ``t + before`` and writes slot ``t + after`` of a buffer of time + 1 states.
    """

    def __init__(self, options: Options, time: int):
        self.time = time
        self.before, self.after = (1, 0) if options.reverse else (0, 1)
        self.order: Iterable[int] = range(time - 1, -1, -1) if options.reverse else range(time)
        self.first, self.last = (time, 0) if options.reverse else (0, time)
        lengths = options.lengths
        self.running = None
        if lengths is not None:
            self.running = (torch.arange(time, device=lengths.device).unsqueeze(1) < lengths).unsqueeze(2)

    def buffer(self, initial: Tensor, dtype: torch.dtype) -> Tensor:
        states = initial.new_empty((self.time + 1, *initial.shape), dtype=dtype)
        states[self.first] = initial
        return states

    def read(self, states: Tensor) -> Tensor:
        """The state that each step reads, ``(time, batch, hidden)``."""
        return states[self.before : self.before + self.time]

    def written(self, states: Tensor) -> Tensor:
        """The state that each step writes, ``(time, batch, hidden)``."""
        return states[self.after : self.after + self.time]

    def write(self, states: Tensor, t: int, new: Tensor) -> None:
        """Write the state of step ``t``; a sequence that has ended keeps the old one."""
        if self.running is not None:
            new = torch.where(self.running[t], new, states[t + self.before])
        states[t + self.after] = new

    def zero_past_end(self, x: Tensor) -> Tensor:
        return x if self.running is None else x.masked_fill(~self.running, 0)

    def choose(self, t: int, running: Tensor, ended: Tensor) -> Tensor:
        """``running`` for the sequences that have a step ``t``, ``ended`` for the others."""
        return running if self.running is None else torch.where(self.running[t], running, ended)


def _derivative(y: Tensor, nonlinearity: str) -> Tensor:
    """The derivative of the nonlinearity, where it gave ``y``."""
    return 1 - y * y if nonlinearity == "tanh" else y > 0


def _bias(weights: Weights) -> Tensor | None:
    return None if weights.bias_ih is None else weights.bias_ih + weights.bias_hh


def forward(
    options: Options, input: Tensor, state: State, weights: Weights, save: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    steps = _Steps(options, input.size(0))
    hs = steps.buffer(state[0], input.dtype)
    with torch.no_grad():
        states, saved = _FORWARD[options.cell](options, steps, input, hs, state, weights)
    output = steps.zero_past_end(steps.written(hs))
    final_state = tuple(s[steps.last].to(input.dtype, copy=True) for s in states)
    return output, final_state, (hs, *saved) if save else ()


def backward(
    options: Options,
    input: Tensor,
    state: State,
    weights: Weights,
    saved: tuple[Tensor, ...],
    grad_output: Tensor,
    grad_state: State,
    input_needs_grad: bool,
) -> tuple[Tensor | None, State, Weights]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    hs, *saved = saved
    steps = _Steps(options, input.size(0))
    hidden = options.masks.hidden(steps.read(hs))
    # d_ih and d_hh: of the input's and the state's product; an (x, y) in `factors` is a product W y = x.
    grad_state, d_ih, factors = _BACKWARD[options.cell](
        options, steps, hs, hidden, saved, weights, steps.zero_past_end(grad_output), grad_state
    )
    flat = d_ih.flatten(0, 1)
    grad_hh = torch.cat([d.flatten(0, 1).t() @ y.flatten(0, 1) for d, y in factors])
    grad_bias_ih = grad_bias_hh = None
    if weights.bias_ih is not None:
        grad_bias_ih = flat.sum(0)
        grad_bias_hh = torch.cat([d.sum((0, 1)) for d, _ in factors])
    return (
        (flat @ weights.ih).view_as(input) if input_needs_grad else None,
        grad_state,
        Weights(flat.t() @ input.flatten(0, 1), grad_hh, grad_bias_ih, grad_bias_hh),
    )


def _lstm_forward(options, steps, input, hs, state, weights):
    masks, f, f_ = options.masks, NONLINEARITIES[options.nonlinearity], IN_PLACE[options.nonlinearity]
    size, recurrent = hs.size(2), weights.hh.t()
    gates = F.linear(input, weights.ih, _bias(weights))
    cs = steps.buffer(state[1], torch.promote_types(input.dtype, torch.float32))
    for t in steps.order:
        d = masks.at(t)
        gates[t].addmm_(d.hidden(hs[t + steps.before]), recurrent)
        gates[t, :, : 2 * size].sigmoid_()
        f_(gates[t, :, 2 * size : 3 * size])
        gates[t, :, 3 * size :].sigmoid_()
        i, forget, g, o = gates[t].chunk(4, dim=1)
        c = d.cell(forget * cs[t + steps.before] + i * d.update(g))
        steps.write(cs, t, c)
        steps.write(hs, t, o * f(c))
    return (hs, cs), (gates, cs)


def _lstm_backward(options, steps, hs, hidden, saved, weights, grad_output, grad_state):
    masks, f = options.masks, options.nonlinearity
    (gates, cs), (dh, dc) = saved, grad_state
    i, forget, g, o = gates.chunk(4, dim=2)
    y = NONLINEARITIES[f](steps.written(cs))
    by_h = o * _derivative(y, f)  # the derivative of h by c
    d_gates = torch.empty_like(gates)  # first the factors that no later step changes, then the gradients
    d_i, d_forget, d_g, d_o = d_gates.chunk(4, dim=2)
    d_i.copy_(masks.update(g) * i * (1 - i))
    d_forget.copy_(steps.read(cs) * forget * (1 - forget))
    d_g.copy_(masks.update(i) * _derivative(g, f))
    d_o.copy_(y * o * (1 - o))
    d_gates = steps.zero_past_end(d_gates)
    by_gate = d_gates.unflatten(2, (4, -1))
    for t in reversed(steps.order):
        d = masks.at(t)
        dh_t = dh + grad_output[t]
        dc_t = d.cell(dc + dh_t * by_h[t])
        by_gate[t, :, :3] *= dc_t.unsqueeze(1)
        by_gate[t, :, 3] *= dh_t
        dh = steps.choose(t, d.hidden(d_gates[t] @ weights.hh), dh)
        dc = steps.choose(t, dc_t * forget[t], dc)
    return (dh, dc.to(dh.dtype)), d_gates, [(d_gates, hidden)]


def _gru_forward(options, steps, input, hs, state, weights):
    masks, f_ = options.masks, IN_PLACE[options.nonlinearity]
    size = hs.size(2)
    hh_rz, hh_n = weights.hh.t().split([2 * size, size], dim=1)
    gates = F.linear(input, weights.ih, _bias(weights))
    for t in steps.order:
        d, h = masks.at(t), hs[t + steps.before]
        r, z, n = gates[t].chunk(3, dim=1)
        hidden = d.hidden(h)
        gates[t, :, : 2 * size].addmm_(hidden, hh_rz).sigmoid_()
        f_(n.addmm_(r * hidden, hh_n))
        steps.write(hs, t, d.cell(z * h + (1 - z) * d.update(n)))
    return (hs,), (gates,)


def _gru_backward(options, steps, hs, hidden, saved, weights, grad_output, grad_state):
    masks, size = options.masks, hs.size(2)
    (gates,), (dh,) = saved, grad_state
    hh_rz, hh_n = weights.hh.split([2 * size, size])
    r, z, n = gates.chunk(3, dim=2)
    d_gates = torch.empty_like(gates)
    d_r, d_z, d_n = d_gates.chunk(3, dim=2)
    d_r.copy_(hidden * r * (1 - r))
    d_z.copy_((steps.read(hs) - masks.update(n)) * z * (1 - z))
    d_n.copy_(masks.update(1 - z) * _derivative(n, options.nonlinearity))
    d_gates = steps.zero_past_end(d_gates)
    d_r, d_z, d_n = d_gates.chunk(3, dim=2)
    for t in reversed(steps.order):
        d = masks.at(t)
        dh_t = d.cell(dh + grad_output[t])
        d_z[t] *= dh_t
        d_n[t] *= dh_t
        d_reset = d_n[t] @ hh_n
        d_r[t] *= d_reset
        d_hidden = torch.addmm(d_reset * r[t], d_gates[t, :, : 2 * size], hh_rz)
        dh = steps.choose(t, dh_t * z[t] + d.hidden(d_hidden), dh)
    d_rz = d_gates[:, :, : 2 * size]
    return (dh,), d_gates, [(d_rz, hidden), (d_n, r * hidden)]


def _gru_reset_after_forward(options, steps, input, hs, state, weights):
    masks, f_ = options.masks, IN_PLACE[options.nonlinearity]
    size, recurrent = hs.size(2), weights.hh.t()
    gates = F.linear(input, weights.ih, weights.bias_ih)
    hns = torch.empty_like(hs[1:])  # U_n h + b_hn
    for t in steps.order:
        d, h = masks.at(t), hs[t + steps.before]
        products = (
            d.hidden(h) @ recurrent if weights.bias_hh is None else torch.addmm(weights.bias_hh, d.hidden(h), recurrent)
        )
        r, z, n = gates[t].chunk(3, dim=1)
        gates[t, :, : 2 * size].add_(products[:, : 2 * size]).sigmoid_()
        hns[t] = products[:, 2 * size :]
        f_(n.addcmul_(r, hns[t]))
        steps.write(hs, t, d.cell(z * h + (1 - z) * d.update(n)))
    return (hs,), (gates, hns)


def _gru_reset_after_backward(options, steps, hs, hidden, saved, weights, grad_output, grad_state):
    masks, size = options.masks, hs.size(2)
    (gates, hns), (dh,) = saved, grad_state
    r, z, n = gates.chunk(3, dim=2)
    d_n = masks.update(1 - z) * _derivative(n, options.nonlinearity)
    d_gates = torch.empty_like(gates)  # of r, z and U_n h + b_hn
    d_r, d_z, d_hn = d_gates.chunk(3, dim=2)
    d_r.copy_(d_n * hns * r * (1 - r))
    d_z.copy_((steps.read(hs) - masks.update(n)) * z * (1 - z))
    d_hn.copy_(d_n * r)
    d_gates, d_n = steps.zero_past_end(d_gates), steps.zero_past_end(d_n)
    by_gate = d_gates.unflatten(2, (3, -1))
    for t in reversed(steps.order):
        d = masks.at(t)
        dh_t = d.cell(dh + grad_output[t])
        by_gate[t] *= dh_t.unsqueeze(1)
        d_n[t] *= dh_t
        dh = steps.choose(t, dh_t * z[t] + d.hidden(d_gates[t] @ weights.hh), dh)
    d_ih = torch.cat([d_gates[:, :, : 2 * size], d_n], dim=2)
    return (dh,), d_ih, [(d_gates, hidden)]


def _rnn_forward(options, steps, input, hs, state, weights):
    recurrent = weights.hh.t()
    products = F.linear(input, weights.ih, _bias(weights))
    for t in steps.order:
        d = options.masks.at(t)
        new = IN_PLACE[options.nonlinearity](products[t].addmm_(d.hidden(hs[t + steps.before]), recurrent))
        steps.write(hs, t, new)
    return (hs,), ()


def _rnn_backward(options, steps, hs, hidden, saved, weights, grad_output, grad_state):
    (dh,) = grad_state
    d_products = steps.zero_past_end(torch.zeros_like(hidden) + _derivative(steps.written(hs), options.nonlinearity))
    for t in reversed(steps.order):
        d_products[t] *= dh + grad_output[t]
        dh = steps.choose(t, options.masks.at(t).hidden(d_products[t] @ weights.hh), dh)
    return (dh,), d_products, [(d_products, hidden)]


_FORWARD = {
    "lstm": _lstm_forward,
    "gru": _gru_forward,
    "gru_reset_after": _gru_reset_after_forward,
    "rnn": _rnn_forward,
}
_BACKWARD = {
    "lstm": _lstm_backward,
    "gru": _gru_backward,
    "gru_reset_after": _gru_reset_after_backward,
    "rnn": _rnn_backward,
}
