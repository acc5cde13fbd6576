"""What does not fit is refused before a backend is chosen: by all of them, in the same words."""

import gc
import math
import warnings
import weakref
from fractions import Fraction

import pytest
import torch

from rnndrop_plugin.ops import Mask, Masks, Weights, c_library, recurrence
from rnndrop_plugin.ops.checks import check_lengths

TIME, BATCH, INPUT, HIDDEN = 5, 2, 6, 8
BACKENDS = ["auto", "reference", "torch", "vendor"] + ["cpu"] * (c_library.unavailable() is None)
X = torch.linspace(-1, 1, TIME * BATCH * INPUT).view(TIME, BATCH, INPUT)
H = torch.zeros(BATCH, HIDDEN)
KEEP = torch.arange(BATCH * HIDDEN).view(BATCH, HIDDEN) % 3 > 0

with warnings.catch_warnings(action="ignore"):  # that they may change
    NESTED = torch.nested.nested_tensor([H[0], H[1]])


def make_weights(gates=4, hidden=HIDDEN):
    rows = gates * hidden
    return Weights(torch.ones(rows, INPUT), torch.ones(rows, hidden), torch.ones(rows), torch.ones(rows))


W = make_weights()


def call(cell="lstm", input=X, state=(H, H), weights=W, masks=None, backend="auto", **options):
    return recurrence(cell, input, state, weights, masks or Masks(), backend=backend, **options)


BAD = {
    "cell": ({"cell": "elman"}, "cell must be one of lstm, .*, got 'elman'"),
    "nonlinearity": ({"nonlinearity": "elu"}, "nonlinearity must be one of tanh, relu, got 'elu'"),
    "input-list": ({"input": X.tolist()}, "the input must be a tensor, got list"),
    "input-2d": ({"input": X[0]}, r"the input must be \(time, batch, input\).*got \(2, 6\)"),
    "input-no-step": ({"input": X[:0]}, r"at least one step, got \(0, 2, 6\)"),
    "input-integer": ({"input": X.long()}, "the input must be of a floating-point dtype, got torch.int64"),
    "input-complex": ({"input": X.to(torch.complex64)}, "of a floating-point dtype, got torch.complex64"),
    "input-sparse": ({"input": X.to_sparse()}, "the input must be a dense tensor, got torch.sparse_coo"),
    "input-device": ({"input": X.to("meta")}, "the weight hh is on cpu, the input on meta: not on the same device"),
    "weights-tuple": ({"weights": tuple(W)}, "weights must be Weights, got tuple"),
    "gates": ({"weights": make_weights(3)}, r"of the cell lstm must be \(4 \* hidden, hidden\), got \(24, 8\)"),
    "gates-of-a-gru": ({"cell": "gru", "state": (H,)}, r"of the cell gru must be \(3 \* hidden, hidden\)"),
    "ih-width": ({"weights": W._replace(ih=W.ih[:, :3])}, r"the weight ih must be \(32, 6\), got \(32, 3\)"),
    "ih-device": ({"weights": W._replace(ih=W.ih.to("meta"))}, "weight ih is on meta, .* not on the same device"),
    "hh-dtype": ({"weights": W._replace(hh=W.hh.double())}, "the weight hh is of torch.float64, the input of .*32"),
    "bias-length": ({"weights": W._replace(bias_hh=torch.ones(8))}, r"the bias hh must be \(32,\), got \(8,\)"),
    "one-bias": ({"weights": W._replace(bias_hh=None)}, "only one bias was given"),
    "one-state": ({"state": (H,)}, "the state of the cell lstm must be a tuple of 2: h, c; got 1"),
    "state-tensor": ({"cell": "rnn", "state": H, "weights": make_weights(1)}, "must be a tuple of 1: h; got Tensor"),
    "state-none": ({"state": None}, "must be a tuple of 2: h, c; got NoneType"),
    "state-batch": ({"state": (H, H[:1])}, r"the state c must be \(2, 8\), got \(1, 8\)"),
    "state-dtype": ({"state": (H, H.half())}, "the state c is of torch.float16, the input of torch.float32"),
    "state-device": ({"state": (H.to("meta"), H)}, "the state h is on meta, .* not on the same device"),
    "state-nested": ({"state": (NESTED, H)}, "the state h must be a dense tensor, got a nested one"),
    "lengths-list": ({"lengths": [5, 5]}, "the lengths must be a tensor, got list"),
    "lengths-number": ({"lengths": torch.tensor([5])}, r"the lengths must be \(2,\), got \(1,\)"),
    "lengths-float": ({"lengths": torch.tensor([5.0, 5.0])}, "the lengths must be of an integer dtype, got .*float32"),
    "lengths-long": ({"lengths": torch.tensor([5, 6])}, "lengths must be from 0 to 5, got 6"),
    "lengths-negative": ({"lengths": torch.tensor([-1, 5])}, "lengths must be from 0 to 5, got -1"),
    "lengths-device": ({"lengths": torch.ones(2, device="meta").int()}, "lengths are on meta, .* same device"),
    "mask-shape": (
        {"masks": Masks(cell=Mask(KEEP[:, :3]))},
        r"the cell mask must be \(2, 8\) or \(5, 2, 8\), got \(2, 3\)",
    ),
    "mask-steps": ({"masks": Masks(Mask(KEEP.expand(TIME - 1, BATCH, HIDDEN)))}, r"got \(4, 2, 8\)"),
    "mask-list": ({"masks": Masks(cell=Mask([[1]]))}, "the cell mask must be a tensor, got list"),
    "mask-bare": ({"masks": Masks(KEEP)}, "the update mask must be a Mask, got Tensor"),
    "masks-tuple": ({"masks": (Mask(KEEP),) * 3}, "masks must be Masks, got tuple"),
    "mask-device": ({"masks": Masks(Mask(KEEP.to("meta")))}, "update mask is on meta, .* not on the same device"),
    "mask-255": ({"masks": Masks(Mask(KEEP.byte() * 255))}, "update mask must be bool or hold only 0 and 1"),
    "mask-half": ({"masks": Masks(hidden=Mask(KEEP * 0.5))}, "hidden mask must be bool or hold only 0 and 1"),
    "mask-nan": ({"masks": Masks(Mask(torch.where(KEEP, 1.0, math.nan)))}, "must be bool or hold only 0 and 1"),
    "mask-grad": ({"masks": Masks(Mask(KEEP.float().requires_grad_()))}, "the update mask requires a gradient"),
    "mask-rnn": (
        {"cell": "rnn", "state": (H,), "weights": make_weights(1), "masks": Masks(cell=Mask(KEEP))},
        "an RNN has no cell to drop",
    ),
    "scale-nan": (
        {"masks": Masks(Mask(KEEP, math.nan))},
        "the scale of the update mask must be a finite number, got nan",
    ),
    "scale-tensor": (
        {"masks": Masks(Mask(None, torch.tensor(2.0)))},
        "update mask must be a finite number, got tensor",
    ),
    "scale-tensors": ({"masks": Masks(Mask(None, torch.ones(2)))}, "update mask must be a finite number, got tensor"),
    "scale-huge": ({"masks": Masks(Mask(KEEP, 10**400))}, "update mask must be a finite number, got 1000"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_by_every_backend(case):
    arguments, message = BAD[case]
    said = set()
    for backend in BACKENDS:
        with pytest.raises((ValueError, TypeError), match=message) as error:
            call(backend=backend, **arguments)
        said.add((error.type, str(error.value)))
    assert len(said) == 1 and "\n" not in said.pop()[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "vendor"])
def test_masks_of_other_dtypes_are_those_of_bool(backend, dtype):
    for keep in (KEEP, KEEP.expand(TIME, BATCH, HIDDEN)):
        masks, expected = (Masks(*(Mask(k, 1.5) for _ in range(3))) for k in (keep.to(dtype), keep))
        assert torch.equal(call(masks=masks, backend=backend)[0], call(masks=expected, backend=backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_of_other_integers(backend):
    for dtype in (torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint64):
        lengths = torch.tensor([3, 5], dtype=dtype)
        output, _ = call(lengths=lengths, backend=backend)
        assert torch.equal(output, call(lengths=lengths.long(), backend=backend)[0])
        assert (output[3:, 0] == 0).all() and (output[3:, 1] != 0).all()


def test_a_cuda_graph_takes_no_lengths_from_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="cannot go into a CUDA graph"):
        check_lengths(torch.tensor([3, 5]), 2, TIME, 0, torch.device("cuda"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_nothing(backend):
    output, state = call(input=X[:, :0], state=(H[:0], H[:0]), lengths=torch.ones(0).int(), backend=backend)
    assert output.shape == (TIME, 0, HIDDEN) and all(s.shape == (0, HIDDEN) for s in state)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS[4:]])
def test_a_mask_is_kept_by_autograd_alone(backend):
    """Where a hook stores what is saved, the memory of the mask itself is free."""
    keep, weights = KEEP.clone(), Weights(*(w.clone().requires_grad_() for w in W))
    alive = weakref.ref(keep)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(force=True).copy(), torch.from_numpy):
        output, _ = call(masks=Masks(Mask(keep)), weights=weights, backend=backend)
    expected, _ = call(masks=Masks(Mask(keep)), weights=weights, backend=backend)
    expected = torch.autograd.grad(expected.sum(), weights)
    del keep
    gc.collect()
    assert alive() is None
    torch.testing.assert_close(torch.autograd.grad(output.sum(), weights), expected)


def test_a_mask_changed_before_the_backward_pass_is_noticed():
    for backend in ("torch", *BACKENDS[4:]):
        keep, weights = KEEP.clone(), Weights(*(w.clone().requires_grad_() for w in W))
        output, _ = call(masks=Masks(Mask(keep)), weights=weights, backend=backend)
        keep.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_that_is_negated_when_it_is_read(backend):
    """As the imaginary part of a conjugate is."""
    negated = torch._neg_view(X)
    assert negated.is_neg() and torch.equal(call(input=negated, backend=backend)[0], call(input=-X, backend=backend)[0])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "vendor"])
def test_bools_of_other_bytes_and_scales_of_other_types(backend):
    """A view of bytes as bool may hold other numbers than 0 and 1; torch reads them as True."""
    strange = Masks(*(Mask((KEEP.byte() * byte).view(torch.bool), Fraction(3, 2)) for byte in (255, 2, 128)))
    expected = call(masks=Masks(*[Mask(KEEP, 1.5)] * 3), backend=backend)[0]
    assert torch.equal(call(masks=strange, backend=backend)[0], expected)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "vendor"])
def test_an_input_of_no_features(backend):
    weights = W._replace(ih=W.ih[:, :0])
    output, _ = call(input=X[..., :0], weights=weights, backend=backend)
    expected, _ = call(input=torch.zeros_like(X), backend=backend)
    torch.testing.assert_close(output, expected)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the compiled recurrence")
def test_tensors_without_memory():
    expected = call(backend="cpu")[0]
    assert torch.equal(call(state=(torch._efficientzerotensor(BATCH, HIDDEN), H), backend="cpu")[0], expected)
    freed = X.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"a tensor of the shape \(5, 2, 6\) has no memory"):
        call(input=freed, backend="cpu")
