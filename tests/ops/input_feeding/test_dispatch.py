"""The fast implementation of input feeding computes what the reference computes: outputs, states and all gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from rnndrop_plugin.ops import Attention, Mask, Masks, State, Weights, attend, draw_mask, input_feeding
from rnndrop_plugin.ops.recurrence.reference import GATES

TIME, BATCH, SOURCE, INPUT, HIDDEN = 4, 3, 5, 2, 6


class Problem(NamedTuple):
    """The arguments of input_feeding."""

    cell: str
    input: Tensor
    feed: Tensor
    states: list[State]
    weights: list[Weights]
    attention: Attention
    masks: list[Masks]
    dropout_between: list[Mask]
    dropout_out: Mask

    def leaves(self) -> list[Tensor]:
        return [
            self.input,
            self.feed,
            self.attention.keys,
            self.attention.values,
            self.attention.weight,
            *(s for state in self.states for s in state),
            *(w for layer in self.weights for w in layer if w is not None),
        ]


def make(cell: str, layers: int = 1, rate: float = 0.3, *, sampling: str = "step", bias: bool = True) -> Problem:
    """A random problem in float64 whose second source is shorter than the others."""
    gates = GATES[cell] * HIDDEN

    def leaf(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, requires_grad=True)

    def mask(kind: str) -> Mask:
        there = cell != "rnn" or kind == "hidden"
        return draw_mask(rate if there else 0, TIME, BATCH, HIDDEN, sampling=sampling)

    def weights(inputs: int) -> Weights:
        return Weights(leaf(gates, inputs), leaf(gates, HIDDEN), *((leaf(gates), leaf(gates)) if bias else ()))

    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[1, 2:] = True
    return Problem(
        cell,
        leaf(TIME, BATCH, INPUT),
        leaf(BATCH, HIDDEN),
        [tuple(leaf(BATCH, HIDDEN) for _ in range(2 if cell == "lstm" else 1)) for _ in range(layers)],
        [weights(INPUT + HIDDEN), *(weights(HIDDEN) for _ in range(layers - 1))],
        Attention(leaf(BATCH, SOURCE, HIDDEN), leaf(BATCH, SOURCE, HIDDEN), padding, leaf(HIDDEN, HIDDEN)),
        [Masks(*(mask(kind) for kind in Masks._fields)) for _ in range(layers)],
        [draw_mask(rate, TIME, BATCH, HIDDEN) for _ in range(layers - 1)],
        draw_mask(rate, TIME, BATCH, HIDDEN),
    )


def compute(problem: Problem, **options) -> list[Tensor]:
    """The output, the attention's weights, the final states and the gradients of everything."""
    output, weights, states = input_feeding(*problem, **options)
    results = [output, *(s for state in states for s in state)]
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in results)
    return [*results, weights, *torch.autograd.grad(loss, problem.leaves())]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_equals_the_reference(cell, layers, nonlinearity):
    for sampling, rate, bias in (("step", 0.3, True), ("sequence", 0.3, True), ("step", 0.0, False)):
        problem = make(cell, layers, rate, sampling=sampling, bias=bias)
        expected = compute(problem, nonlinearity=nonlinearity, backend="reference")
        torch.testing.assert_close(compute(problem, nonlinearity=nonlinearity), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cell", GATES)
def test_gradients_are_those_of_finite_differences(cell):
    problem = make(cell, layers=2)

    def function(*_):
        output, _, states = input_feeding(*problem)
        return output, *(s for state in states for s in state)

    assert torch.autograd.gradcheck(function, problem.leaves(), fast_mode=True)


def test_without_gradient_the_result_is_the_same():
    problem = make("lstm", layers=2)
    expected = input_feeding(*problem)
    with torch.no_grad():
        torch.testing.assert_close(input_feeding(*problem), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cell", GATES)
def test_the_final_states_may_be_overwritten(cell):
    problem = make(cell, layers=2)
    output, _, states = input_feeding(*problem)
    (expected,) = torch.autograd.grad(output.square().sum(), problem.input, retain_graph=True)
    with torch.no_grad():
        for s in (s for state in states for s in state):
            s.fill_(9)
    (found,) = torch.autograd.grad(output.square().sum(), problem.input)
    assert torch.equal(found, expected)


def test_padding_is_not_read():
    problem = make("gru")
    padding = problem.attention.padding.unsqueeze(2)
    other = problem.attention._replace(
        keys=problem.attention.keys.masked_fill(padding, 7.0), values=problem.attention.values.masked_fill(padding, 7.0)
    )
    for backend in ("auto", "reference"):
        output, weights, _ = input_feeding(*problem, backend=backend)
        assert not weights.masked_select(problem.attention.padding).any()
        torch.testing.assert_close(input_feeding(*problem._replace(attention=other), backend=backend)[0], output)


def test_attention_by_hand():
    attention = Attention(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0], [4.0]]]), None, torch.tensor([[0.5]]))
    output, weights = attend(torch.tensor([[[0.25]]]), attention)
    second = 1 / (1 + torch.exp(torch.tensor(-0.5)))  # softmax of 0.25 and 0.75
    torch.testing.assert_close(weights, torch.stack([1 - second, second]).view(1, 1, 2))
    torch.testing.assert_close(output, torch.tanh(2 * (1 - second) + 4 * second + 0.125).view(1, 1, 1))


def test_half_precision():
    problem = make("lstm", layers=2)
    expected, *_ = input_feeding(*problem)

    def convert(x, dtype):
        if isinstance(x, Tensor):
            return x.detach().to(dtype) if x.is_floating_point() else x
        if isinstance(x, tuple | list) and not isinstance(x, Mask):
            return type(x)(*(convert(y, dtype) for y in x)) if hasattr(x, "_fields") else [convert(y, dtype) for y in x]
        return x

    half, weights, _ = input_feeding(*convert(problem, torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        brain, *_ = input_feeding(*convert(problem, torch.float32))
    assert (half.dtype, weights.dtype, brain.dtype) == (torch.float16, torch.float16, torch.bfloat16)
    torch.testing.assert_close(half.double(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(brain.double(), expected, rtol=0.2, atol=0.2)


def test_second_derivatives_and_batched_gradients():
    problem = make("lstm")
    found = []
    for backend in ("reference", "auto"):
        output, *_ = input_feeding(*problem, backend=backend)
        (gradient,) = torch.autograd.grad(output.square().sum(), problem.input, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), problem.feed, retain_graph=True)
        (batched,) = torch.autograd.grad(output, problem.feed, torch.stack([output, -output]), is_grads_batched=True)
        assert second.any()
        found.append((second, batched))
    torch.testing.assert_close(found[1], found[0])


def test_arguments_that_do_not_fit():
    problem = make("rnn", layers=2)
    keys = problem.attention.keys
    narrow = problem.weights[1]._replace(ih=problem.weights[1].ih[:, :-1])
    for other, message in (
        ({"states": problem.states[:1]}, "2 layers take as many states and masks"),
        ({"dropout_between": []}, "2 masks and 0 between"),
        ({"feed": problem.feed[:, 1:]}, "feed must be"),
        ({"weights": [problem.weights[0], narrow]}, "weight ih must be"),
        ({"masks": [Masks(update=Mask(None, 0.5)), Masks()]}, "an RNN has no update to drop"),
        ({"dropout_out": Mask(torch.ones(2, 2) > 0)}, "mask must be"),
        ({"attention": problem.attention._replace(values=keys[:, 1:])}, "values must be"),
        ({"attention": problem.attention._replace(padding=problem.attention.padding.int())}, "padding must be bool"),
        ({"attention": problem.attention._replace(padding=problem.attention.padding.to("meta"))}, "the same device"),
        ({"attention": problem.attention._replace(padding=problem.attention.padding.to_sparse())}, "a dense tensor"),
        ({"cell": "lstmm"}, "cell must be one of"),
    ):
        for backend in ("auto", "reference"):
            with pytest.raises(ValueError, match=message):
                input_feeding(*problem._replace(**other), backend=backend)
    for other in ({"attention": tuple(problem.attention)}, {"weights": [tuple(w) for w in problem.weights]}):
        with pytest.raises(TypeError, match="must be (an Attention|Weights, one for each layer), got tuple"):
            input_feeding(*problem._replace(**other))
    with pytest.raises(ValueError, match="backend must be one of"):
        input_feeding(*problem, backend="fast")


def test_transformations():
    """Checkpoints, torch.compile and make_fx of what has a backward pass of its own."""
    problem = make("lstm")

    def function(input):
        return input_feeding(*problem._replace(input=input))[0]

    def gradient(function):
        return torch.autograd.grad(function(problem.input).sum(), problem.input)[0]

    expected = gradient(function)
    recomputed = gradient(lambda input: checkpoint(function, input, use_reentrant=False))
    assert torch.equal(recomputed, expected)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled), expected)
    torch.testing.assert_close(make_fx(function)(problem.input)(2 * problem.input), function(2 * problem.input))


@pytest.mark.parametrize("place", ["update", "between", "out", "padding"])
def test_a_mask_that_is_changed_before_the_backward_pass_is_noticed(place):
    problem = make("lstm", layers=2)
    changed = {
        "update": problem.masks[1].update.keep,
        "between": problem.dropout_between[0].keep,
        "out": problem.dropout_out.keep,
        "padding": problem.attention.padding,
    }[place]
    output, _, _ = input_feeding(*problem)
    changed.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
