"""Temperature, dynamic evaluation and neural cache beside their formulas."""

import math

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from rnndrop_plugin.data.stream import ContiguousWindows
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.evaluation import (
    TEMPERATURES,
    DynamicBatches,
    Evaluation,
    EvaluationConfig,
    NeuralCache,
    choose_temperature,
    mean_square_gradients,
    trained_parameters,
)
from rnndrop_plugin.models.language_model import RecurrentDecoder, RecurrentLanguageModel
from rnndrop_plugin.modules import LSTM


class OwnOutputLayer(RecurrentDecoder):
    def output_layer(self, features, **kwargs):
        return 2 * super().output_layer(features)


class OwnProbabilities(RecurrentDecoder):
    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return super().get_normalized_probs((net_output[0] * 0.8, net_output[1]), log_probs, sample)


DICTIONARY = Dictionary()
for word in range(8):
    DICTIONARY.add_symbol(f"w{word}")


@pytest.fixture
def model() -> RecurrentLanguageModel:
    cfg = OmegaConf.structured(MODEL_DATACLASS_REGISTRY["lstm_rnndrop"])
    cfg = OmegaConf.merge(cfg, {"decoder_embed_dim": 5, "decoder_hidden_size": 6, "init_range": 1.0})
    return RecurrentLanguageModel(RecurrentDecoder(cfg, DICTIONARY, LSTM(5, 6))).double().eval()


@pytest.fixture
def batches() -> list[dict]:
    """Windows of 7, 7 and 6 steps of a text of 20 tokens."""
    windows = ContiguousWindows(torch.randint(4, len(DICTIONARY), (20,)), DICTIONARY, rows=1, steps=7)
    return [windows[i] for i in range(len(windows))]


def nll(model, batches) -> float:
    """The summed negative log-likelihood, in the order in which fairseq-eval-lm asks for batches and scores them."""
    total = 0.0
    for batch in batches:
        with torch.no_grad():
            logs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True, sample=batch)
        total -= float(logs.gather(2, batch["target"].unsqueeze(2)).sum())
    return total


def evaluation(**options) -> Evaluation:
    return Evaluation(OmegaConf.structured(EvaluationConfig(**options)))


# Temperature


@pytest.mark.parametrize("decoder", [RecurrentDecoder, OwnProbabilities])
def test_the_chosen_temperature_is_the_one_of_least_loss(model, batches, decoder):
    model.decoder.__class__ = decoder
    losses = {}
    for temperature in TEMPERATURES:
        model.evaluation = evaluation(softmax_temperature=str(temperature))
        losses[temperature] = nll(model, batches)
    model.evaluation = None
    assert losses[1.0] == pytest.approx(nll(model, batches), abs=1e-4)  # in float32
    assert choose_temperature(model, batches) == min(losses, key=losses.get)
    assert len(set(losses.values())) == len(TEMPERATURES) == 21


def test_the_temperature_is_chosen_without_dropout_and_padding(model, batches):
    parts = []
    for batch in batches:  # whose targets are the likeliest words
        tokens = batch["net_input"]["src_tokens"]
        padded = torch.nn.functional.pad(tokens, (0, 200), value=DICTIONARY.pad())
        target = torch.nn.functional.pad(model(tokens)[0].argmax(2), (0, 200), value=DICTIONARY.pad())
        parts.append({"net_input": {"src_tokens": padded}, "target": target})
    model.decoder.dropout_out.rate = 0.9
    assert choose_temperature(model.train(), parts) == min(TEMPERATURES)


# Neural cache


def cached(log_probs, outputs, targets, size, theta, weight):
    """The formula, a step and a word at a time; one row."""
    result = []
    for t in range(len(targets)):
        probs = log_probs[t].exp()
        past = range(max(t - size, 0), t)
        if past:
            scores = torch.tensor([math.exp(theta * float(outputs[t] @ outputs[i])) for i in past], dtype=probs.dtype)
            cache = torch.zeros_like(probs)
            for i, score in zip(past, scores / scores.sum(), strict=True):
                cache[targets[i]] += score
            probs = (1 - weight) * probs + weight * cache
        result.append(probs.log())
    return torch.stack(result)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("windows", [[12], [5, 1, 6]])
def test_the_cache_is_that_of_the_formula_however_the_text_is_cut(size, windows):
    log_probs = torch.randn(2, 12, 9, dtype=torch.float64).log_softmax(2)
    outputs, targets = torch.randn(2, 12, 3, dtype=torch.float64), torch.randint(0, 9, (2, 12))
    cache = NeuralCache(size, theta=0.7, weight=0.2)
    parts = zip(*(x.split(windows, dim=1) for x in (log_probs, outputs, targets)), strict=True)
    mixed = torch.cat([cache(*part) for part in parts], dim=1)
    for row in range(2):
        expected = cached(log_probs[row], outputs[row], targets[row], size, theta=0.7, weight=0.2)
        torch.testing.assert_close(mixed[row], expected)
    assert torch.allclose(mixed.exp().sum(2), torch.ones(2, 12, dtype=torch.float64))
    cache.clear()
    assert torch.equal(cache(log_probs, outputs, targets)[:, 0], log_probs[:, 0])


def test_the_cache_keeps_the_outputs_of_the_recurrence_and_begins_anew_with_a_text(model, batches):
    model.evaluation = evaluation(neural_cache_size=50, neural_cache_theta=1.0, neural_cache_weight=0.3)
    text = torch.cat([batch["target"] for batch in batches], dim=1)
    with torch.no_grad():
        source = torch.cat([batch["net_input"]["src_tokens"] for batch in batches], dim=1)
        logits, extra = model(source)
    logs = cached(logits[0].log_softmax(1), extra["outputs"][0], text[0], 50, theta=1.0, weight=0.3)
    expected = -float(logs.gather(1, text.T).sum())
    for _ in range(2):
        assert nll(model, batches) == pytest.approx(expected, rel=1e-5)


# Dynamic evaluation


@pytest.mark.parametrize("rms", [False, True])
def test_the_model_learns_from_each_window_after_it_is_scored(model, batches, rms):
    squares = mean_square_gradients(model, batches) if rms else None
    parameters = trained_parameters(model)
    trained = [p.detach().clone() for p in parameters]

    expected, state = 0.0, None
    for batch in batches:  # as in the paper, with a forward pass that both scores and learns
        x = model.decoder.embed_tokens(batch["net_input"]["src_tokens"]).transpose(0, 1)
        outputs, state = model.decoder.rnn(x, state)
        logits = model.decoder.output_projection(outputs)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, batch["target"][0], reduction="sum")
        expected += float(loss)
        state = tuple(s.detach() for s in state)
        gradients = torch.autograd.grad(loss / len(logits), parameters)
        mean = sum(s.sqrt().sum() for s in squares) / sum(s.numel() for s in squares) if rms else None
        with torch.no_grad():
            for k, (p, g, start) in enumerate(zip(parameters, gradients, trained, strict=True)):
                if rms:
                    root = squares[k].sqrt()
                    p += (0.1 * root / mean).clamp(max=1) * (start - p) - 0.02 * g / (root + 0.01)
                else:
                    p += 0.1 * (start - p) - 0.02 * g
    moved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, start in zip(parameters, trained, strict=True):
            p.copy_(start)
    static = nll(model, batches)

    dynamic = DynamicBatches(model, batches, lr=0.02, decay=0.1, mean_squares=squares, epsilon=0.01)
    assert nll(model, dynamic) == pytest.approx(expected, rel=1e-6)  # in float32
    assert abs(expected - static) > 1e-3
    for p, value in zip(parameters, moved, strict=True):
        torch.testing.assert_close(p.detach(), value)


def test_a_dynamic_evaluation_that_diverges_ends(model, batches):
    dynamic = iter(DynamicBatches(model, batches, lr=0.5, decay=0.0))
    next(dynamic)
    with torch.no_grad():
        model.decoder.rnn.weight_hh_l0[3, 2] = torch.nan
    with pytest.raises(InputError, match="diverges: --dynamic-evaluation-lr 0.5 is too high"):
        next(dynamic)


@pytest.mark.parametrize("decoder", [RecurrentDecoder, OwnOutputLayer, OwnProbabilities])
def test_squares_are_means_over_the_batches(model, batches, decoder):
    model.decoder.__class__ = decoder
    squares = mean_square_gradients(model, batches)
    gradients = []
    for batch in batches:
        model.zero_grad()
        log_probs = model.decoder.get_normalized_probs(model(**batch["net_input"]), log_probs=True)  # in float32
        torch.nn.functional.nll_loss(log_probs[0], batch["target"][0]).backward()
        gradients.append([p.grad.clone() for p in trained_parameters(model)])
    for square, values in zip(squares, zip(*gradients, strict=True), strict=True):
        torch.testing.assert_close(square, torch.stack(values).square().mean(0), rtol=1e-4, atol=1e-8)


def test_squares_are_those_of_the_trained_parameters_without_dropout(model, batches):
    expected = mean_square_gradients(model, batches)
    model.decoder.dropout_out.rate = 0.9
    frozen = model.decoder.rnn.bias_hh_l0.requires_grad_(False)
    names = [name for name, parameter in model.named_parameters() if parameter is not frozen]
    squares = dict(zip(names, mean_square_gradients(model.train(), batches), strict=True))
    all_names = [name for name, _ in model.named_parameters()]
    for name, square in zip(all_names, expected, strict=True):
        assert name not in squares and name.endswith("bias_hh_l0") or torch.equal(squares[name], square)


def test_padding_is_no_token_of_the_gradients_mean(model):
    windows = ContiguousWindows(torch.randint(4, len(DICTIONARY), (7,)), DICTIONARY, rows=2, steps=4)
    (square,) = mean_square_gradients(model, [windows[0]])[-1:]
    model.zero_grad()
    log_probs = model.decoder.get_normalized_probs(model(**windows[0]["net_input"]), log_probs=True)
    target = windows[0]["target"].flatten()
    torch.nn.functional.nll_loss(log_probs.flatten(0, 1), target, ignore_index=DICTIONARY.pad()).backward()
    torch.testing.assert_close(square, trained_parameters(model)[-1].grad.square(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("theta", [3e38, -3e38])
def test_the_most_extreme_cache_has_one_word(theta):
    outputs, targets = torch.randn(1, 12, 3), torch.arange(12).unsqueeze(0)
    mixed = NeuralCache(12, theta, weight=0.5)(torch.full((1, 12, 12), 1 / 12).log(), outputs, targets)
    similar = math.copysign(1, theta) * (outputs @ outputs.transpose(1, 2))[0]
    for t in range(1, 12):
        expected = torch.full((12,), 1 / 24)
        expected[similar[t, :t].argmax()] += 0.5
        torch.testing.assert_close(mixed[0, t].exp(), expected)


def test_the_lowest_temperature_takes_the_greatest_logit(model, batches):
    (batch, *_) = batches
    logits, extra = model.eval()(**batch["net_input"])
    log_probs = evaluation(softmax_temperature="1e-30").log_probs(model.decoder, logits, extra, batch)
    assert torch.equal(log_probs.exp(), torch.nn.functional.one_hot(logits.argmax(2), logits.size(2)).float())


# Flags


def test_the_evaluation_is_named_with_its_numbers():
    assert str(evaluation()) == "static evaluation"
    everything = evaluation(
        softmax_temperature="1.1", dynamic_evaluation="rms", dynamic_evaluation_lr=0.01, neural_cache_size=500
    )
    assert str(everything) == (
        "dynamic evaluation (rms, lr 0.01, decay 0, epsilon 0.0001), neural cache (size 500, theta 0.3, weight 0.1), "
        "softmax temperature 1.1"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax_temperature": "0"}, "--softmax-temperature must be at least 1e-30, or `valid`, got 0"),
        ({"softmax_temperature": "1e-40"}, "--softmax-temperature must be at least 1e-30, or `valid`, got 1e-40"),
        ({"softmax_temperature": "test"}, "--softmax-temperature must be at least 1e-30, or `valid`, got test"),
        ({"dynamic_evaluation": "sgd"}, "--dynamic-evaluation sgd needs a --dynamic-evaluation-lr above 0, got None"),
        ({"dynamic_evaluation_epsilon": 0.0}, "--dynamic-evaluation-epsilon must be above 0, got 0.0"),
        ({"dynamic_evaluation_decay": 1.5}, r"--dynamic-evaluation-decay must be in \[0, 1\], got 1.5"),
        ({"neural_cache_size": -1}, "--neural-cache-size must not be negative, got -1"),
        ({"neural_cache_weight": 1.0}, r"--neural-cache-weight must be in \[0, 1\), got 1.0"),
        ({"neural_cache_theta": math.inf}, "--neural-cache-theta must be a finite float32, got inf"),
        ({"neural_cache_theta": 1e300}, "--neural-cache-theta must be a finite float32, got 1e.300"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        evaluation(**options)
