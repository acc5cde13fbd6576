"""What PyTorch does to modules as a whole: each gives the module's own function, or an error that names the way out.

docs/transformations.md has the table.
"""

import io
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from rnndrop_plugin.modules import CRF, GRU, LSTM, RNN, Dropout, LSTMCell
from rnndrop_plugin.ops import Mask, Masks, Weights, c_library, draw_mask, recurrence

TIME, BATCH, INPUT, HIDDEN = 4, 3, 2, 5
COMPILED = c_library.unavailable() is None
ALL = {"update_dropout": 0.3, "hidden_dropout": 0.2, "cell_dropout": 0.4}
MODULES = {
    "lstm-nothing-dropped": lambda: LSTM(INPUT, HIDDEN),
    "lstm-training": lambda: LSTM(INPUT, HIDDEN, **ALL),
    "lstm-evaluation": lambda: LSTM(INPUT, HIDDEN, 2, scaling="expected", **ALL).eval(),
    "gru-training": lambda: GRU(INPUT, HIDDEN, **ALL),
    "gru-evaluation": lambda: GRU(INPUT, HIDDEN, reset_after=True, scaling="expected", **ALL).eval(),
    "rnn-evaluation": lambda: RNN(INPUT, HIDDEN, bidirectional=True, scaling="expected", hidden_dropout=0.2).eval(),
}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


@pytest.fixture
def function(module):
    """The module as a function of its input; where it trains, with masks that are the same in each call."""
    masks = module.draw_masks(TIME, BATCH) if module.training and module._drops_or_scales() else None
    return lambda x: module(x, None, masks)[0]


@pytest.fixture
def x():
    return torch.randn(TIME, BATCH, INPUT)


def by_reference(module, function, *arguments):
    """The same by the reference, which is differentiable in every way."""
    module.backend = "reference"
    try:
        return function(*arguments)
    finally:
        module.backend = "auto"


def test_forward_mode(module, function, x):
    """Also where no parameter needs a gradient, so that autograd records nothing."""
    module.requires_grad_(False)
    v = torch.randn_like(x)
    output, tangent = torch.func.jvp(function, (x,), (v,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v)))
    torch.testing.assert_close(output, function(x))
    torch.testing.assert_close(dual.tangent, tangent)
    step = 1e-2
    slope = (function(x + step * v) - function(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, slope, rtol=1e-2, atol=1e-3)


def test_gradients_of_parameters_by_torch_func(module, function, x):
    names, parameters = zip(*module.named_parameters(), strict=True)
    masks = module.draw_masks(TIME, BATCH)

    def loss(parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, named, (x, None, masks))[0].square().sum()

    torch.testing.assert_close(torch.func.grad(loss)(parameters), torch.autograd.grad(loss(parameters), parameters))


def test_jacobians_and_batched_gradients(module, function, x):
    expected = by_reference(module, torch.autograd.functional.jacobian, function, x)
    torch.testing.assert_close(torch.func.jacrev(function)(x), expected)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, x, vectorize=True), expected)


def test_hessian(module, function, x):
    def loss(x):
        return function(x).square().sum()

    expected = by_reference(module, torch.autograd.functional.hessian, loss, x)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.func.hessian(loss)(x), expected, rtol=1e-4, atol=1e-5)


def test_vmap(module, function):
    xs = torch.randn(3, TIME, BATCH, INPUT)
    torch.testing.assert_close(torch.func.vmap(function)(xs), torch.stack([function(x) for x in xs]))


def test_the_rate_is_the_same_under_vmap():
    def draw(x):
        return draw_mask(0.1, 5, 20, 50).keep & (x > 0)

    for randomness in ("same", "different"):
        keep = torch.func.vmap(draw, randomness=randomness)(torch.ones(2, 1))
        assert keep.float().mean() == pytest.approx(0.9, abs=0.02)


def test_vmap_draws_masks_as_it_is_told(x):
    lstm, xs = LSTM(INPUT, HIDDEN, update_dropout=0.5), x.expand(3, *x.shape)
    same = torch.func.vmap(lambda x: lstm(x)[0], randomness="same")(xs)
    different = torch.func.vmap(lambda x: lstm(x)[0], randomness="different")(xs)
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: lstm(x)[0])(xs)


@pytest.mark.parametrize("backend", ["torch", "vendor", *["cpu"] * COMPILED])
def test_a_backend_that_cannot_is_refused_with_the_way_out(backend, x):
    lstm = LSTM(INPUT, HIDDEN, backend=backend)
    for transformed in (torch.func.vmap(lambda x: lstm(x)[0]), torch.func.jacrev(lambda x: lstm(x)[0])):
        with pytest.raises(ValueError, match='under a transformation of torch.func .* backend="reference"'):
            transformed(x.unsqueeze(0))
    with forward_ad.dual_level(), pytest.raises(ValueError, match='forward-mode .* backend="reference"'):
        lstm(forward_ad.make_dual(x, x))
    if backend != "vendor":  # whose kernel is an operation of torch
        with pytest.raises(ValueError, match='under torch.jit.trace, .* backend="reference"'):
            torch.jit.trace(lstm, (x,))


@pytest.mark.filterwarnings("ignore")
def test_trace(module, function, x):
    module.requires_grad_(False)  # traced as constants
    with torch.no_grad():
        traced = torch.jit.trace(function, (x,))
        others = [torch.randn_like(x)]
        if not module.training:
            others.append(torch.randn(TIME, BATCH + 2, INPUT))
        for other in others:
            torch.testing.assert_close(traced(other), function(other))
        if module._drops_or_scales() and not isinstance(module, RNN):  # else it is torch.nn's kernel, for any time
            with pytest.raises(RuntimeError, match="Expected 4 elements in a list but found 6"):
                traced(torch.randn(TIME + 2, BATCH, INPUT))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_export_to_onnx(dynamo, x, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    lstm, file = LSTM(INPUT, HIDDEN, scaling="expected", **ALL).eval(), str(tmp_path / "lstm.onnx")
    with torch.no_grad():
        torch.onnx.export(lstm, (x,), file, dynamo=dynamo, input_names=["x"], verbose=False)
        other = torch.randn_like(x)
        found = onnxruntime.InferenceSession(file).run(None, {"x": other.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), lstm(other)[0])


@pytest.mark.parametrize("make", [lambda: LSTM(INPUT, HIDDEN), lambda: nn.Sequential(LSTMCell(INPUT, HIDDEN))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_is_refused_with_the_way_out(make):
    with pytest.raises(RuntimeError, match="torch.jit.script cannot compile LSTM.*use torch.compile or torch.export"):
        torch.jit.script(make())
    with pytest.raises(RuntimeError, match="torch.jit.script cannot compile CRF: use torch.compile"):
        torch.jit.script(CRF(3))


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("module", ["lstm-nothing-dropped", "gru-training", "rnn-evaluation"], indirect=True)
def test_compile(module, function, x, fresh_compiler):
    """In one graph and without a warning; outputs and gradients are those of the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=not module.training)
        results = [compiled(x), function(x)]
    leaves = list(module.parameters())
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result.square().sum(), leaves) for result in results))
    if not module.training:
        other = torch.randn(TIME + 3, 17, INPUT)
        torch.testing.assert_close(compiled(other), function(other))


def test_compile_to_machine_code_draws_masks_in_each_call(fresh_compiler):
    lstm = LSTM(INPUT, 50, nonlinearity="relu", update_dropout=0.25, update_sampling="sequence")
    with torch.no_grad():  # the output is 0 where the update is dropped
        for name, p in lstm.named_parameters():
            nn.init.zeros_(p)
            if name.startswith("bias_ih"):
                p.copy_(torch.tensor([100.0, -100.0, 1.0, 100.0]).repeat_interleave(50))
    compiled = torch.compile(lstm, fullgraph=True)
    x = torch.randn(3, 40, INPUT)
    outputs = [compiled(x)[0] for _ in range(2)]
    outputs[0].sum().backward()
    for output in outputs:
        assert abs((output > 0.5).double().mean() - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
        assert torch.equal(output[0], output[2])
    assert not torch.equal(*outputs)


class ManyMasks(nn.Module):
    """Draws masks of one rate and one shape many times: of every kind, layer, direction and step."""

    def __init__(self):
        super().__init__()
        rates = {"update_dropout": 0.5, "hidden_dropout": 0.5, "cell_dropout": 0.5, "weight_dropout": 0.5}
        self.lstm = LSTM(HIDDEN, HIDDEN, 2, bidirectional=True, **rates)
        self.cell = LSTMCell(2 * HIDDEN, HIDDEN, update_dropout=0.5)
        self.dropouts = nn.ModuleList([Dropout(0.5, "sequence"), Dropout(0.5, "sequence")])

    def forward(self, x):
        for dropout in self.dropouts:
            x = dropout(x)
        output, _ = self.lstm(x)
        state = None
        for step in output:
            state = self.cell(step, state)
        return state[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_draws_each_mask_anew_in_training(fresh_compiler, backend):
    """torch.compile merges operations that are equal, and a draw is not equal to another one."""
    module, x = ManyMasks(), torch.randn(TIME, BATCH, HIDDEN)
    compiled, results = torch.compile(module, backend=backend), []
    for call in (module, compiled):
        torch.manual_seed(5)
        output = call(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_checkpointing_in_a_compiled_model(x, fresh_compiler):
    lstm = LSTM(INPUT, HIDDEN, update_dropout=0.5)
    call = torch.compile(lambda x: checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False), backend="aot_eager")
    x = x.double().requires_grad_()
    lstm.double()
    direction, step = torch.randn_like(x), 1e-6

    def loss(x):
        torch.manual_seed(3)
        return call(x).sum()

    (gradient,) = torch.autograd.grad(loss(x), x)  # of the masks that the forward pass had, which are drawn again
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-8)


def test_vmap_in_a_compiled_function(function, x, fresh_compiler):
    xs = torch.stack([x, x + 1])
    torch.testing.assert_close(
        torch.compile(torch.func.vmap(function), backend="eager")(xs), torch.func.vmap(function)(xs)
    )


def test_packed_sequences_in_a_compiled_model(fresh_compiler):
    """A break in the graph, and the right result."""
    gru, packed = GRU(INPUT, HIDDEN, bidirectional=True), [torch.randn(n, INPUT) for n in (2, 4, 1)]

    def run(*sequences):
        output, state = gru(pack_sequence(sequences, enforce_sorted=False))
        return output.data.tanh(), state

    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(*packed), run(*packed))


def test_a_cell_in_a_compiled_loop(x, fresh_compiler):
    cell = LSTMCell(INPUT, HIDDEN, update_dropout=0.3, hidden_dropout=0.2, hidden_sampling="sequence")
    masks = cell.draw_masks(TIME, BATCH)

    def decode(x):
        state = None
        for t in range(TIME):
            state = cell(x[t], state, masks.at(t))
        return state

    compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), decode(x))


@pytest.mark.parametrize("module", ["lstm-nothing-dropped", "gru-evaluation"], indirect=True)
def test_export(module, x):
    sizes = ({0: torch.export.Dim("time", min=2), 1: torch.export.Dim("batch", min=2)},)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes), file)
    file.seek(0)
    program = torch.export.load(file)
    other = torch.randn(TIME + 2, BATCH + 1, INPUT)
    for p in (program, program.run_decompositions()):
        torch.testing.assert_close(p.module()(other)[0], module(other)[0])


def test_wrong_lengths_are_noticed_in_a_compiled_graph(fresh_compiler):
    weights, h = Weights(torch.ones(15, INPUT), torch.ones(15, HIDDEN)), (torch.zeros(BATCH, HIDDEN),)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x, lengths):
        return recurrence("gru", x, h, weights, lengths=lengths)[0]

    x = torch.randn(TIME, BATCH, INPUT)
    assert run(x, torch.tensor([1, 2, 4])).shape == (TIME, BATCH, HIDDEN)
    with pytest.raises(ValueError, match="lengths must be from 0 to 4, got 9"):
        run(x, torch.tensor([1, 2, 9]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_draws_the_same_masks_again(reentrant, x):
    lstm = LSTM(INPUT, HIDDEN, 2, dropout=0.5, **ALL)
    gradients = []
    for call in (lstm, lambda x: checkpoint(lstm, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(call(leaf)[0].sum(), leaf) if call is lstm or not reentrant else None)
        if gradients[-1] is None:
            call(leaf)[0].sum().backward()
            gradients[-1] = (leaf.grad,)
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_saved_tensors_may_be_moved(module, function, x):
    leaves = list(module.parameters())
    expected = torch.autograd.grad(function(x).sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
        output = function(x)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), leaves), expected)


def test_the_default_device_is_not_that_of_the_input(module, function, x):
    packed = pack_sequence([x[:n, 0] for n in (2, 4, 1)], enforce_sorted=False)
    expected = function(x)
    shape = module(packed)[0].data.shape
    with torch.device("meta"):
        torch.testing.assert_close(function(x), expected)
        output = module(packed)[0].data
        module(x)[0].sum().backward()  # draws masks
    assert output.shape == shape and output.device.type == "cpu" and output.isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_fake_tensors(name):
    with FakeTensorMode():
        module = MODULES[name]()
        output = module(torch.randn(TIME, BATCH, INPUT))[0]
        output.sum().backward()
    assert output.shape == (TIME, BATCH, HIDDEN * (2 if module.bidirectional else 1))
    assert all(p.grad.shape == p.shape for p in module.parameters())


def test_subclasses_of_tensors_are_seen(x):
    """One that counts operations: the recurrence is one of them, and its result is right."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.names.append(str(function))
            return function(*arguments, **keywords or {})

    lstm = LSTM(INPUT, HIDDEN, scaling="expected", **ALL).eval()
    with torch.no_grad():
        expected = lstm(x)[0]
        with Count() as count:
            assert torch.equal(lstm(x)[0], expected)
    assert "rnndrop.recurrence_forward.default" in count.names


def test_masks_of_other_dtypes_under_a_transformation(x):
    lstm = LSTM(INPUT, HIDDEN)
    masks = [Masks(update=Mask(torch.ones(BATCH, HIDDEN)))]
    with pytest.raises(ValueError, match="the update mask must be bool where its values cannot be checked"):
        torch.func.vmap(lambda x: lstm(x, None, masks)[0])(x.unsqueeze(0))
