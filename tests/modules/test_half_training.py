"""Training in bfloat16 and float16 beside float32, under the same masks: finite, falling, and the same losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from fairseq import optim
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf
from torch import nn

from rnndrop_plugin.modules import GRU, LSTM, RNN

SYMBOLS = 50
HALF = [torch.bfloat16, torch.float16]


def markov_chain(steps: int, rows: int) -> torch.Tensor:
    """``(steps, rows)`` symbols, each drawn by the one before it; their entropy is 1.9 nats, the uniform's 3.9."""
    generator = torch.Generator().manual_seed(3)
    chance = torch.rand(SYMBOLS, SYMBOLS, generator=generator) ** 20
    symbols = torch.zeros(steps, rows, dtype=torch.long)
    for t in range(1, steps):
        symbols[t] = torch.multinomial(chance[symbols[t - 1]], 1, generator=generator).squeeze(1)
    return symbols


class CharacterModel(nn.Module):
    def __init__(self, recurrent: nn.Module):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, recurrent.input_size)
        self.recurrent = recurrent
        self.output = nn.Linear(recurrent.hidden_size, SYMBOLS)

    def forward(self, symbols, state):
        features, state = self.recurrent(self.embed(symbols), state)
        return self.output(features), state


def make_optimizer(model, dtype, rate):
    """fairseq's Adam, for half types inside what its --bf16 and --fp16 wrap it in.

    bfloat16 has 8 significant bits, and an update of less than 1/512 of its weight would be lost. So who trains
    converted modules keeps the weights in float32, updates those and rounds them for each pass: fairseq's optimizer
    does, and in float16 it also scales the loss, whose gradients would underflow otherwise.
    """
    config = OmegaConf.structured(FairseqConfig)
    config.optimizer = FairseqAdamConfig(lr=[rate])
    config.optimizer._name = "adam"
    config.common.bf16 = dtype == torch.bfloat16
    config.common.fp16_no_flatten_grads = True  # flat ones are put on a GPU
    config.distributed_training.distributed_world_size = 1
    parameters = list(model.parameters())
    if dtype == torch.float32:
        return optim.build_optimizer(config.optimizer, parameters)
    return FP16Optimizer.build_optimizer(config, parameters)


def train(model, dtype, symbols, window, rate) -> list[float]:
    """The mean loss of each window, the state being carried from one to the next."""
    model = model.to(dtype)
    optimizer = make_optimizer(model, dtype, rate)
    state, losses = None, []
    for step, start in enumerate(range(0, len(symbols) - window, window)):
        torch.manual_seed(step)  # the same masks in each type
        logits, state = model(symbols[start : start + window], state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        target = symbols[start + 1 : start + window + 1].flatten()
        # As fairseq's trainer does: a sum of float32 log-probabilities, its gradient divided afterwards.
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target, reduction="sum")
        optimizer.zero_grad()
        optimizer.backward(loss)
        assert logits.dtype == dtype and loss.isfinite()
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
        optimizer.multiply_grads(1 / len(target))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        losses.append(loss.item() / len(target))
    return losses


def losses_by_type(make_model, symbols, window, rate) -> dict[torch.dtype, torch.Tensor]:
    """The losses of the same parameters, symbols and masks, trained in each type."""
    losses = {}
    for dtype in (torch.float32, *HALF):
        torch.manual_seed(1)
        losses[dtype] = torch.tensor(train(make_model(), dtype, symbols, window, rate), dtype=torch.float64)
        assert losses[dtype][0] == pytest.approx(math.log(SYMBOLS), abs=0.1)
    assert len({tuple(found.tolist()) for found in losses.values()}) == 3  # each was computed in a type of its own
    return losses


CELLS = {
    "lstm": (LSTM, {"update_dropout": 0.25, "hidden_dropout": 0.25}),
    "gru": (GRU, {"update_dropout": 0.25, "hidden_dropout": 0.25}),
    "gru-reset_after": (GRU, {"update_dropout": 0.25, "hidden_dropout": 0.25, "reset_after": True}),
    "rnn": (RNN, {"hidden_dropout": 0.25}),
}


@pytest.mark.parametrize("name", CELLS)
def test_half_types_learn_as_float32_does(name):
    """A loss is known to eps of itself where what it is computed from is rounded to eps / 2 of itself.

    Measured: differences of at most 0.09 eps in bfloat16 and 0.12 in float16, a final loss of 2.4 to 2.6.
    """
    module, options = CELLS[name]
    symbols = markov_chain(40 * 20 + 1, rows=8)
    losses = losses_by_type(lambda: CharacterModel(module(32, 64, **options)), symbols, 20, 0.01)
    exact = losses.pop(torch.float32)
    assert exact[-5:].mean() < 2.9  # the symbols' entropy is 1.9
    for dtype, found in losses.items():
        torch.testing.assert_close(found, exact, rtol=torch.finfo(dtype).eps, atol=0)


def paper_character_model():
    """Section 4.3's embedding, layer and initialisation."""
    # One row costs the compiled recurrence as much as 16, torch operations less; half types are float32 inside both.
    recurrent = LSTM(256, 1024, update_dropout=0.25, hidden_dropout=0.25, backend="torch")
    model = CharacterModel(recurrent)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.01, 0.01)
    return model


@pytest.mark.slow
def test_500_steps_at_the_character_models_size():
    """Every step finite (:func:`train` looks), and float32's losses within eps over the run.

    A single step may differ by more, since training carries roundings on. Measured, in bfloat16 and float16: 0.24 and
    0.29 eps in the root mean square, 2.2 (step 48) and 1.2 eps at most, 0.11 and 0.10 eps for means of 50 steps.
    """
    losses = losses_by_type(paper_character_model, markov_chain(500 * 100 + 1, rows=1), 100, 0.001)
    exact = losses.pop(torch.float32)
    assert len(exact) == 500
    assert exact[-50:].mean() < 2.4  # from 3.9; the symbols' entropy is 1.9
    for dtype, found in losses.items():
        eps = torch.finfo(dtype).eps
        assert (found / exact - 1).square().mean().sqrt() < eps
        torch.testing.assert_close(found.view(10, 50).mean(1), exact.view(10, 50).mean(1), rtol=eps, atol=0)
