"""What the modules drop, when, and how it is scaled, seen from outside: through outputs that show the masks."""

import math

import pytest
import torch
from torch import nn

from rnndrop_plugin.modules import GRU, LSTM, RNN, layers
from rnndrop_plugin.ops import Mask, Masks

OPEN, CLOSED = 100.0, -100.0  # biases that make a gate 1 and 0
CASES = [
    pytest.param(module, options, kind, id=f"{name}-{kind}")
    for name, module, options, kinds in (
        ("lstm", LSTM, {}, ("update", "hidden", "cell")),
        ("relu-lstm", LSTM, {"nonlinearity": "relu"}, ("update", "hidden", "cell")),
        ("gru", GRU, {}, ("update", "hidden", "cell")),
        ("gru-reset_after", GRU, {"reset_after": True}, ("update", "hidden", "cell")),
        ("rnn", RNN, {}, ("hidden",)),
    )
    for kind in kinds
]


def visible(rate, sampling="step", layers=1, bidirectional=False):
    """An LSTM whose output is 1 - or 1 / (1 - rate) - where the update is kept and 0 where it is dropped."""
    lstm = LSTM(
        2, 50, layers, bidirectional=bidirectional, nonlinearity="relu", update_dropout=rate, update_sampling=sampling
    )
    for name, p in lstm.named_parameters():
        nn.init.zeros_(p)
        if name.startswith("bias_ih"):
            p.data.copy_(torch.tensor([OPEN, CLOSED, 1.0, OPEN]).repeat_interleave(50))  # i, f, g, o
    return lstm


def kept(lstm, time=20, batch=10):
    return lstm(torch.randn(time, batch, 2))[0] > 0.5  # a closed gate may let pass what is next to nothing


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_rate_per_step(rate):
    keep = kept(visible(rate))
    assert abs(keep.double().mean() - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / keep.numel())
    changes = keep[1:] != keep[:-1]  # between steps, with probability 2 p (1 - p)
    chance = 2 * rate * (1 - rate)
    assert abs(changes.double().mean() - chance) < 6 * math.sqrt(chance * (1 - chance) / changes.numel())


def test_a_sequences_mask_is_constant_over_time_and_differs_between_examples():
    keep = kept(visible(0.5, "sequence"))
    assert torch.equal(keep, keep[:1].expand_as(keep))
    assert 0 < keep[0].double().mean() < 1
    assert not any(torch.equal(keep[0, a], keep[0, b]) for a in range(10) for b in range(a))


def test_kept_updates_are_scaled():
    x = torch.randn(4, 3, 2)
    lstm = visible(0.75)
    assert set(lstm(x)[0].round(decimals=6).unique().tolist()) == {0.0, 4.0}
    lstm.scaling = "expected"
    assert set(lstm(x)[0].round(decimals=6).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("sampling", ["step", "sequence"])
@pytest.mark.parametrize(("module", "options", "kind"), CASES)
def test_seeds_reproduce_masks_and_calls_differ(module, options, kind, sampling):
    module = module(3, 8, 2, bidirectional=True, sampling=sampling, **options, **{f"{kind}_dropout": 0.5})
    x = torch.randn(5, 4, 3)
    torch.manual_seed(11)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(11)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(first, second)


@pytest.fixture
def drawn(monkeypatch):
    """The masks of each layer and direction that a module hands to its recurrence."""
    masks = []
    original = layers.recurrence

    def spy(cell, input, state, weights, mask, **options):
        masks.append(mask)
        return original(cell, input, state, weights, mask, **options)

    monkeypatch.setattr(layers, "recurrence", spy)
    return masks


def test_layers_directions_and_kinds_have_masks_of_their_own(drawn):
    rates = {"update": 0.5, "hidden": 0.4, "cell": 0.3}
    module = LSTM(3, 30, 2, bidirectional=True, **{f"{kind}_dropout": rate for kind, rate in rates.items()})
    module(torch.randn(10, 20, 3))
    assert len(drawn) == 4
    keeps = [mask.keep for masks in drawn for mask in masks]
    assert all(keep.shape == (10, 20, 30) for keep in keeps)
    for masks in drawn:
        for kind, mask in masks._asdict().items():
            assert abs((~mask.keep).double().mean() - rates[kind]) < 4 * math.sqrt(0.25 / 6000)
            assert mask.scale == pytest.approx(1 / (1 - rates[kind]))
    for i, a in enumerate(keeps):
        for b in keeps[:i]:
            correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]
            assert abs(correlation) < 4 / math.sqrt(a.numel())


def test_kinds_are_sampled_on_their_own(drawn):
    rates = {"update_dropout": 0.2, "hidden_dropout": 0.2, "cell_dropout": 0.2}
    LSTM(3, 5, sampling="sequence", update_sampling="step", **rates)(torch.randn(4, 2, 3))
    assert [tuple(mask.keep.shape) for mask in drawn[0]] == [(4, 2, 5), (2, 5), (2, 5)]
    LSTM(3, 5, hidden_sampling="sequence", cell_sampling="sequence", **rates)(torch.randn(4, 2, 3))
    assert [tuple(mask.keep.shape) for mask in drawn[1]] == [(4, 2, 5), (2, 5), (2, 5)]
    LSTM(3, 5, hidden_sampling="sequence", **rates)(torch.randn(4, 2, 3))
    assert [tuple(mask.keep.shape) for mask in drawn[2]] == [(4, 2, 5), (2, 5), (4, 2, 5)]


@pytest.mark.parametrize(("module", "options", "kind"), CASES)
def test_in_evaluation_inverted_scaling_is_no_dropout(module, options, kind):
    dropped = module(3, 8, 2, dropout=0.3, **options, **{f"{kind}_dropout": 0.5}).eval()
    plain = module(3, 8, 2, **options).eval()
    plain.load_state_dict(dropped.state_dict())
    x, before = torch.randn(5, 4, 3), torch.get_rng_state()
    assert torch.equal(dropped(x)[0], plain(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("module", "options", "kind"), CASES)
def test_in_evaluation_expected_scaling_is_the_factor_1_minus_p(module, options, kind):
    dropped = module(3, 8, scaling="expected", **options, **{f"{kind}_dropout": 0.3}).eval()
    plain = module(3, 8, **options)
    plain.load_state_dict(dropped.state_dict())
    x, before = torch.randn(5, 4, 3), torch.get_rng_state()
    output = dropped(x)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(output, plain(x, masks=[Masks(**{kind: Mask(None, 0.7)})])[0])
    assert (output - plain(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("scaling", ["inverted", "expected"])
@pytest.mark.parametrize(("module", "options", "kind"), CASES)
def test_training_is_the_masks_that_were_drawn(module, options, kind, scaling, drawn):
    module = module(3, 8, scaling=scaling, **options, **{f"{kind}_dropout": 0.3})
    x = torch.randn(5, 4, 3)
    output = module(x)[0]
    assert getattr(drawn[0], kind).keep is not None
    assert all(mask.keep is None and mask.scale == 1 for other, mask in drawn[0]._asdict().items() if other != kind)
    torch.testing.assert_close(module(x, masks=list(drawn))[0], output)
    torch.testing.assert_close(module.eval()(x, masks=drawn[:1])[0], output)  # given masks serve in evaluation, too


@pytest.mark.parametrize(("module", "options", "kind"), CASES)
def test_nearly_everything_dropped_stays_finite(module, options, kind):
    module = module(3, 8, 2, **options, **{f"{kind}_dropout": 0.999})
    for _ in range(3):
        output = module(torch.randn(20, 4, 3))[0]
        output.sum().backward()
        assert output.isfinite().all()
        assert all(p.grad.isfinite().all() for p in module.parameters())


# The argument of section 3.2 with every gate 1 and a candidate of 1, p being here the rate of keeping:
# cell dropout loses (Eq. 17) or blows up (Eq. 18) the memory, update dropout does neither (Eq. 19).


def memory(scaling, training, masks=None, **rates):
    """The cell, from 1, over five steps of an LSTM with all gates 1 and g = 1."""
    lstm = LSTM(1, 1, nonlinearity="relu", scaling=scaling, dtype=torch.float64, **rates).train(training)
    for p in lstm.parameters():
        nn.init.zeros_(p)
    lstm.bias_ih_l0.data.copy_(torch.tensor([OPEN, OPEN, 1.0, OPEN]))
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    return lstm(torch.zeros(5, 1, 1, dtype=torch.float64), (one, one), masks)[0].flatten()


def test_cell_dropout_loses_memory_in_evaluation_under_expected_scaling():
    p = 0.75
    c, cells = 1.0, []
    for _ in range(5):
        c = p * (c + 1)  # Eq. 14 of arXiv v2
        cells.append(c)
    torch.testing.assert_close(memory("expected", False, cell_dropout=0.25), torch.tensor(cells, dtype=torch.float64))
    after = p**5 + sum(p**k for k in range(1, 6))  # Eq. 17
    assert cells[-1] == pytest.approx(after)


def test_cell_dropout_blows_memory_up_in_training_under_inverted_scaling():
    kept = [Masks(cell=Mask(torch.ones(1, 1, dtype=torch.bool), 1 / 0.75))]
    after = 0.75**-5 + sum(0.75**-k for k in range(1, 6))
    assert memory("inverted", True, kept, cell_dropout=0.25)[-1].item() == pytest.approx(after)
    exact = torch.arange(2, 7, dtype=torch.float64)
    torch.testing.assert_close(memory("inverted", False, cell_dropout=0.25), exact)


def test_update_dropout_scales_what_is_added_and_not_the_memory():
    steps = torch.arange(1, 6, dtype=torch.float64)
    torch.testing.assert_close(memory("expected", False, update_dropout=0.25), 1 + 0.75 * steps)  # Eq. 19
    torch.testing.assert_close(memory("inverted", False, update_dropout=0.25), 1 + steps)


@pytest.mark.parametrize("scaling", ["inverted", "expected"])
def test_cell_dropout_is_what_training_on_average_shows(scaling):
    """In training each step keeps the unit or empties it; a kept one is scaled by 1 / (1-p) or not."""
    factor = 1 / 0.75 if scaling == "inverted" else 1.0
    for _ in range(20):
        before = 1.0
        for c in memory(scaling, True, cell_dropout=0.25).tolist():
            assert c == 0 or c == pytest.approx(factor * (before + 1))
            before = c


# Dropout between layers: an RNN of two layers, the first of which puts out ones, the second its input.


def two_layers(dropout):
    rnn = RNN(40, 40, 2, dropout=dropout, nonlinearity="relu", hidden_dropout=0.5)
    for name, p in rnn.named_parameters():
        (nn.init.eye_ if name.startswith("weight_ih") else nn.init.zeros_)(p)
    return rnn, torch.ones(25, 10, 40)


@pytest.mark.parametrize("dropout", [0.2, 0.5])
def test_dropout_between_layers(dropout):
    rnn, x = two_layers(dropout)
    output, final = rnn(x)
    assert output.unique().tolist() == pytest.approx([0, 1 / (1 - dropout)])
    dropped = (output == 0).double()
    assert abs(dropped.mean() - dropout) < 4 * math.sqrt(dropout * (1 - dropout) / dropped.numel())
    assert torch.corrcoef(torch.stack([dropped[1:].flatten(), dropped[:-1].flatten()]))[0, 1].abs() < 0.04
    assert (final[0] == 1).all()  # the first layer's own state is not dropped
    assert torch.equal(rnn.eval()(x)[0], x)


def test_dropout_between_layers_may_be_total():
    rnn, x = two_layers(1.0)
    assert not rnn(x)[0].any()
