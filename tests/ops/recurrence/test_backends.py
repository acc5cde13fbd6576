"""Every backend computes what the reference computes: outputs, final states and all gradients."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rnndrop_plugin.ops import (
    NO_MASKS,
    Mask,
    Masks,
    State,
    Weights,
    availability,
    c_library,
    choose_backend,
    draw_mask,
    recurrence,
)
from rnndrop_plugin.ops.recurrence import torch_nn
from rnndrop_plugin.ops.recurrence.reference import GATES
from tests.conftest import needs_library

BACKENDS = [
    "torch",
    pytest.param("cpu", marks=needs_library),
]
ALL_KINDS = ("update", "hidden", "cell")
KINDS = [(), ("update",), ("hidden",), ("cell",), ALL_KINDS]


class Problem(NamedTuple):
    """The arguments of a recurrence."""

    cell: str
    input: Tensor
    state: State
    weights: Weights
    masks: Masks

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Problem":
        def leaf(x):
            return x if x is None else x.detach().to(device, dtype).requires_grad_()

        return self._replace(
            input=leaf(self.input),
            state=tuple(leaf(s) for s in self.state),
            weights=Weights(*(leaf(w) for w in self.weights)),
            masks=Masks(*(m if m.keep is None else Mask(m.keep.to(device), m.scale) for m in self.masks)),
        )

    def leaves(self) -> list[Tensor]:
        return [x for x in (self.input, *self.state, *self.weights) if x is not None]


def make(
    cell: str,
    size: tuple[int, int, int, int],
    kinds: tuple[str, ...] = (),
    *,
    sampling: str = "step",
    scaling: str = "inverted",
    training: bool = True,
    rate: float = 0.4,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A random problem of ``size`` (time, batch, input, hidden) with masks of ``kinds``."""
    torch.manual_seed(seed)
    time, batch, features, hidden = size
    rows = GATES[cell] * hidden

    def leaf(*shape, scale=1.0):
        return (torch.randn(*shape, dtype=dtype) * scale).requires_grad_()

    biases = (leaf(rows, scale=0.3), leaf(rows, scale=0.3)) if bias else (None, None)
    masks = {
        kind: draw_mask(rate, time, batch, hidden, sampling=sampling, scaling=scaling, training=training)
        for kind in kinds
        if cell != "rnn" or kind == "hidden"  # an RNN has nothing else to drop
    }
    return Problem(
        cell,
        leaf(time, batch, features),
        tuple(leaf(batch, hidden) for _ in range(2 if cell == "lstm" else 1)),
        Weights(leaf(rows, features, scale=0.5 * features**-0.5), leaf(rows, hidden, scale=hidden**-0.5), *biases),
        Masks(**masks),
    )


def results(problem: Problem, backend: str, **options) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs with final state, and gradients of a loss that weighs each of them differently."""
    output, state = recurrence(*problem, backend=backend, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in (output, *state)
    )
    return [output, *state], list(torch.autograd.grad(loss, problem.leaves()))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    assert len(found) == len(expected)
    worst = 0.0
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        difference = (x.detach().cpu().double() - y.detach().double()).abs().max()
        worst = max(worst, float(difference / y.detach().double().abs().max().clamp(min=1e-30)))
    return worst


def check(problem: Problem, backend: str, forward: float, backward: float, **options) -> None:
    """Compare with the reference in float64."""
    outputs, gradients = results(problem, backend, **options)
    expected = results(problem.to(torch.float64), "reference", **options)
    assert all(x.dtype == problem.input.dtype for x in outputs)
    assert error(outputs, expected[0]) < forward
    assert error(gradients, expected[1]) < backward


def supports(backend: str, problem: Problem, **options) -> bool:
    try:
        choose_backend(problem.cell, problem.masks, dtype=problem.input.dtype, backend=backend, **options)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", [*BACKENDS, "vendor"])
def test_agrees_in_every_variant(backend, cell, kinds):
    variants = itertools.product(
        ("tanh", "relu"), ("step", "sequence"), ("inverted", "expected"), (True, False), (True, False), (True, False)
    )
    ran = 0
    for nonlinearity, sampling, scaling, bias, reverse, padded in variants:
        problem = make(cell, (5, 3, 4, 7), kinds, sampling=sampling, scaling=scaling, bias=bias)
        if not supports(backend, problem, nonlinearity=nonlinearity):
            continue
        lengths = torch.tensor([2, 5, 0]) if padded else None
        check(problem, backend, 1e-12, 1e-12, nonlinearity=nonlinearity, reverse=reverse, lengths=lengths)
        ran += 1
    if not ran:
        pytest.skip(f"the {backend} backend has no {cell} with {'+'.join(kinds) or 'nothing'} dropped")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", [*BACKENDS, "vendor", "reference"])
def test_what_stands_past_the_end_does_not_matter(backend, cell, reverse):
    problem, lengths = make(cell, (5, 3, 4, 7)), torch.tensor([2, 5, 0])
    if not supports(backend, problem):
        pytest.skip(f"the {backend} backend has no {cell}")
    past = torch.arange(5).unsqueeze(1) >= lengths
    other = problem._replace(input=problem.input.masked_fill(past.unsqueeze(2), torch.nan))
    (output, state), (expected, final) = (
        recurrence(*p, backend=b, lengths=lengths, reverse=reverse)
        for p, b in ((other, backend), (problem, "reference"))
    )
    assert not output[past].any() and error([output, *state], [expected, *final]) < 1e-12


@pytest.mark.parametrize("size", [(1, 1, 3, 7), (5, 3, 4, 1), (4, 31, 5, 7), (3, 33, 9, 250), (7, 1, 1, 16)])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes_in_float32(backend, cell, size):
    for kinds in KINDS:
        check(make(cell, size, kinds, dtype=torch.float32), backend, 1e-5, 1e-4)
        check(
            make(cell, size, kinds, sampling="sequence", dtype=torch.float32, bias=False),
            backend,
            1e-5,
            1e-4,
            nonlinearity="relu",
        )


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_sequence_in_float32(backend, cell):
    check(make(cell, (120, 5, 40, 64), KINDS[-1], rate=0.1, dtype=torch.float32), backend, 1e-5, 1e-4)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_with_expected_scaling(backend, cell):
    check(make(cell, (5, 3, 4, 7), KINDS[-1], scaling="expected", training=False), backend, 1e-12, 1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, "vendor"])
def test_without_gradient_saves_nothing_and_agrees(backend):
    problem = make("lstm", (5, 3, 4, 7), ("update",), scaling="expected")
    with torch.no_grad():
        output, state = recurrence(*problem, backend=backend)
        expected, expected_state = recurrence(*problem, backend="reference")
    assert not output.requires_grad
    assert error([output, *state], [expected, *expected_state]) < 1e-12


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_state_may_be_overwritten(backend, cell):
    """As a state that is carried is: what the backward pass reads is kept apart."""
    problem = make(cell, (4, 3, 2, 5), ("hidden",))
    output, state = recurrence(*problem, backend=backend)
    (expected,) = torch.autograd.grad(output.square().sum(), problem.input, retain_graph=True)
    with torch.no_grad():
        for s in state:
            s.fill_(9)
    (found,) = torch.autograd.grad(output.square().sum(), problem.input)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_tensors(backend, cell):
    plain = make(cell, (6, 4, 5, 7), KINDS[-1])

    def strided(x):
        wide = torch.stack([x.detach(), torch.full_like(x, torch.nan)], dim=-1)
        return wide[..., 0].requires_grad_()

    def batch_first(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1) if x is not None and x.dim() == 3 else x

    masks = Masks(*(Mask(batch_first(m.keep), m.scale) for m in plain.masks))
    problem = plain._replace(
        input=batch_first(plain.input.detach()).requires_grad_(),
        state=tuple(strided(s) for s in plain.state),
        weights=Weights(*(strided(w) for w in plain.weights)),
        masks=masks,
    )
    assert not any(x.is_contiguous() for x in problem.leaves())
    assert error(sum(results(problem, backend), []), sum(results(plain, "reference"), [])) < 1e-12


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_some_gradients_wanted(backend, cell):
    problem = make(cell, (4, 3, 5, 7), ("hidden",))
    wanted = [problem.weights.hh, problem.state[0]]

    def gradients(backend):
        leaves = [x.detach().requires_grad_(any(x is w for w in wanted)) for x in problem.leaves()]
        states = len(problem.state)
        twin = problem._replace(
            input=leaves[0], state=tuple(leaves[1 : 1 + states]), weights=Weights(*leaves[1 + states :])
        )
        output, _ = recurrence(*twin, backend=backend)  # and no gradient of the final state
        return list(torch.autograd.grad(output.square().sum(), [x for x in leaves if x.requires_grad]))

    assert error(gradients(backend), gradients("reference")) < 1e-12


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", [*BACKENDS, "vendor"])
def test_gradcheck_once_and_twice(backend, cell):
    problem = make(cell, (3, 2, 2, 3), KINDS[-1] if backend != "vendor" else ())
    if not supports(backend, problem):
        pytest.skip(f"the {backend} backend has no {cell}")

    def run(*leaves):
        states = len(problem.state)
        state, weights = leaves[1 : 1 + states], Weights(*leaves[1 + states :])
        lengths = torch.tensor([3, 1])
        output, state = recurrence(
            cell, leaves[0], state, weights, problem.masks, lengths=lengths, reverse=True, backend=backend
        )
        return output, *state

    assert torch.autograd.gradcheck(run, problem.leaves())
    assert torch.autograd.gradgradcheck(run, problem.leaves())


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_backward_with_a_tensor_given_twice(backend):
    problem = make("lstm", (3, 2, 2, 3), ("update",))
    zeros = problem.state[0]

    def penalty(backend):
        output, _ = recurrence("lstm", problem.input, (zeros, zeros), *problem[3:], backend=backend)
        (gradient,) = torch.autograd.grad(output.square().sum(), zeros, create_graph=True)
        return [gradient, *torch.autograd.grad(gradient.square().sum(), (zeros, problem.weights.hh))]

    assert error(penalty(backend), penalty("reference")) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_computed_in_float32(backend, cell, dtype):
    problem = make(cell, (20, 3, 5, 16), ("hidden",), dtype=torch.float32).to(dtype)
    rounding = torch.finfo(dtype).eps
    check(problem, backend, rounding, rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 3, 16, 64), (1, 20, 16, 64), (4, 3, 16, 64)])
@pytest.mark.parametrize("cell", GATES)
def test_half_types_are_computed_in_float32_whatever_auto_chooses(cell, size, dtype):
    half = make(cell, size, ("hidden",), dtype=torch.float32).to(dtype)
    outputs = [recurrence(*problem)[0] for problem in (half, half.to(torch.float32))]
    assert torch.equal(outputs[0], outputs[1].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    problem = make("lstm", (5, 3, 4, 7), ("update",), dtype=torch.float32)
    expected = results(problem, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, gradients = results(problem, backend)
    assert {x.dtype for x in outputs} == {torch.bfloat16}
    assert {x.dtype for x in gradients} == {torch.float32}
    assert error(outputs, expected[0]) < 2**-7
    assert error(gradients, expected[1]) < 2**-6


@pytest.mark.parametrize("backend", ["auto", "cpu", "vendor"])
def test_no_backend_is_chosen_for_what_does_not_exist(backend):
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, gru_reset_after, rnn, got 'LSTM'"):
        choose_backend("LSTM", backend=backend)
    with pytest.raises(ValueError, match="nonlinearity must be one of tanh, relu, got 'gelu'"):
        choose_backend("lstm", nonlinearity="gelu", backend=backend)


@pytest.mark.parametrize("fast", ["triton", "torch"])
def test_choice(monkeypatch, fast):
    """On a GPU with Triton and on one without."""
    monkeypatch.setattr(availability, "obstacle", lambda device, dtype: None if fast == "triton" else "it is not here")
    update = Masks(update=Mask(torch.ones(2, 3, dtype=torch.bool)))
    inverted = Masks(update=Mask(torch.ones(2, 3, dtype=torch.bool), 2.0))
    assert choose_backend("lstm", backend="reference") == "reference"
    assert choose_backend("lstm", update, device="cuda") == ("triton" if fast == "triton" else "vendor")
    assert choose_backend("lstm", device="cuda") == "vendor"
    assert choose_backend("lstm", inverted, device="cuda") == fast
    assert choose_backend("lstm", update, nonlinearity="relu", device="cuda") == fast
    assert choose_backend("gru", device="cuda") == fast
    assert choose_backend("gru_reset_after", device="cuda") == "vendor"
    assert choose_backend("gru_reset_after", update, device="cuda") == fast
    assert choose_backend("rnn", nonlinearity="relu", device="cuda") == "vendor"


def test_the_plan_knows_what_is_faster():
    """What drops nothing is torch.nn's in half types, for a few steps, and in an LSTM's evaluation on oneDNN."""
    compiled = c_library.unavailable() is None
    fast = "cpu" if compiled and c_library.instructions() != "plain" else "vendor"
    assert choose_backend("rnn") == choose_backend("gru_reset_after", time=5) == fast
    assert choose_backend("rnn", Masks(hidden=Mask(None, 0.5))) == choose_backend("lstm", lengths=True) == fast
    assert choose_backend("lstm", training=True, time=2) == choose_backend("lstm", dtype=torch.float64) == fast
    assert choose_backend("lstm") == choose_backend("gru_reset_after", time=4) == "vendor"
    assert choose_backend("lstm", time=4, dtype=torch.float64, training=True) == "vendor"
    assert choose_backend("lstm", dtype=torch.bfloat16, training=True) == "vendor"
    assert choose_backend("gru", batch=32) == ("cpu" if compiled else "torch")
    if compiled:
        assert choose_backend("gru", time=1, batch=4) == "reference"


@pytest.mark.parametrize(
    "cell, masks, nonlinearity, words",
    [
        ("gru", NO_MASKS, "tanh", "the paper's GRU"),
        ("lstm", NO_MASKS, "relu", "no lstm kernel with relu"),
        ("lstm", Masks(cell=Mask(None, 0.5)), "tanh", "no recurrent dropout, except"),
        ("lstm", Masks(update=Mask(None, 0.5)), "tanh", "no recurrent dropout, except"),
        (
            "gru_reset_after",
            Masks(update=Mask(torch.ones(2, 3, dtype=torch.bool))),
            "tanh",
            "no recurrent dropout, except",
        ),
    ],
)
def test_impossible_vendor_request(cell, masks, nonlinearity, words):
    problem = make(cell, (4, 2, 5, 3))._replace(masks=masks)
    with pytest.raises(ValueError, match=words):
        recurrence(*problem, nonlinearity=nonlinearity, backend="vendor")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of auto, .*, got 'cuda'"):
        recurrence(*make("rnn", (4, 2, 5, 3)), backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    "cell, kinds, scaling",
    [*((cell, kinds, "inverted") for cell in GATES for kinds in ((), ALL_KINDS)), ("lstm", ("update",), "expected")],
)
def test_on_a_gpu(cell, kinds, scaling):
    """With whatever backend is chosen there; the kernels' own tests are in triton/test_gpu.py."""
    problem = make(cell, (6, 5, 8, 16), kinds, scaling=scaling).to(torch.float32, "cuda")
    lengths = torch.tensor([2, 6, 1, 3, 6])
    expected = sum(results(problem.to(torch.float64), "reference", lengths=lengths), [])
    for backend in ("auto", "torch", "vendor"):
        if supports(backend, problem, device="cuda"):
            found = sum(results(problem, backend, lengths=lengths), [])
            # cuDNN and cuBLAS may round products to TF32.
            assert error(found, expected) < 1e-2, backend


@pytest.mark.parametrize("kind", ["update", "cell"])
def test_an_rnn_has_only_a_hidden_state_to_drop(kind):
    problem = make("rnn", (4, 2, 5, 3))
    masks = Masks(**{kind: draw_mask(0.5, 4, 2, 3)})
    with pytest.raises(ValueError, match=f"an RNN has no {kind} to drop"):
        recurrence(*problem._replace(masks=masks))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_in_one_piece_for_cudnn(bias):
    """It finds them where it has room for as many numbers as with biases."""
    plain = torch.nn.LSTM(3, 5, bias=bias)
    weights = [w.detach() for w in plain._flat_weights]
    found = torch_nn._in_one_piece(weights)
    assert all(torch.equal(x, y) for x, y in zip(found, weights, strict=True))
    assert found[0].untyped_storage().nbytes() == 4 * (20 * 3 + 20 * 5 + 20 * 2)
    places = [w.storage_offset() for w in found]
    assert places == [0, 60, 160, 180][: len(found)]
