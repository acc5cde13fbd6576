"""The output layer with its loss under PyTorch's transformations; see tests/modules/test_transformations.py."""

import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from rnndrop_plugin.ops import linear_cross_entropy, linear_cross_entropy_ref
from rnndrop_plugin.ops.cross_entropy import dispatch

PAD, ROWS, SIZE, CLASSES = 1, 6, 3, 7
TARGET = torch.tensor([2, PAD, 6, 0, PAD, 3])


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """As if there were many logits, so that the forms for them run."""
    monkeypatch.setattr(dispatch, "SMALL", 0)


@pytest.fixture
def inputs():
    return tuple(torch.randn(*size, requires_grad=True) for size in ((ROWS, SIZE), (CLASSES, SIZE), (CLASSES,)))


def loss(features, weight, bias, function=linear_cross_entropy, target=TARGET):
    return function(features, weight, bias, target, PAD, 0.1)[0]


def reference(*inputs):
    return loss(*inputs, function=linear_cross_entropy_ref)


def test_forward_mode(inputs):
    tangents = tuple(torch.randn_like(x) for x in inputs)
    expected = sum(
        (g * t).sum() for g, t in zip(torch.autograd.grad(reference(*inputs), inputs), tangents, strict=True)
    )
    inputs = tuple(x.detach() for x in inputs)
    torch.testing.assert_close(torch.func.jvp(loss, inputs, tangents)[1], expected.detach())
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(loss(*duals)).tangent, expected.detach())


def test_gradients_of_torch_func(inputs):
    expected = torch.autograd.grad(reference(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2))(*inputs), expected)
    torch.testing.assert_close(torch.func.jacrev(loss, (0, 1, 2))(*inputs), expected)


def test_batched_gradients(inputs):
    scales = torch.tensor([1.0, -2.0, 0.5])
    found = torch.autograd.grad(loss(*inputs), inputs, scales, is_grads_batched=True)
    for x, gradient in zip(found, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(x, torch.stack([s * gradient for s in scales]))


def test_vmap_over_features_and_targets(inputs):
    features, (_, weight, bias) = torch.randn(3, ROWS, SIZE), inputs
    targets = torch.stack([TARGET, TARGET.roll(1), TARGET.flip(0)])
    found = torch.func.vmap(lambda x, t: loss(x, weight, bias, target=t))(features, targets)
    expected = [loss(x, weight, bias, target=t) for x, t in zip(features, targets, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.filterwarnings("ignore")
def test_trace(inputs):
    """The rows that count are found anew in each call."""
    features, weight, bias = (x.detach() for x in inputs)
    traced = torch.jit.trace(lambda x, t: loss(x, weight, bias, target=t), (features, TARGET))
    other = torch.tensor([PAD, 2, PAD, PAD, 5])
    torch.testing.assert_close(traced(features[1:], other), loss(features[1:], weight, bias, target=other))


@pytest.mark.parametrize("small", [0, 2**20])
def test_compile_and_export(inputs, small, monkeypatch):
    monkeypatch.setattr(dispatch, "SMALL", small)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        found = compiled(*inputs)
        torch.testing.assert_close(found, reference(*inputs))
        torch.testing.assert_close(
            torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * reference(*inputs), inputs)
        )
        with pytest.raises(IndexError, match="is out of bounds"):
            compiled(*inputs, target=TARGET + 5)

    class Loss(torch.nn.Module):
        def forward(self, *inputs):
            return loss(*inputs)

    program = torch.export.export(Loss(), inputs)
    torch.testing.assert_close(program.module()(*inputs), reference(*inputs))
    torch.testing.assert_close(program.run_decompositions().module()(*inputs), reference(*inputs))


def test_checkpointing_and_moved_tensors(inputs):
    expected = torch.autograd.grad(reference(*inputs), inputs)
    found = torch.autograd.grad(checkpoint(loss, *inputs, use_reentrant=False), inputs)
    torch.testing.assert_close(found, expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
        value = loss(*inputs)
    torch.testing.assert_close(torch.autograd.grad(value, inputs, retain_graph=True), expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), expected)  # computed again from what was moved


def test_fake_tensors_and_the_default_device(inputs):
    with torch.device("meta"):
        torch.testing.assert_close(loss(*inputs), reference(*inputs))
    inputs = [x.detach() for x in inputs]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x).requires_grad_() for x in inputs]
        value = loss(*fakes, target=mode.from_tensor(TARGET))
        assert [g.shape for g in torch.autograd.grad(value, fakes)] == [x.shape for x in inputs]
