"""The reference recurrence against the equations of Semeniuta et al. (2016), arXiv v2, written out anew with numpy.

The transcription keeps the paper's notation: one matrix over [x, h] for each gate, z as in Eq. 12
(torch's z is 1 minus it), the candidate g. It runs one example and one step at a time.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rnndrop_plugin.ops import NONLINEARITIES, Mask, Masks, Weights
from rnndrop_plugin.ops.recurrence.reference import STEPS, recurrence

INPUT, HIDDEN = 3, 4
GATES = {"lstm": "ifgo", "gru": "rzg", "gru_reset_after": "rzg", "rnn": "h"}  # in torch.nn's order
KINDS = {cell: ("hidden",) if cell == "rnn" else Masks._fields for cell in STEPS}
GATED = [cell for cell in STEPS if cell != "rnn"]
PHI = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm(x, state, w, f, d):
    h, c = state
    xh = np.concatenate([x, d["hidden"] * h])
    i, f_, o = (sigmoid(w[gate]["W"] @ xh + w[gate]["b"]) for gate in "ifo")
    g = f(w["g"]["W"] @ xh + w["g"]["b"])
    c = d["cell"] * (f_ * c + i * (d["update"] * g))
    return o * f(c), c


def gru(x, state, w, f, d):
    (h,) = state
    xh = np.concatenate([x, d["hidden"] * h])
    z, r = (sigmoid(w[gate]["W"] @ xh + w[gate]["b"]) for gate in "zr")
    g = f(w["g"]["W"] @ np.concatenate([x, r * (d["hidden"] * h)]) + w["g"]["b"])
    return (d["cell"] * ((1 - z) * h + z * (d["update"] * g)),)


def gru_reset_after(x, state, w, f, d):
    (h,) = state
    xh = np.concatenate([x, d["hidden"] * h])
    z, r = (sigmoid(w[gate]["W"] @ xh + w[gate]["b"]) for gate in "zr")
    g = f(w["g"]["Wx"] @ x + w["g"]["bx"] + r * (w["g"]["Wh"] @ (d["hidden"] * h) + w["g"]["bh"]))
    return (d["cell"] * ((1 - z) * h + z * (d["update"] * g)),)


def rnn(x, state, w, f, d):
    return (f(w["h"]["W"] @ np.concatenate([x, d["hidden"] * state[0]]) + w["h"]["b"]),)


PAPER = {"lstm": lstm, "gru": gru, "gru_reset_after": gru_reset_after, "rnn": rnn}


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def draw_state(cell, batch, hidden=HIDDEN):
    return tuple(draw(batch, hidden) for _ in range(2 if cell == "lstm" else 1))


def draw_weights(cell, input=INPUT, hidden=HIDDEN):
    rows = len(GATES[cell]) * hidden
    return Weights(draw(rows, input), draw(rows, hidden), draw(rows), draw(rows))


def draw_masks(samplings, time, batch, hidden=HIDDEN):
    """Masks of rate 0.5 (scale 1.5, so that a missing scale shows) for a dict from kind to sampling."""
    shapes = {"step": (time, batch, hidden), "sequence": (batch, hidden)}
    return Masks(**{kind: Mask(torch.rand(shapes[s]) < 0.5, 1.5) for kind, s in samplings.items() if s})


def papers_weights(cell, weights):
    """The paper's W and b of each gate (and their parts), its z for torch.nn's 1 - z."""
    parts = (t.numpy().reshape(len(GATES[cell]), HIDDEN, -1) for t in weights)
    result = {}
    for gate, Wx, Wh, bx, bh in zip(GATES[cell], *parts, strict=True):
        sign = -1 if gate == "z" else 1
        Wx, Wh, bx, bh = sign * Wx, sign * Wh, sign * bx[:, 0], sign * bh[:, 0]
        result[gate] = {"W": np.hstack([Wx, Wh]), "b": bx + bh, "Wx": Wx, "Wh": Wh, "bx": bx, "bh": bh}
    return result


def unroll(cell, x, state, weights, masks, nonlinearity, lengths, reverse):
    """The recurrence by the transcription: example by example, step by step."""
    time, batch, _ = x.shape
    w = papers_weights(cell, weights)
    outputs, finals = np.zeros((time, batch, HIDDEN)), [np.zeros((batch, HIDDEN)) for _ in state]
    for b in range(batch):
        s = tuple(part[b].numpy() for part in state)
        steps = list(range(lengths[b]))
        for t in reversed(steps) if reverse else steps:
            d = {}
            for kind, (keep, scale) in masks._asdict().items():
                keep = np.ones(HIDDEN) if keep is None else (keep[t, b] if keep.dim() == 3 else keep[b]).numpy()
                d[kind] = keep * scale
            s = PAPER[cell](x[t, b].numpy(), s, w, PHI[nonlinearity], d)
            outputs[t, b] = s[0]
        for final, part in zip(finals, s, strict=True):
            final[b] = part
    return outputs, finals


def assert_equal(result, output, state):
    np.testing.assert_allclose(result[0].numpy(), output, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(result[1], state, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize(("cell", "kind"), [(cell, kind) for cell in STEPS for kind in ("none", *KINDS[cell], "all")])
def test_one_step_is_the_papers_equation(cell, kind, nonlinearity):
    kinds = {"none": (), "all": KINDS[cell]}.get(kind, (kind,))
    masks = draw_masks(dict.fromkeys(kinds, "step"), 1, 1)
    x, state, weights = draw(1, 1, INPUT), draw_state(cell, 1), draw_weights(cell)
    result = recurrence(cell, x, state, weights, masks, nonlinearity=nonlinearity)
    assert_equal(result, *unroll(cell, x, state, weights, masks, nonlinearity, [1], False))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 5, 1]])
@pytest.mark.parametrize("sampling", ["step", "sequence"])
@pytest.mark.parametrize("cell", STEPS)
def test_sequences_are_the_papers_equations(cell, sampling, lengths, reverse):
    masks = draw_masks(dict.fromkeys(KINDS[cell], sampling), 5, 3)
    x, state, weights = draw(5, 3, INPUT), draw_state(cell, 3), draw_weights(cell)
    result = recurrence(
        cell, x, state, weights, masks, lengths=None if lengths is None else torch.tensor(lengths), reverse=reverse
    )
    assert_equal(result, *unroll(cell, x, state, weights, masks, "tanh", lengths or [5] * 3, reverse))


@pytest.mark.parametrize("cell", STEPS)
def test_without_biases_they_are_zero(cell):
    x, state, weights = draw(4, 2, INPUT), draw_state(cell, 2), draw_weights(cell)
    zeros = torch.zeros_like(weights.bias_ih)
    output, final = recurrence(cell, x, state, Weights(weights.ih, weights.hh))
    assert_equal((output, final), *recurrence(cell, x, state, Weights(weights.ih, weights.hh, zeros, zeros)))


def gates(weights, x, h):
    """The pre-activations of all gates, for every step of x, h being the state each step reads."""
    return x @ weights.ih.T + weights.bias_ih + h @ weights.hh.T + weights.bias_hh


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_lstm_with_a_zero_update_mask_only_forgets(nonlinearity):
    x, (h, c), weights = draw(6, 2, INPUT), draw_state("lstm", 2), draw_weights("lstm")
    masks = Masks(update=Mask(torch.zeros(2, HIDDEN, dtype=torch.bool), 2.0))
    for t in range(6):  # c_t = f_t * c_{t-1}
        forget = torch.sigmoid(gates(weights, x[t], h).chunk(4, dim=1)[1])
        _, (h, new_c) = recurrence("lstm", x[t : t + 1], (h, c), weights, masks, nonlinearity=nonlinearity)
        torch.testing.assert_close(new_c, forget * c, rtol=1e-13, atol=0)
        c = new_c


@pytest.mark.parametrize("cell", ["gru", "gru_reset_after"])
def test_gru_with_a_zero_update_mask_only_forgets(cell):
    x, (h,), weights = draw(6, 2, INPUT), draw_state(cell, 2), draw_weights(cell)
    masks = Masks(update=Mask(torch.zeros(2, HIDDEN, dtype=torch.bool), 2.0))
    for t in range(6):  # h_t = z_t * h_{t-1}, torch.nn's z
        z = torch.sigmoid(gates(weights, x[t], h).chunk(3, dim=1)[1])
        _, (new_h,) = recurrence(cell, x[t : t + 1], (h,), weights, masks)
        torch.testing.assert_close(new_h, z * h, rtol=1e-13, atol=0)
        h = new_h


@pytest.mark.parametrize("cell", GATED)
def test_a_zero_cell_mask_empties_the_cell(cell):
    x, state, weights = draw(4, 2, INPUT), draw_state(cell, 2), draw_weights(cell)
    masks = Masks(cell=Mask(torch.zeros(2, HIDDEN, dtype=torch.bool), 2.0))
    output, final = recurrence(cell, x, state, weights, masks)
    assert not final[-1].any()  # c_t = 0, of a GRU h_t = 0
    assert not output.any()  # h_t = o_t * f(0)


@pytest.mark.parametrize("cell", STEPS)
def test_with_a_zero_hidden_mask_the_gates_see_x_only(cell):
    x, state, weights = draw(4, 2, INPUT), draw_state(cell, 2), draw_weights(cell)
    masks = Masks(hidden=Mask(torch.zeros(2, HIDDEN, dtype=torch.bool), 2.0))
    output, final = recurrence(cell, x, state, weights, masks)
    assert_equal((output, final), *recurrence(cell, x, state, weights._replace(hh=torch.zeros_like(weights.hh))))
    if cell == "rnn":
        torch.testing.assert_close(output, torch.tanh(x @ weights.ih.T + weights.bias_ih + weights.bias_hh))


@pytest.mark.parametrize("cell", STEPS)
def test_masks_of_ones_are_no_dropout(cell):
    x, state, weights = draw(4, 2, INPUT), draw_state(cell, 2), draw_weights(cell)
    for shape in ((2, HIDDEN), (4, 2, HIDDEN)):
        ones = Mask(torch.ones(shape, dtype=torch.bool))
        output, final = recurrence(cell, x, state, weights, Masks(ones, ones, ones))
        expected_output, expected_final = recurrence(cell, x, state, weights)
        assert torch.equal(output, expected_output)
        assert all(torch.equal(a, b) for a, b in zip(final, expected_final, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_padding_leaks_neither_forwards_nor_backwards(cell, reverse):
    lengths = torch.tensor([2, 4, 3])
    state, weights = draw_state(cell, 3), draw_weights(cell)
    masks = draw_masks(dict.fromkeys(KINDS[cell], "step"), 7, 3)
    x = draw(7, 3, INPUT)
    padding = torch.arange(7).unsqueeze(1) >= lengths
    results = []
    for time, filling in ((4, 0.0), (4, 1e6), (7, 0.0), (7, -1e6)):
        leaves = [t.clone().requires_grad_() for t in (x[:time], *state, *weights)]
        filled = leaves[0].masked_fill(padding[:time].unsqueeze(2), filling)
        these = Masks(*(m if m.keep is None else Mask(m.keep[:time], m.scale) for m in masks))
        output, final = recurrence(
            cell, filled, tuple(leaves[1:-4]), Weights(*leaves[-4:]), these, lengths=lengths, reverse=reverse
        )
        assert not output[padding[:time]].any()
        (output.sin().sum() + sum(s.cos().sum() for s in final)).backward()
        gradients = [leaf.grad for leaf in leaves]
        assert not gradients[0][padding[:time]].any()
        results.append([output[:4], *final, gradients[0][:4], *gradients[1:]])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


def combinations():
    for cell, nonlinearity in product(STEPS, NONLINEARITIES):
        for samplings in product((None, "step", "sequence"), repeat=len(KINDS[cell])):
            by_kind = dict(zip(KINDS[cell], samplings, strict=True))
            names = [f"{kind}_{s}" for kind, s in by_kind.items() if s] or ["none"]
            yield pytest.param(cell, nonlinearity, by_kind, id="-".join([cell, nonlinearity, *names]))


def differentiable(cell, nonlinearity, samplings, **options):
    """The recurrence as a function of its tensors, and small ones to call it with."""
    time, batch, input, hidden = 2, 2, 2, 2
    masks = draw_masks(samplings, time, batch, hidden)
    state = draw_state(cell, batch, hidden)

    def function(x, *rest):
        output, final = recurrence(
            cell, x, rest[: len(state)], Weights(*rest[len(state) :]), masks, nonlinearity=nonlinearity, **options
        )
        return output, *final

    tensors = (draw(time, batch, input), *state, *draw_weights(cell, input, hidden))
    return function, [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize(("cell", "nonlinearity", "samplings"), list(combinations()))
def test_gradients(cell, nonlinearity, samplings):
    assert gradcheck(*differentiable(cell, nonlinearity, samplings), fast_mode=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_gradients_of_sequences_of_unequal_length(cell, reverse):
    lengths = torch.tensor([1, 2])
    arguments = differentiable(cell, "tanh", dict.fromkeys(KINDS[cell], "step"), lengths=lengths, reverse=reverse)
    assert gradcheck(*arguments)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("cell", STEPS)
def test_second_gradients(cell, nonlinearity):
    assert gradgradcheck(*differentiable(cell, nonlinearity, dict.fromkeys(KINDS[cell], "step")), fast_mode=True)
