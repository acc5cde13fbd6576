"""Backpropagation through time by hand, in torch operations (backend ``"torch"``).

The input products of all steps are one product, and so is each weight gradient. A step itself computes only
its product with the state and what depends on that. Any device and dtype will do. Gates and gradients have
the reference's names; all tensors are ``(time, batch, ...)``.

A cell does one step at a time, so that a recurrence whose input depends on its own output can use it, too (see
:mod:`rnndrop_plugin.ops.input_feeding`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.recurrence.autograd import Gradients, Options, Problem, Saved
from rnndrop_plugin.ops.recurrence.reference import GATES, NONLINEARITIES, State, Weights

IN_PLACE = {"tanh": torch.tanh_, "relu": torch.relu_}


class Steps:
    """The order of the steps, and the states between them.

    Step t reads slot ``t + before`` and writes slot ``t + after`` of a buffer of time + 1 states.
    """

    def __init__(self, options: Options, time: int):
        self.time = time
        self.before, self.after = (1, 0) if options.reverse else (0, 1)
        self.order: range = range(time - 1, -1, -1) if options.reverse else range(time)
        self.first, self.last = (time, 0) if options.reverse else (0, time)
        lengths = options.lengths
        self.running = None
        if lengths is not None:
            self.running = (torch.arange(time, device=lengths.device).unsqueeze(1) < lengths).unsqueeze(2)

    def buffer(self, initial: Tensor, dtype: torch.dtype) -> Tensor:
        """A buffer of states, of which the first is set to ``initial``."""
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
        """``x``, which has all steps, with zeros where a sequence has ended."""
        return x if self.running is None else x.masked_fill(~self.running, 0)

    def choose(self, t: int, running: Tensor, ended: Tensor) -> Tensor:
        """``running`` for the sequences that have a step ``t``, ``ended`` for the others."""
        return running if self.running is None else torch.where(self.running[t], running, ended)


def _derivative(y: Tensor, nonlinearity: str) -> Tensor:
    """The derivative of the nonlinearity where its value is ``y``."""
    return 1 - y * y if nonlinearity == "tanh" else y > 0


class Cell:
    """The steps of a cell in one layer and direction, forwards and backwards.

    Forwards, call ``start``, then ``step`` for each step in order, then ``saved`` if a backward pass follows.
    Backwards, call ``start_backward``, then ``step_backward`` for each step in reverse order, then ``factors``.

    Attributes:
        hs: the hidden states, a buffer from ``steps``.
        d_ih: after the backward steps, the gradient of the input product, ``(time, batch, gates * hidden)``.
    """

    hs: Tensor
    d_ih: Tensor

    def __init__(self, options: Options, steps: Steps, weights: Weights):
        self.options, self.steps, self.weights = options, steps, weights

    @staticmethod
    def input_bias(weights: Weights) -> Tensor | None:
        """The bias that is part of the input product."""
        return None if weights.bias_ih is None else weights.bias_ih + weights.bias_hh

    def start(self, product: Tensor, state: State) -> None:
        """Take the input product W x + b of all steps, which becomes the gates, and the initial state."""
        self.gates = product
        self.hs = self.steps.buffer(state[0], product.dtype)
        self.recurrent = self.weights.hh.t()

    def step(self, t: int) -> None:
        """Compute the state that step ``t`` writes."""
        raise NotImplementedError

    def states(self) -> State:
        """The buffers of the states."""
        return (self.hs,)

    def saved(self) -> tuple[Tensor, ...]:
        """What ``start_backward`` needs."""
        return self.hs, self.gates

    def start_backward(self, saved: tuple[Tensor, ...], grad_state: State) -> None:
        """Take what was saved and the final state's gradient without h, and compute what no later step changes."""
        self.hs, self.gates = saved
        self.hidden = self.options.masks.hidden(self.steps.read(self.hs))

    def step_backward(self, t: int, dh: Tensor) -> Tensor:
        """The gradient of the h that step ``t`` reads, given ``dh``, the gradient of the h that it writes."""
        raise NotImplementedError

    def grad_state(self, dh: Tensor) -> State:
        """The gradient of the initial state, given ``dh``, the gradient of its h."""
        return (dh,)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of the gradient and the left factor of each product with hh, in the order of hh's rows."""
        return [(self.d_ih, self.hidden)]


class _LSTM(Cell):
    def start(self, product: Tensor, state: State) -> None:
        super().start(product, state)
        self.cs = self.steps.buffer(state[1], torch.promote_types(product.dtype, torch.float32))

    def step(self, t: int) -> None:
        f, f_ = NONLINEARITIES[self.options.nonlinearity], IN_PLACE[self.options.nonlinearity]
        steps, d, gates, size = self.steps, self.options.masks.at(t), self.gates[t], self.hs.size(2)
        gates.addmm_(d.hidden(self.hs[t + steps.before]), self.recurrent)
        gates[:, : 2 * size].sigmoid_()
        f_(gates[:, 2 * size : 3 * size])
        gates[:, 3 * size :].sigmoid_()
        i, forget, g, o = gates.chunk(4, dim=1)
        c = d.cell(forget * self.cs[t + steps.before] + i * d.update(g))
        steps.write(self.cs, t, c)
        steps.write(self.hs, t, o * f(c))

    def states(self) -> State:
        return self.hs, self.cs

    def saved(self) -> tuple[Tensor, ...]:
        return self.hs, self.gates, self.cs

    def start_backward(self, saved: tuple[Tensor, ...], grad_state: State) -> None:
        *saved, cs = saved
        super().start_backward(tuple(saved), grad_state)
        (self.dc,) = grad_state
        steps, masks, f = self.steps, self.options.masks, self.options.nonlinearity
        i, self.forget, g, o = self.gates.chunk(4, dim=2)
        y = NONLINEARITIES[f](steps.written(cs))
        self.by_h = o * _derivative(y, f)  # the derivative of h with respect to c
        d_gates = torch.empty_like(self.gates)  # first the factors that no later step changes, then the gradients
        d_i, d_forget, d_g, d_o = d_gates.chunk(4, dim=2)
        d_i.copy_(masks.update(g) * i * (1 - i))
        d_forget.copy_(steps.read(cs) * self.forget * (1 - self.forget))
        d_g.copy_(masks.update(i) * _derivative(g, f))
        d_o.copy_(y * o * (1 - o))
        self.d_ih = steps.zero_past_end(d_gates)
        self.by_gate = self.d_ih.unflatten(2, (4, -1))

    def step_backward(self, t: int, dh: Tensor) -> Tensor:
        d = self.options.masks.at(t)
        dc = d.cell(self.dc + dh * self.by_h[t])
        self.by_gate[t, :, :3] *= dc.unsqueeze(1)
        self.by_gate[t, :, 3] *= dh
        self.dc = self.steps.choose(t, dc * self.forget[t], self.dc)
        return self.steps.choose(t, d.hidden(self.d_ih[t] @ self.weights.hh), dh)

    def grad_state(self, dh: Tensor) -> State:
        return dh, self.dc.to(dh.dtype)


class _GRU(Cell):
    def start(self, product: Tensor, state: State) -> None:
        super().start(product, state)
        size = self.hs.size(2)
        self.hh_rz, self.hh_n = self.recurrent.split([2 * size, size], dim=1)

    def step(self, t: int) -> None:
        steps, d, gates, size = self.steps, self.options.masks.at(t), self.gates[t], self.hs.size(2)
        h = self.hs[t + steps.before]
        r, z, n = gates.chunk(3, dim=1)
        hidden = d.hidden(h)
        gates[:, : 2 * size].addmm_(hidden, self.hh_rz).sigmoid_()
        IN_PLACE[self.options.nonlinearity](n.addmm_(r * hidden, self.hh_n))
        steps.write(self.hs, t, d.cell(z * h + (1 - z) * d.update(n)))

    def start_backward(self, saved: tuple[Tensor, ...], grad_state: State) -> None:
        super().start_backward(saved, grad_state)
        steps, masks, size = self.steps, self.options.masks, self.hs.size(2)
        self.hh_rz, self.hh_n = self.weights.hh.split([2 * size, size])
        self.r, self.z, n = self.gates.chunk(3, dim=2)
        d_gates = torch.empty_like(self.gates)
        d_r, d_z, d_n = d_gates.chunk(3, dim=2)
        d_r.copy_(self.hidden * self.r * (1 - self.r))
        d_z.copy_((steps.read(self.hs) - masks.update(n)) * self.z * (1 - self.z))
        d_n.copy_(masks.update(1 - self.z) * _derivative(n, self.options.nonlinearity))
        self.d_ih = steps.zero_past_end(d_gates)
        self.d_r, self.d_z, self.d_n = self.d_ih.chunk(3, dim=2)
        self.d_rz = self.d_ih[:, :, : 2 * size]

    def step_backward(self, t: int, dh: Tensor) -> Tensor:
        d, r = self.options.masks.at(t), self.r[t]
        dh_t = d.cell(dh)
        self.d_z[t] *= dh_t
        self.d_n[t] *= dh_t
        d_reset = self.d_n[t] @ self.hh_n
        self.d_r[t] *= d_reset
        d_hidden = torch.addmm(d_reset * r, self.d_rz[t], self.hh_rz)
        return self.steps.choose(t, dh_t * self.z[t] + d.hidden(d_hidden), dh)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.d_rz, self.hidden), (self.d_n, self.r * self.hidden)]


class _GRUResetAfter(Cell):
    @staticmethod
    def input_bias(weights: Weights) -> Tensor | None:
        return weights.bias_ih

    def start(self, product: Tensor, state: State) -> None:
        super().start(product, state)
        self.hns = torch.empty_like(self.hs[1:])  # U_n h + b_hn

    def step(self, t: int) -> None:
        steps, d, gates, size = self.steps, self.options.masks.at(t), self.gates[t], self.hs.size(2)
        h, bias = self.hs[t + steps.before], self.weights.bias_hh
        hidden = d.hidden(h)
        products = hidden @ self.recurrent if bias is None else torch.addmm(bias, hidden, self.recurrent)
        r, z, n = gates.chunk(3, dim=1)
        gates[:, : 2 * size].add_(products[:, : 2 * size]).sigmoid_()
        self.hns[t] = products[:, 2 * size :]
        IN_PLACE[self.options.nonlinearity](n.addcmul_(r, self.hns[t]))
        steps.write(self.hs, t, d.cell(z * h + (1 - z) * d.update(n)))

    def saved(self) -> tuple[Tensor, ...]:
        return self.hs, self.gates, self.hns

    def start_backward(self, saved: tuple[Tensor, ...], grad_state: State) -> None:
        *saved, hns = saved
        super().start_backward(tuple(saved), grad_state)
        steps, masks, size = self.steps, self.options.masks, self.hs.size(2)
        r, self.z, n = self.gates.chunk(3, dim=2)
        d_n = masks.update(1 - self.z) * _derivative(n, self.options.nonlinearity)
        d_gates = torch.empty_like(self.gates)  # the gradients of r, z and U_n h + b_hn
        d_r, d_z, d_hn = d_gates.chunk(3, dim=2)
        d_r.copy_(d_n * hns * r * (1 - r))
        d_z.copy_((steps.read(self.hs) - masks.update(n)) * self.z * (1 - self.z))
        d_hn.copy_(d_n * r)
        self.d_gates = steps.zero_past_end(d_gates)
        self.by_gate = self.d_gates.unflatten(2, (3, -1))
        self.d_ih = torch.cat([self.d_gates[:, :, : 2 * size], steps.zero_past_end(d_n)], dim=2)
        self.by_input_gate = self.d_ih.unflatten(2, (3, -1))

    def step_backward(self, t: int, dh: Tensor) -> Tensor:
        d = self.options.masks.at(t)
        dh_t = d.cell(dh)
        self.by_gate[t] *= dh_t.unsqueeze(1)
        self.by_input_gate[t] *= dh_t.unsqueeze(1)
        return self.steps.choose(t, dh_t * self.z[t] + d.hidden(self.d_gates[t] @ self.weights.hh), dh)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.d_gates, self.hidden)]


class _RNN(Cell):
    def step(self, t: int) -> None:
        hidden = self.options.masks.at(t).hidden(self.hs[t + self.steps.before])
        new = IN_PLACE[self.options.nonlinearity](self.gates[t].addmm_(hidden, self.recurrent))
        self.steps.write(self.hs, t, new)

    def saved(self) -> tuple[Tensor, ...]:
        return (self.hs,)

    def start_backward(self, saved: tuple[Tensor, ...], grad_state: State) -> None:
        (self.hs,) = saved
        steps = self.steps
        self.hidden = self.options.masks.hidden(steps.read(self.hs))
        derivative = _derivative(steps.written(self.hs), self.options.nonlinearity)
        self.d_ih = steps.zero_past_end(torch.zeros_like(self.hidden) + derivative)

    def step_backward(self, t: int, dh: Tensor) -> Tensor:
        self.d_ih[t] *= dh
        return self.steps.choose(t, self.options.masks.at(t).hidden(self.d_ih[t] @ self.weights.hh), dh)


CELLS: dict[str, type[Cell]] = {"lstm": _LSTM, "gru": _GRU, "gru_reset_after": _GRUResetAfter, "rnn": _RNN}


def forward(problem: Problem, save: bool) -> tuple[Tensor, State, Saved]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    steps = Steps(options, input.size(0))
    cell = CELLS[options.cell](options, steps, weights)
    with torch.no_grad():
        cell.start(F.linear(input, weights.ih, cell.input_bias(weights)), state)
        for t in steps.order:
            cell.step(t)
    output = steps.zero_past_end(steps.written(cell.hs))
    final_state = tuple(s[steps.last].to(input.dtype, copy=True) for s in cell.states())
    return output, final_state, (output, *cell.saved()) if save else ()


def saved_like(options: Options, input: Tensor, hidden: int) -> list[Tensor]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    time, batch, _ = input.shape
    states, gates = input.new_empty(time + 1, batch, hidden), input.new_empty(time, batch, GATES[options.cell] * hidden)
    return {
        "lstm": [states, gates, torch.empty_like(states, dtype=torch.promote_types(input.dtype, torch.float32))],
        "gru": [states, gates],
        "gru_reset_after": [states, gates, torch.empty_like(states[1:])],
        "rnn": [states],
    }[options.cell]


def backward(
    problem: Problem, saved: Saved, gradients: Gradients, input_needs_grad: bool, last: bool = False
) -> tuple[Tensor | None, State, Weights]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    grad_output, *grad_state = gradients
    steps = Steps(options, input.size(0))
    cell = CELLS[options.cell](options, steps, weights)
    grad_output = steps.zero_past_end(grad_output)
    dh, *others = grad_state
    cell.start_backward(saved[1:], tuple(others))
    for t in reversed(steps.order):
        dh = cell.step_backward(t, dh + grad_output[t])
    flat = cell.d_ih.flatten(0, 1)
    grad_bias_ih, grad_hh, grad_bias_hh = recurrent_gradients(cell)
    return (
        (flat @ weights.ih).view_as(input) if input_needs_grad else None,
        cell.grad_state(dh),
        Weights(flat.t() @ input.flatten(0, 1), grad_hh, grad_bias_ih, grad_bias_hh),
    )


def recurrent_gradients(cell: Cell) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The gradients of bias_ih, hh and bias_hh, after the backward steps of ``cell``."""
    factors = cell.factors()
    grad_hh = torch.cat([d.flatten(0, 1).t() @ y.flatten(0, 1) for d, y in factors])
    if cell.weights.bias_ih is None:
        return None, grad_hh, None
    return cell.d_ih.sum((0, 1)), grad_hh, torch.cat([d.sum((0, 1)) for d, _ in factors])
