"""The cells beside torch.nn's, and step by step beside our own layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

from rnndrop_plugin.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from rnndrop_plugin.ops import Mask, Masks

INPUT, HIDDEN, BATCH, TIME = 3, 5, 4, 6
TORCHS = {
    "lstm": (LSTMCell, nn.LSTMCell, {}),
    "gru": (GRUCell, nn.GRUCell, {"reset_after": True}),
    "rnn": (RNNCell, nn.RNNCell, {}),
    "relu-rnn": (RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
}
ALL = {"update_dropout": 0.3, "hidden_dropout": 0.2, "cell_dropout": 0.4}
CELLS = {
    "lstm": (LSTMCell, LSTM, ALL),
    "relu-lstm": (LSTMCell, LSTM, ALL | {"nonlinearity": "relu"}),
    "gru": (GRUCell, GRU, ALL),
    "gru-reset_after": (GRUCell, GRU, ALL | {"reset_after": True}),
    "rnn": (RNNCell, RNN, {"hidden_dropout": 0.2}),
}


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def pair(name, **options):
    """A layer and a cell of the same weights."""
    cell, layer, own = CELLS[name]
    cell, layer = cell(INPUT, HIDDEN, **own, **options), layer(INPUT, HIDDEN, **own, **options)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    return cell, layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", TORCHS)
def test_equals_torch_without_dropout(name, bias):
    ours, theirs, options = TORCHS[name]
    theirs = theirs(INPUT, HIDDEN, bias, **{k: v for k, v in options.items() if k == "nonlinearity"})
    ours = ours(INPUT, HIDDEN, bias, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for shape in ((BATCH,), ()):
        x, h, c = torch.randn(*shape, INPUT), torch.randn(*shape, HIDDEN), torch.randn(*shape, HIDDEN)
        for hx in (None, (h, c) if "lstm" in name else h):
            torch.testing.assert_close(ours(x, hx), theirs(x, hx), rtol=0, atol=1e-6)
    assert repr(ours).replace(", reset_after=True", "") == repr(theirs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("scaling", ["inverted", "expected"])
@pytest.mark.parametrize("sampling", ["step", "sequence"])
@pytest.mark.parametrize("name", CELLS)
def test_steps_of_a_cell_are_the_layer(name, sampling, scaling, training):
    cell, layer = pair(name, sampling=sampling, scaling=scaling)
    cell.train(training), layer.train(training)
    x = torch.randn(TIME, BATCH, INPUT)
    masks = cell.draw_masks(TIME, BATCH)
    outputs, state = [], None
    for t in range(TIME):
        state = cell(x[t], state, masks.at(t))
        outputs.append(as_tuple(state)[0])
    expected, final = layer(x, masks=[masks])
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.testing.assert_close([*as_tuple(state)], [s[0] for s in as_tuple(final)])
    gradients = [
        torch.autograd.grad(output.square().sum(), list(module.parameters()))
        for module, output in ((cell, torch.stack(outputs)), (layer, expected))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", CELLS)
def test_masks_are_those_that_the_layer_draws(name):
    cell, layer = pair(name, sampling="sequence", update_sampling="step")
    x = torch.randn(TIME, BATCH, INPUT)
    torch.manual_seed(3)
    masks = cell.draw_masks(TIME, BATCH)
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], layer(x, masks=[masks])[0])


@pytest.mark.parametrize("name", CELLS)
def test_each_call_draws_its_own_masks(name):
    cell, _ = pair(name)
    x, hx = torch.randn(BATCH, INPUT), torch.randn(2, BATCH, HIDDEN).unbind()
    hx = hx if "lstm" in name else hx[0]
    first, second = as_tuple(cell(x, hx))[0], as_tuple(cell(x, hx))[0]
    assert not torch.equal(first, second)
    cell.eval()
    torch.testing.assert_close(cell(x, hx), cell(x, hx, Masks()))


@pytest.mark.parametrize("name", CELLS)
def test_copies_and_state_dicts(name):
    cell, _ = pair(name)
    x = torch.randn(BATCH, INPUT)
    for clone in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        torch.testing.assert_close(clone.eval()(x), cell.eval()(x))
    assert "hidden_dropout=0.2 per step" in repr(cell)


@pytest.mark.parametrize("name", CELLS)
def test_made_without_initialisation(name):
    cell, _ = pair(name)
    blank = nn.utils.skip_init(type(cell), INPUT, HIDDEN, **CELLS[name][2])
    blank.load_state_dict(cell.state_dict())
    x = torch.randn(BATCH, INPUT)
    torch.testing.assert_close(blank.eval()(x), cell.eval()(x), rtol=0, atol=0)
    assert repr(blank) == repr(cell)


def test_one_form_of_the_gru_refuses_the_others_weights():
    paper, torchs = GRUCell(INPUT, HIDDEN), GRUCell(INPUT, HIDDEN, reset_after=True)
    for module, state in ((paper, torchs), (torchs, paper), (paper, nn.GRUCell(INPUT, HIDDEN))):
        with pytest.raises(RuntimeError, match="GRUCell: the state dict is from a GRU of .* form"):
            module.load_state_dict(state.state_dict())


X, H = torch.zeros(2, INPUT), torch.zeros(2, HIDDEN)
BAD_CALLS = {
    "input-3d": (LSTMCell, (X[None],), "input to be 1D or 2D, got 3D"),
    "hx-tensor": (LSTMCell, (X, H), "hx must be a tuple of two tensors, h and c, got Tensor"),
    "gru-hx-tuple": (GRUCell, (X, (H, H)), "hx must be a tensor, got tuple"),
    "masks-list": (GRUCell, (X, H, [Masks()]), "masks must be Masks, those of one step, got list"),
    "masks-of-a-sequence": (
        RNNCell,
        (X, H, Masks(hidden=Mask(torch.ones(7, 2, HIDDEN, dtype=torch.bool)))),
        r"the hidden mask must be \(2, 5\) or \(1, 2, 5\), got \(7, 2, 5\)",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_wrong_calls(case):
    cell, arguments, message = BAD_CALLS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        cell(INPUT, HIDDEN, hidden_dropout=0.5)(*arguments)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"update_dropout must be in \[0, 1\), got 2"):
        LSTMCell(INPUT, HIDDEN, update_dropout=2)
    with pytest.raises(ValueError, match="cell_dropout must be 0: an RNN has no cell"):
        RNNCell(INPUT, HIDDEN, cell_dropout=0.1)
    with pytest.raises(ValueError, match="nonlinearity must be one of tanh, relu, got 'elu'"):
        RNNCell(INPUT, HIDDEN, True, "elu")


def test_the_backend_of_a_cell_is_the_one_that_is_asked_for():
    cell = LSTMCell(INPUT, HIDDEN, hidden_dropout=0.5, backend="vendor")
    with pytest.raises(ValueError, match="'vendor' cannot run this recurrence"):
        cell(torch.randn(2, INPUT))


def test_a_step_alone_cannot_sample_per_sequence():
    cell = GRUCell(INPUT, HIDDEN, hidden_dropout=0.5, hidden_sampling="sequence")
    with pytest.raises(ValueError, match=r"hidden dropout is sampled per sequence.*draw_masks\(time, batch\)"):
        cell(X)
    assert cell.eval()(X).shape == (2, HIDDEN)
