"""The recurrences as the paper writes them: the specification of every other backend.

Equation numbers are those of Semeniuta et al. (2016), arXiv v2. The functions take any device and dtype, are
differentiable any number of times, and are slow.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.masks import NO_MASKS, Masks

State = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU or RNN, each (batch, hidden)
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Weights(NamedTuple):
    """The parameters of one layer and direction, with torch.nn's shapes and gate order.

    Attributes:
        ih: ``(gates * hidden, input)``, the gates being i, f, g, o (LSTM), r, z, n (GRU) or h (RNN).
        hh: ``(gates * hidden, hidden)``.
        bias_ih, bias_hh: ``(gates * hidden,)``, both None without biases.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None


def lstm_step(x: Tensor, state: State, w: Weights, d: Masks, f: Callable) -> State:
    """Eq. 4 to 6 with the dropouts of Eq. 7 (hidden), 8 (cell) and 9 (update)."""
    h, c = state
    gates = F.linear(x, w.ih, w.bias_ih) + F.linear(d.hidden(h), w.hh, w.bias_hh)
    i, f_, g, o = gates.chunk(4, dim=1)
    c = d.cell(torch.sigmoid(f_) * c + torch.sigmoid(i) * d.update(f(g)))
    h = torch.sigmoid(o) * f(c)
    return h, c


def gru_step(x: Tensor, state: State, w: Weights, d: Masks, f: Callable) -> State:
    """Eq. 10 to 13, with z for the paper's 1 - z, as in torch.nn.GRU."""
    (h,) = state
    hidden = h.size(1)
    x_rz, x_n = F.linear(x, w.ih, w.bias_ih).split([2 * hidden, hidden], dim=1)
    hh_rz, hh_n = w.hh.split([2 * hidden, hidden])
    b_rz, b_n = (None, None) if w.bias_hh is None else w.bias_hh.split([2 * hidden, hidden])
    r, z = torch.sigmoid(x_rz + F.linear(d.hidden(h), hh_rz, b_rz)).chunk(2, dim=1)
    n = f(x_n + F.linear(r * d.hidden(h), hh_n, b_n))
    return (d.cell(z * h + (1 - z) * d.update(n)),)


def gru_reset_after_step(x: Tensor, state: State, w: Weights, d: Masks, f: Callable) -> State:
    """The GRU of torch.nn and cuDNN, where r multiplies the product with h instead of h itself."""
    (h,) = state
    x_r, x_z, x_n = F.linear(x, w.ih, w.bias_ih).chunk(3, dim=1)
    h_r, h_z, h_n = F.linear(d.hidden(h), w.hh, w.bias_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = f(x_n + r * h_n)
    return (d.cell(z * h + (1 - z) * d.update(n)),)


def rnn_step(x: Tensor, state: State, w: Weights, d: Masks, f: Callable) -> State:
    """Eq. 1 with the dropout of Eq. 2 (hidden)."""
    (h,) = state
    return (f(F.linear(x, w.ih, w.bias_ih) + F.linear(d.hidden(h), w.hh, w.bias_hh)),)


GATES = {"lstm": 4, "gru": 3, "gru_reset_after": 3, "rnn": 1}
STEPS = {"lstm": lstm_step, "gru": gru_step, "gru_reset_after": gru_reset_after_step, "rnn": rnn_step}


def recurrence(
    cell: str,
    input: Tensor,
    state: State,
    weights: Weights,
    masks: Masks = NO_MASKS,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """See :func:`rnndrop_plugin.ops.recurrence`; the arguments are not checked."""
    step, f = STEPS[cell], NONLINEARITIES[nonlinearity]
    steps = list(enumerate(input.unbind()))
    outputs = []
    for t, x in reversed(steps) if reverse else steps:
        new = step(x, state, weights, masks.at(t), f)
        output = new[0]
        if lengths is not None:
            running = (t < lengths).unsqueeze(1)
            new = tuple(torch.where(running, n, s) for n, s in zip(new, state, strict=True))
            output = output.masked_fill(~running, 0)
        state = new
        outputs.append(output)
    return torch.stack(outputs[::-1] if reverse else outputs), state
