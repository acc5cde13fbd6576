"""The output layer with its loss: the chunked form computes what the plain one does, and that is fairseq's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rnndrop_plugin.ops import c_library, linear_cross_entropy, linear_cross_entropy_ref
from rnndrop_plugin.ops.cross_entropy import chunked, dispatch
from tests.conftest import needs_library

PAD = 1
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.fixture(params=["torch", "on a GPU", pytest.param("compiled", marks=needs_library)])
def form(request, monkeypatch):
    """Which of the forms runs. On a GPU it is that in torch operations, on all rows, as no value is read."""
    if request.param == "torch":
        monkeypatch.setattr(c_library, "unavailable", lambda: "a test of the form in torch operations")
    if request.param == "on a GPU":
        monkeypatch.setattr(dispatch, "readable", lambda x: False)


@pytest.fixture
def chunks(form, monkeypatch):
    """All forms, the one in torch operations in chunks of three rows at the sizes below, and no way around them."""
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(chunked, "ROWS", 1)
    monkeypatch.setattr(chunked, "CHUNK", 40)


def problem(batch=4, time=5, size=7, vocabulary=13, bias=True, dtype=torch.float64, padding=True):
    """Features as the decoder gives them, time-major under a batch-major view, and some padding."""
    features = torch.randn(time, batch, size, dtype=dtype).transpose(0, 1).requires_grad_()
    weight = torch.randn(vocabulary, size, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    target = torch.randint(2, vocabulary, (batch, time))
    if padding:
        target[1, 2], target[3, 3:] = PAD, PAD
    return features, weight, bias, target


def gradients(function, features, weight, bias, target, **options):
    loss, nll = function(features, weight, bias, target, PAD, **options)
    wanted = [x for x in (features, weight, bias) if x is not None and x.requires_grad]
    return loss, nll, *torch.autograd.grad(0.7 * loss, wanted)


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_chunked_equals_plain(chunks, dtype, bias, label_smoothing):
    inputs = problem(bias=bias, dtype=dtype)
    found = gradients(linear_cross_entropy, *inputs, label_smoothing=label_smoothing)
    expected = gradients(linear_cross_entropy_ref, *inputs, label_smoothing=label_smoothing)
    assert "LinearCrossEntropy" in found[0].grad_fn.name()
    assert not found[1].requires_grad and not expected[1].requires_grad
    assert_close(found, expected, TOLERANCES[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_on_a_gpu(dtype, tolerance, label_smoothing):
    """float32 in Triton's kernel, float64 in torch operations."""
    inputs = problem(vocabulary=10_000, batch=30, dtype=dtype)
    there = [x if x is None else x.detach().to("cuda") for x in inputs]
    there = [x.requires_grad_() if x.is_floating_point() else x for x in there]
    found = gradients(linear_cross_entropy, *there, label_smoothing=label_smoothing)
    assert "LinearCrossEntropy" in found[0].grad_fn.name()
    expected = gradients(linear_cross_entropy_ref, *inputs, label_smoothing=label_smoothing)
    assert_close([x.cpu() for x in found], expected, tolerance)


@pytest.mark.parametrize(("batch", "time", "vocabulary"), [(1, 1, 2), (4, 4, 100), (7, 6, 3)])
def test_sizes(chunks, batch, time, vocabulary):
    """A row larger than a chunk, chunks that do not divide the rows, two classes."""
    inputs = problem(batch, time, vocabulary=vocabulary + 2, padding=False)
    found = gradients(linear_cross_entropy, *inputs, label_smoothing=0.2)
    assert_close(found, gradients(linear_cross_entropy_ref, *inputs, label_smoothing=0.2), 1e-14)


def test_label_smoothing_is_any_real_number(chunks):
    inputs = problem()
    expected = gradients(linear_cross_entropy, *inputs, label_smoothing=0.25)
    for smoothing in (Fraction(1, 4), np.float16(0.25)):
        for function in (linear_cross_entropy, linear_cross_entropy_ref):
            assert_close(gradients(function, *inputs, label_smoothing=smoothing), expected, 1e-14)


def test_default_chunks(form):
    """At a size that is cut without being told to; the logits are not among what autograd keeps."""
    features, weight, bias, target = problem(10, 33, 8, 20_000, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_cross_entropy(features, weight, bias, target, PAD)
    assert max(kept) == weight.numel() < target.numel() * weight.size(0)
    found = gradients(linear_cross_entropy, features, weight, bias, target)
    assert_close(found, gradients(linear_cross_entropy_ref, features, weight, bias, target), 1e-5)


@needs_library
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize(("size", "vocabulary"), [(19, 101), (521, 40)])
def test_instruction_sets(instructions, size, vocabulary, monkeypatch):
    """Sizes that fill neither vectors nor tiles, sums longer than a block, several chunks, any number of threads."""
    monkeypatch.setattr(dispatch, "SMALL", 0)
    loaded, _ = c_library.load()
    inputs = problem(30, 35, size, vocabulary)
    expected = gradients(linear_cross_entropy_ref, *inputs, label_smoothing=0.1)
    threads = torch.get_num_threads()
    try:
        if not loaded.rnndrop_set_instructions(instructions.encode()):
            pytest.skip(f"this machine does not have {instructions}")
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(gradients(linear_cross_entropy, *inputs, label_smoothing=0.1))
    finally:
        loaded.rnndrop_set_instructions(None)
        torch.set_num_threads(threads)
    assert_close(found[0], expected, 1e-13)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][2:], other[2:], strict=True))


def test_plain_equals_torch_and_fairseq():
    label_smoothed = pytest.importorskip("fairseq.criterions.label_smoothed_cross_entropy")
    features, weight, bias, target = problem()
    logits = F.linear(features, weight, bias).flatten(0, 1)
    loss, nll = linear_cross_entropy_ref(features, weight, bias, target, PAD)
    expected = F.cross_entropy(logits, target.flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected.detach())
    smoothed, nll = linear_cross_entropy_ref(features, weight, bias, target, PAD, label_smoothing=0.1)
    expected, _ = label_smoothed.label_smoothed_nll_loss(F.log_softmax(logits, 1), target.flatten(), 0.1, PAD)
    torch.testing.assert_close(smoothed, expected)
    torch.testing.assert_close(nll, loss.detach())


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_what_needs_no_gradient(chunks, frozen):
    inputs = problem()
    for k in frozen:
        inputs[k].requires_grad_(False)
    assert_close(gradients(linear_cross_entropy, *inputs), gradients(linear_cross_entropy_ref, *inputs), 1e-14)


def test_without_gradients(chunks):
    inputs = problem()
    expected = linear_cross_entropy_ref(*inputs, PAD, 0.1)
    with torch.no_grad():
        found = linear_cross_entropy(*inputs, PAD, 0.1)
    assert not found[0].requires_grad
    assert_close(found, [x.detach() for x in expected], 1e-14)


def test_only_padding(chunks):
    features, weight, bias, target = problem()
    loss, nll, *grads = gradients(linear_cross_entropy, features, weight, bias, torch.full_like(target, PAD))
    assert loss == nll == 0
    assert all((grad == 0).all() for grad in grads)


def test_non_contiguous(chunks):
    features, weight, bias, target = problem(padding=False)
    inputs = features[:, ::2], weight.t().contiguous().t(), bias[:, None].expand(-1, 2)[:, 1], target[:, ::2]
    found = linear_cross_entropy(*inputs, PAD)
    expected = linear_cross_entropy_ref(*inputs, PAD)
    leaves = [features, weight, bias]
    assert_close(torch.autograd.grad(found[0], leaves), torch.autograd.grad(expected[0], leaves), 1e-14)


def test_large_logits(chunks):
    """Beyond what exp can hold, and a target whose probability is zero in float32."""
    features, weight, bias, target = problem(dtype=torch.float32)
    inputs = features, (weight.detach() * 300).requires_grad_(), bias, target
    found = gradients(linear_cross_entropy, *inputs)
    assert found[0] > 1000 and all(x.isfinite().all() for x in found)
    assert_close(found, gradients(linear_cross_entropy_ref, *inputs), 2e-6)


def test_gradcheck(chunks):
    features, weight, bias, target = problem()
    leaves = features, weight, bias

    def loss(*leaves):
        return linear_cross_entropy(*leaves, target, PAD, 0.1)[0]

    # The second backward of one loss takes the plain form: other rounding.
    assert torch.autograd.gradcheck(loss, leaves, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_dummy_batch(chunks):
    """fairseq multiplies the loss by zero in place where a process has no batch left."""
    features, weight, bias, target = problem()
    loss, _ = linear_cross_entropy(features, weight, bias, target, PAD)
    loss *= 0
    loss.backward()
    assert loss == 0 and all((x.grad == 0).all() for x in (features, weight, bias))


def test_backward_twice(chunks):
    """The gradients are given away the first time; the second time they are computed anew."""
    features, weight, bias, target = problem()
    loss, _ = linear_cross_entropy(features, weight, bias, target, PAD)
    loss = 0.7 * loss  # by which the gradients are multiplied in place
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad *= 5  # as gradient clipping does, in place
    weight.grad = None
    loss.backward()
    torch.testing.assert_close(weight.grad, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(chunks, dtype):
    inputs = problem(dtype=dtype)
    found = gradients(linear_cross_entropy, *inputs)
    exact = gradients(linear_cross_entropy, *(x.detach().double().requires_grad_() for x in inputs[:3]), inputs[3])
    assert found[0].dtype == torch.float32 and found[2].dtype == dtype
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.05, atol=0.05 * float(b.detach().abs().max()))


def test_autocast(chunks):
    inputs = problem(dtype=torch.float32)
    exact = gradients(linear_cross_entropy, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(linear_cross_entropy, *inputs)
    assert [x.dtype for x in found] == [x.dtype for x in exact]
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(b.detach().abs().max()))


@pytest.mark.parametrize("impossible", [13, -1])
def test_impossible_target(chunks, impossible):
    features, weight, bias, target = problem()
    target[0, 0] = impossible
    with pytest.raises((IndexError, RuntimeError), match=f"{impossible} is out of bounds"):
        linear_cross_entropy(features, weight, bias, target, PAD)


ROWS, CLASSES, SIZE = 6, 13, 7
F_, W_, B_, T_ = torch.ones(ROWS, SIZE), torch.ones(CLASSES, SIZE), torch.ones(CLASSES), torch.arange(ROWS)
BAD = {
    "features-integer": ((F_.long(), W_, B_, T_), r"features must be .* of a floating-point dtype, got .*int64"),
    "features-scalar": ((F_[0, 0], W_, B_, T_), r"the features must be \(\.\.\., features\)"),
    "features-list": ((F_.tolist(), W_, B_, T_), "the features must be a tensor, got list"),
    "weight-1d": ((F_, W_[0], B_, T_), r"the weight must be \(vocabulary, features\), got \(7,\)"),
    "weight-empty": ((F_, W_[:0], B_[:0], T_), r"the weight must be \(vocabulary, features\), got \(0, 7\)"),
    "weight-width": ((F_, W_[:, :3], B_, T_), r"the weight must be \(13, 7\), got \(13, 3\)"),
    "weight-dtype": ((F_, W_.double(), B_, T_), "the weight is of torch.float64, the features of torch.float32"),
    "weight-device": ((F_, W_.to("meta"), B_, T_), "the weight is on meta, .* not on the same device"),
    "bias-length": ((F_, W_, B_[:5], T_), r"the bias must be \(13,\), got \(5,\)"),
    "target-number": ((F_, W_, B_, T_[:5]), r"the target must be \(6,\), got \(5,\)"),
    "target-float": ((F_, W_, B_, T_.float()), "the target must be of an integer dtype, got torch.float32"),
    "target-bool": ((F_, W_, B_, T_ > 2), "the target must be of an integer dtype, got torch.bool"),
    "target-device": ((F_, W_, B_, T_.to("meta")), "the target is on meta, .* not on the same device"),
    "target-13": ((F_, W_, B_, T_ + 8), "target 13 is out of bounds: there are 13 classes"),
    "target-negative": ((F_, W_, B_, T_ - 1), "target -1 is out of bounds: there are 13 classes"),
    "ignore-index": ((F_, W_, B_, T_, None), "ignore_index must be an integer, got None"),
    "smoothing": ((F_, W_, B_, T_, -100, 1.5), r"label_smoothing must be in \[0, 1\], got 1.5"),
    "smoothing-nan": ((F_, W_, B_, T_, -100, float("nan")), r"label_smoothing must be in \[0, 1\], got nan"),
    "smoothing-one-class": ((F_, W_[:1], B_[:1], T_ * 0, -100, 0.1), "label_smoothing needs at least two classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_by_every_form(case, chunks):
    arguments, message = BAD[case]
    said = set()
    for function in (linear_cross_entropy, linear_cross_entropy_ref):
        with pytest.raises((ValueError, TypeError, IndexError), match=message) as error:
            function(*arguments)
        said.add((error.type, str(error.value)))
    assert len(said) == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_targets_of_other_integers(chunks, dtype):
    features, weight, bias, target = problem()
    expected = linear_cross_entropy(features, weight, bias, target, PAD)
    assert_close(linear_cross_entropy(features, weight, bias, target.to(dtype), PAD), expected, 0)


def test_one_class_costs_nothing(chunks):
    loss, _ = linear_cross_entropy(F_, W_[:1], B_[:1], T_ * 0)
    assert loss == 0


def test_a_class_that_cannot_be(chunks):
    """A bias of -inf takes a class away."""
    features, weight, bias, target = problem()
    bias = torch.where(torch.arange(len(bias)) == 0, -torch.inf, bias.detach()).requires_grad_()
    found = gradients(linear_cross_entropy, features, weight, bias, target)
    expected = gradients(linear_cross_entropy_ref, features, weight, bias, target)
    assert found[0].isfinite()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_one_row_and_no_features(chunks):
    features, weight, bias, target = problem(padding=False)
    for case in ((features[0, 0], weight, bias, target[0, 0]), (features[..., :0], weight[:, :0], bias, target)):
        torch.testing.assert_close(linear_cross_entropy(*case, PAD), linear_cross_entropy_ref(*case, PAD))
