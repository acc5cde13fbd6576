from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from rnndrop_plugin import modules
from rnndrop_plugin.modules.dropout import dropout

LAYERS = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_sequence_has_one_mask_for_all_its_steps(batch_first):
    x = torch.ones(4, 30, 500) if batch_first else torch.ones(30, 4, 500)
    y = dropout(x, 0.25, training=True, sampling="sequence", batch_first=batch_first)
    y = y if batch_first else y.transpose(0, 1)
    assert torch.equal(y, y[:, :1].expand_as(y))
    masks = y[:, 0]
    assert set(masks.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (masks == 0).float().mean() == pytest.approx(0.25, abs=0.04)
    assert not torch.equal(masks[0], masks[1])


def test_dropout_of_steps_is_torchs():
    x = torch.randn(3, 5, 7)
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(modules.Dropout(0.5)(x), expected)


@pytest.mark.parametrize("module", [modules.Dropout(0.5, "sequence"), modules.Dropout(0.0, "sequence").train()])
def test_in_evaluation_and_at_rate_zero_nothing_is_dropped(module):
    x = torch.randn(3, 5, 7)
    module.train(module.rate == 0)
    assert module(x) is x


def test_a_word_is_dropped_wherever_it_stands_in_its_sequence():
    words = torch.randint(0, 50, (40, 60))
    y = modules.EmbeddingDropout(0.3, vocabulary=50)(torch.ones(40, 60, 3), words)
    kept = torch.tensor(1 / 0.7).item()
    dropped = torch.zeros(40, 50, dtype=torch.bool)
    for row in range(40):
        for word in range(50):
            values = y[row][words[row] == word].unique()
            assert values.numel() <= 1 and values.tolist() in ([], [0.0], [kept])
            dropped[row, word] = values.tolist() == [0.0]
    seen = torch.zeros(40, 50).scatter(1, words, 1.0).bool()
    assert dropped.sum() / seen.sum() == pytest.approx(0.3, abs=0.05)
    assert not torch.equal(dropped[0] & seen[1], dropped[1] & seen[0])


def test_embeddings_of_words_are_whole_in_evaluation():
    embedded = torch.randn(2, 5, 3)
    assert modules.EmbeddingDropout(0.5, 10).eval()(embedded, torch.zeros(2, 5, dtype=torch.long)) is embedded


@pytest.mark.parametrize("build", [modules.Dropout, lambda rate: modules.EmbeddingDropout(rate, 10)])
def test_a_rate_of_one_is_refused(build):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.0"):
        build(1.0)


def test_without_steps_each_sequence_has_a_mask():
    y = modules.Dropout(0.25, "sequence")(torch.ones(4, 500))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()} and not torch.equal(y[0], y[1])


@pytest.mark.parametrize("shape", [(4,), (4, 4, 6, 6)])
def test_one_mask_a_sequence_needs_sequences(shape):
    with pytest.raises(ValueError, match=r"needs \(batch, time, features\) or \(batch, features\), got"):
        modules.Dropout(0.5, "sequence")(torch.ones(shape))


def test_an_unknown_sampling_is_refused():
    for build in (lambda: modules.Dropout(0.5, "word"), lambda: modules.LSTM(2, 2, dropout_sampling="word")):
        with pytest.raises(ValueError, match="sampling must be one of step, sequence, got 'word'"):
            build()


# Between the layers


def test_between_layers_a_sequence_has_one_mask_for_all_its_steps():
    lstm = modules.LSTM(3, 40, num_layers=2, dropout=0.5, dropout_sampling="sequence")
    with torch.no_grad():  # the second layer's candidate is tanh of its inputs, and its gates are 1/2
        lstm.weight_ih_l1.zero_()
        lstm.weight_hh_l1.zero_()
        lstm.bias_ih_l1.zero_()
        lstm.bias_hh_l1.zero_()
        lstm.weight_ih_l1[80:120] = torch.eye(40)  # g
    x = torch.randn(6, 2, 3)
    output, _ = lstm(x)
    first = modules.LSTM(3, 40)
    first.load_state_dict({k: v for k, v in lstm.state_dict().items() if k.endswith("l0")})
    h, _ = first(x)
    cell = torch.zeros(2, 40)
    dropped = output[0] == 0
    assert dropped.float().mean() == pytest.approx(0.5, abs=0.2)
    for t in range(6):
        g = torch.tanh(h[t] * 2 * ~dropped)
        cell = 0.5 * cell + 0.5 * g
        torch.testing.assert_close(output[t], 0.5 * torch.tanh(cell), rtol=0, atol=1e-5)


def test_between_layers_a_rate_of_one_is_for_steps_alone():
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        modules.LSTM(3, 5, 2, dropout=1.0, dropout_sampling="sequence")


@pytest.mark.parametrize("rate", [np.float16(0.25), Fraction(1, 4)])
def test_a_rate_is_any_real_number(rate):
    x = torch.ones(2, 6, 4)
    rates = {"dropout": rate, "weight_dropout": rate, "update_dropout": rate}
    for build, inputs in (
        (lambda rate: modules.Dropout(rate), (x,)),
        (lambda rate: modules.Dropout(rate, "sequence"), (x,)),
        (lambda rate: modules.EmbeddingDropout(rate, 3), (x, torch.zeros(2, 6, dtype=torch.long))),
    ):
        torch.manual_seed(3)
        expected = build(0.25)(*inputs)
        torch.manual_seed(3)
        assert torch.equal(build(rate)(*inputs), expected) and repr(build(rate)) == repr(build(0.25))
    layers = modules.LSTM(4, 5, 2, **rates), modules.LSTM(4, 5, 2, **dict.fromkeys(rates, 0.25))
    layers[1].load_state_dict(layers[0].state_dict())
    found = []
    for layer in layers:
        torch.manual_seed(3)
        found.append(layer(x)[0])
    assert torch.equal(*found) and repr(layers[0]) == repr(layers[1])


# Weights


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_dropped_weights_are_those_of_a_layer_that_lacks_them(cell, backend):
    """The same output and gradients as with a matrix whose dropped weights are zero; these get no gradient."""
    options = {"hidden_dropout": 0.25, "backend": backend, "bidirectional": True}
    layer = LAYERS[cell](3, 5, weight_dropout=0.5, **options)
    plain = LAYERS[cell](3, 5, **options)
    plain.load_state_dict(layer.state_dict())
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in plain.named_parameters()]
    masks = [layer._draw_masks(7, 2, torch.device("cpu")) for _ in range(2)]
    x = torch.randn(7, 2, 3)
    torch.manual_seed(5)
    output, _ = layer(x, masks=masks)
    output.square().sum().backward()
    torch.manual_seed(5)
    names = ("weight_hh_l0", "weight_hh_l0_reverse")
    kept = {}
    with torch.no_grad():
        for k, name in enumerate(names):
            dropped = layer.draw_weights(k).hh
            kept[name] = dropped != 0
            getattr(plain, name).copy_(dropped)
    expected, _ = plain(x, masks=masks)
    expected.square().sum().backward()
    assert torch.equal(output, expected)
    for name, parameter in layer.named_parameters():
        gradient = getattr(plain, name).grad
        if name in names:
            assert 0.2 < kept[name].float().mean() < 0.8
            gradient = gradient * kept[name] * 2
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("scaling", ["inverted", "expected"])
def test_weights_are_scaled_as_units_are(scaling):
    layer = modules.LSTM(3, 200, weight_dropout=0.25, scaling=scaling)
    weight = layer.weight_hh_l0
    ratio = (layer.draw_weights(0).hh / weight).detach()
    assert (ratio == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    factor = 1 / 0.75 if scaling == "inverted" else 1.0
    torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], factor))
    layer.eval()
    expected = weight if scaling == "inverted" else weight * 0.75
    assert torch.equal(layer.draw_weights(0).hh, expected)
    plain = torch.nn.LSTM(3, 200)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.weight_hh_l0.copy_(expected)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(layer(x)[0], plain(x)[0])


def test_weights_are_dropped_in_packed_sequences_and_in_vendors_kernels():
    layer = modules.LSTM(3, 4, weight_dropout=0.5, backend="vendor")
    sequences = [torch.randn(length, 3) for length in (5, 3)]
    torch.manual_seed(1)
    packed, _ = layer(pack_sequence(sequences))
    torch.manual_seed(1)
    padded, _ = layer(torch.nn.utils.rnn.pad_sequence(sequences))
    output, _ = pad_packed_sequence(packed)
    torch.testing.assert_close(output[:3], padded[:3])
    undropped, _ = pad_packed_sequence(layer.eval()(pack_sequence(sequences))[0])
    assert not torch.allclose(output, undropped)


def test_a_weight_dropout_of_one_is_refused():
    with pytest.raises(ValueError, match=r"weight_dropout must be in \[0, 1\), got 1.0"):
        modules.GRU(2, 2, weight_dropout=1.0)
