"""The modules beside torch.nn's: the same results, the same forms of input, and packing."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, unpack_sequence

from rnndrop_plugin.modules import GRU, LSTM, RNN, layers
from rnndrop_plugin.ops import Mask, Masks, c_library

INPUT, HIDDEN, BATCH, TIME = 3, 5, 4, 6
# Our class, torch.nn's, and what makes ours the same.
TORCHS = {
    "lstm": (LSTM, nn.LSTM, {}),
    "gru": (GRU, nn.GRU, {"reset_after": True}),
    "rnn": (RNN, nn.RNN, {}),
    "relu-rnn": (RNN, nn.RNN, {"nonlinearity": "relu"}),
}
CONFIGURATIONS = {
    "plain": {},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "layers-bidirectional-batch_first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no-bias": {"bias": False},
    "double": {"dtype": torch.float64, "num_layers": 2},
}
CELLS = {
    "lstm": (LSTM, {}),
    "relu-lstm": (LSTM, {"nonlinearity": "relu"}),
    "gru": (GRU, {}),
    "gru-reset_after": (GRU, {"reset_after": True}),
    "rnn": (RNN, {}),
}
RATES = {LSTM: ("update", "hidden", "cell"), GRU: ("update", "hidden", "cell"), RNN: ("hidden",)}


def all_dropouts(module, rate=0.5):
    return {f"{kind}_dropout": rate for kind in RATES[module]}


def pair(name, configuration, backend):
    ours, theirs, options = TORCHS[name]
    theirs = theirs(INPUT, HIDDEN, **configuration, **{k: v for k, v in options.items() if k == "nonlinearity"})
    ours = ours(INPUT, HIDDEN, **configuration, **options, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_input(form, batch_first=False, dtype=None):
    if form == "unbatched":
        return torch.randn(TIME, INPUT, dtype=dtype)
    if form == "batched":
        return torch.randn(*((BATCH, TIME) if batch_first else (TIME, BATCH)), INPUT, dtype=dtype)
    lengths = [6, 5, 2, 2] if form == "packed" else [2, 6, 1, 5]
    return pack_sequence([torch.randn(n, INPUT, dtype=dtype) for n in lengths], enforce_sorted=form == "packed")


def make_state(module, form, dtype=None):
    layers = module.num_layers * (2 if module.bidirectional else 1)
    shape = (layers, HIDDEN) if form == "unbatched" else (layers, BATCH, HIDDEN)
    h, c = torch.randn(2, *shape, dtype=dtype)
    return (h, c) if isinstance(module, (LSTM, nn.LSTM)) else h


def tensors(result):
    """Output and final state as a flat list."""
    output, state = result
    return [
        output.data if isinstance(output, PackedSequence) else output,
        *(state if type(state) is tuple else [state]),
    ]


FORMS = ["batched", "unbatched", "packed", "packed-unsorted"]


@pytest.mark.parametrize("with_state", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", TORCHS)
def test_the_reference_equals_torch(name, configuration, form, with_state):
    configuration = CONFIGURATIONS[configuration]
    dtype = configuration.get("dtype")
    ours, theirs = pair(name, configuration, "reference")
    input = make_input(form, configuration.get("batch_first", False), dtype)
    hx = make_state(ours, form, dtype) if with_state else None
    result, expected = ours(input, hx), theirs(input, hx)
    torch.testing.assert_close(tensors(result), tensors(expected), rtol=0, atol=1e-6 if dtype is None else 1e-14)
    if isinstance(input, PackedSequence):
        for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            a, b = getattr(result[0], part), getattr(expected[0], part)
            assert (a is None and b is None) or torch.equal(a, b)
    for r in (result, expected):
        sum(t.square().sum() for t in tensors(r)).backward()
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TORCHS)
def test_torchs_own_kernel_can_serve_where_nothing_is_dropped(name, form, training, monkeypatch):
    monkeypatch.setattr(layers, "recurrence", lambda *_, **__: pytest.fail("not torch's kernel"))
    ours, theirs = pair(name, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, "vendor")
    if not training:
        for kind in RATES[type(ours)]:
            setattr(ours, f"{kind}_dropout", 0.5)
    ours.train(training), theirs.train(training)
    input, seed = make_input(form), 5
    torch.manual_seed(seed)
    result = tensors(ours(input))
    torch.manual_seed(seed)
    assert all(torch.equal(a, b) for a, b in zip(result, tensors(theirs(input)), strict=True))


@pytest.mark.skipif(
    c_library.unavailable() is not None or c_library.instructions() == "plain", reason="torch's kernel is faster"
)
@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_compiled_kernel_serves_where_nothing_is_dropped(name, batch_first, monkeypatch):
    """torch's own does all else: a few steps, an LSTM's evaluation by oneDNN, half types, autocast."""
    calls = []
    original = layers.recurrence
    monkeypatch.setattr(layers, "recurrence", lambda *a, **k: calls.append(a[0]) or original(*a, **k))
    ours, theirs = pair(name, {"batch_first": batch_first}, "auto")
    forms = [make_input(form, batch_first) for form in FORMS]
    for input, enough in [(input, True) for input in forms] + [(x[:4, :4], False) for x in forms[:2]]:
        for training in (True, False):
            calls.clear()
            result = tensors(ours.train(training)(input))
            torch.testing.assert_close(result, tensors(theirs(input)), rtol=0, atol=1e-6)
            one_dnn = name == "lstm" and not isinstance(input, PackedSequence)
            assert calls == [ours.cell] * (training if one_dnn else enough)
    calls.clear()
    with torch.no_grad():
        ours.train()(make_input("batched")[:4])
    with torch.autocast("cpu", torch.bfloat16):
        ours(forms[0])
    ours.bfloat16()(forms[0].bfloat16())
    assert not calls


@pytest.mark.parametrize(
    "module",
    [
        GRU(INPUT, HIDDEN),
        GRU(INPUT, HIDDEN, reset_after=True, nonlinearity="relu"),
        LSTM(INPUT, HIDDEN, nonlinearity="relu"),
        LSTM(INPUT, HIDDEN, backend="reference"),
        LSTM(INPUT, HIDDEN, update_dropout=0.1),
        LSTM(INPUT, HIDDEN, hidden_dropout=0.1, scaling="expected").eval(),
        RNN(INPUT, HIDDEN, hidden_dropout=0.1),
    ],
    ids=str,
)
def test_torchs_kernel_does_not_serve_what_it_lacks(module, monkeypatch):
    calls = []
    original = layers.recurrence
    monkeypatch.setattr(layers, "recurrence", lambda *a, **k: calls.append(a[0]) or original(*a, **k))
    module(make_input("batched"))
    assert calls == [module.cell]


@pytest.mark.parametrize("name", TORCHS)
def test_state_dicts_load_both_ways(name):
    configuration = {"num_layers": 2, "bidirectional": True}
    ours, theirs = pair(name, configuration, "auto")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_unbatched_and_batch_first_are_the_same_numbers(name):
    module, options = CELLS[name]
    module = module(INPUT, HIDDEN, 2, bidirectional=True, scaling="expected", **options, **all_dropouts(module)).eval()
    x = make_input("batched")
    hx = make_state(module, "batched")
    output, *final = tensors(module(x, hx))
    module.batch_first = True
    torch.testing.assert_close(tensors(module(x.transpose(0, 1), hx)), [output.transpose(0, 1), *final])
    for b in range(BATCH):
        of_example = tuple(s[:, b] for s in hx) if isinstance(hx, tuple) else hx[:, b]
        torch.testing.assert_close(tensors(module(x[:, b], of_example)), [output[:, b], *(s[:, b] for s in final)])


def draw_masks(module, time, batch, sampling):
    shape = {"step": (time, batch, HIDDEN), "sequence": (batch, HIDDEN)}[sampling]
    return [
        Masks(**{kind: Mask(torch.rand(shape) < 0.6, 1.5) for kind in RATES[type(module)]}) for _ in module.all_weights
    ]


def select(masks, example, length):
    """The masks of one example of a batch."""

    def of(mask):
        if mask.keep is None:
            return mask
        keep = mask.keep[:length, [example]] if mask.keep.dim() == 3 else mask.keep[[example]]
        return Mask(keep, mask.scale)

    return [Masks(*(of(mask) for mask in layer)) for layer in masks]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "sampling"), list(product(CELLS, ["step", "sequence"])))
def test_a_packed_batch_equals_its_examples(name, sampling, backend):
    module, options = CELLS[name]
    module = module(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64, backend=backend, **options)
    packed = make_input("packed-unsorted", dtype=torch.float64)
    hx = make_state(module, "packed", torch.float64)
    masks = draw_masks(module, TIME, BATCH, sampling)
    output, *final = tensors(module(packed, hx, masks))
    outputs = unpack_sequence(packed._replace(data=output))
    gradients = torch.autograd.grad(output.square().sum() + sum(s.sum() for s in final), list(module.parameters()))
    total = 0.0
    for b, sequence in enumerate(unpack_sequence(packed)):
        of_example = tuple(s[:, [b]] for s in hx) if isinstance(hx, tuple) else hx[:, [b]]
        alone, *final_alone = tensors(module(sequence.unsqueeze(1), of_example, select(masks, b, len(sequence))))
        torch.testing.assert_close(outputs[b], alone.squeeze(1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close([s[:, [b]] for s in final], final_alone, rtol=1e-10, atol=1e-12)
        total = total + alone.square().sum() + sum(s.sum() for s in final_alone)
    torch.testing.assert_close(torch.autograd.grad(total, list(module.parameters())), gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CELLS)
def test_what_pads_a_batch_does_not_leak(name):
    module, options = CELLS[name]
    module = module(INPUT, HIDDEN, 2, bidirectional=True, dropout=0.2, **options, **all_dropouts(module))
    lengths = [2, TIME, 1, 5]
    x = torch.randn(TIME, BATCH, INPUT)
    results = []
    for extra, filling in ((0, 0.0), (0, 1e9), (3, float("nan"))):
        padded = torch.cat([x, torch.empty(extra, BATCH, INPUT)])
        padded[torch.arange(TIME + extra).unsqueeze(1) >= torch.tensor(lengths)] = filling
        torch.manual_seed(3)
        results.append(tensors(module(pack_padded_sequence(padded, lengths, enforce_sorted=False))))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_a_whole_module(name):
    module, options = CELLS[name]
    module = module(2, 2, 2, bidirectional=True, dtype=torch.float64, backend="reference", **options)
    packed = pack_sequence([torch.randn(n, 2, dtype=torch.float64) for n in (1, 3)], enforce_sorted=False)
    masks = [
        Masks(**{kind: Mask(torch.rand(3, 2, 2) < 0.6, 1.5) for kind in RATES[type(module)]})
        for _ in module.all_weights
    ]
    names = list(dict(module.named_parameters()))
    state = [torch.randn(4, 2, 2, dtype=torch.float64) for _ in range(2 if isinstance(module, LSTM) else 1)]

    def function(data, *rest):
        hx, parameters = rest[: len(state)], dict(zip(names, rest[len(state) :], strict=True))
        hx = hx if len(hx) == 2 else hx[0]
        return tuple(tensors(torch.func.functional_call(module, parameters, (packed._replace(data=data), hx, masks))))

    leaves = [t.detach().clone().requires_grad_() for t in (packed.data, *state, *module.parameters())]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
