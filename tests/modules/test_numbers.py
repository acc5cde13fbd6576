"""What finite numbers do: rates of 0 and near 1, and the gradients of long sequences."""

import pytest
import torch

from rnndrop_plugin.modules import GRU, LSTM, RNN
from rnndrop_plugin.ops import Mask, Masks
from tests.conftest import needs_library

CELLS = {
    "lstm": (LSTM, {}, ("update", "hidden", "cell")),
    "relu-lstm": (LSTM, {"nonlinearity": "relu"}, ("update", "hidden", "cell")),
    "gru": (GRU, {}, ("update", "hidden", "cell")),
    "gru-reset_after": (GRU, {"reset_after": True}, ("update", "hidden", "cell")),
    "rnn": (RNN, {}, ("hidden",)),
}
COMPILED = pytest.param("cpu", marks=needs_library)
CASES = [pytest.param(name, kind, id=f"{name}-{kind}") for name, (_, _, kinds) in CELLS.items() for kind in kinds]


def make(name, input_size, hidden_size, **options):
    module, own, _ = CELLS[name]
    return module(input_size, hidden_size, **own, **options)


def run(module, x, masks=None):
    """Output, final state and, by name, the gradients of a loss that reads them all."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    output, state = module(x, masks=masks)
    results = {"output": output, **dict(zip(("h", "c"), state if isinstance(state, tuple) else (state,), strict=False))}
    sum((r.float() * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in results.values()).backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()} | {"x": x.grad}
    return results, gradients


@pytest.mark.parametrize("backend", ["auto", "reference", "torch", COMPILED, "vendor"])
@pytest.mark.parametrize("name", CELLS)
def test_rates_of_zero_are_no_dropout(name, backend):
    """Bit for bit, and without drawing a number, so that a run with p = 0 is the run without the option."""
    module, own, kinds = CELLS[name]
    if backend == "vendor" and name in ("gru", "relu-lstm"):
        pytest.skip("torch has no such kernel")
    plain = module(3, 5, 2, bidirectional=True, backend=backend, **own)
    x = torch.randn(6, 16, 3)  # a batch for which auto takes the compiled recurrence
    for sampling in ("step", "sequence"):
        for scaling in ("inverted", "expected"):
            options = {"sampling": sampling, "scaling": scaling, **{f"{kind}_dropout": 0.0 for kind in kinds}}
            dropped = module(3, 5, 2, bidirectional=True, backend=backend, **own, **options)
            dropped.load_state_dict(plain.state_dict())
            for training in (True, False):
                expected = run(plain.train(training), x)
                before = torch.get_rng_state()
                found = run(dropped.train(training), x)
                assert torch.equal(torch.get_rng_state(), before)
                for found_part, expected_part in zip(found, expected, strict=True):
                    assert found_part.keys() == expected_part.keys()
                    assert all(torch.equal(found_part[key], value) for key, value in expected_part.items())


@pytest.mark.parametrize("scaling", ["inverted", "expected"])
@pytest.mark.parametrize("rate", [0.999, 1 - 1e-6])
@pytest.mark.parametrize("backend", ["reference", "torch", COMPILED])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rates_near_one(name, kind, backend, rate, scaling):
    """Draws at such a rate keep next to nothing, so one unit of each example is kept at each step by given masks."""
    module = make(name, 3, 20, backend=backend, scaling=scaling, **{f"{kind}_dropout": rate})
    x = torch.randn(20, 4, 3)
    keep = torch.zeros(20, 4, 20, dtype=torch.bool)
    keep[range(20), :, range(20)] = True
    given = [Masks(**{kind: Mask(keep, 1 / (1 - rate) if scaling == "inverted" else 1.0)})]
    for masks in (None, given):
        results, gradients = run(module, x, masks)
        assert all(value.isfinite().all() for value in (results | gradients).values())
    assert all(value.any() for value in results.values())
    assert gradients["weight_ih_l0"].any()
    with torch.no_grad():
        output, _ = module.eval()(x)
    assert output.isfinite().all() and output.any()


@pytest.mark.parametrize(
    ("backend", "sampling"),
    [
        ("reference", "step"),
        *(("torch", sampling) for sampling in ("step", "sequence")),
        *(pytest.param("cpu", sampling, marks=needs_library) for sampling in ("step", "sequence")),
    ],
)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradients_of_a_thousand_steps(name, kind, backend, sampling):
    """From the last step's output alone, back to the first, and from all outputs."""
    # Inverted scaling with one mask for the sequence multiplies a kept cell by 1 / (1 - p) at every step. The GRU's z
    # may come near 1, and then its state grows as (4/3)^t, out of float32's range within 400 steps: so it does with
    # some masks (2 of 8 draws), in the reference, too, and in float64 it can be read off. It is the paper's Eq. 18.
    scaling = "expected" if kind == "cell" else "inverted"
    options = {f"{kind}_dropout": 0.25, "sampling": sampling, "scaling": scaling}
    module = make(name, 4, 24, backend=backend, **options)
    x = torch.randn(1000, 3, 4, requires_grad=True)
    output, _ = module(x)
    for loss in (output[-1].sum(), output.square().sum()):
        gradients = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert gradients[0].abs().amax(dim=(1, 2)).all()  # at every step, each having a loss of its own
