"""The modules as citizens of PyTorch: state dicts, copies, dtypes, autocast, functional use; and wrong arguments."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

from rnndrop_plugin import modules
from rnndrop_plugin.modules import GRU, LSTM, RNN
from rnndrop_plugin.ops import Mask, Masks

CELLS = {
    "lstm": (LSTM, {"update_dropout": 0.3, "hidden_dropout": 0.2, "cell_dropout": 0.1}),
    "gru": (GRU, {"update_dropout": 0.3, "hidden_dropout": 0.2, "cell_dropout": 0.1}),
    "gru-reset_after": (GRU, {"update_dropout": 0.3, "hidden_dropout": 0.2, "reset_after": True}),
    "rnn": (RNN, {"hidden_dropout": 0.3}),
}
PAPERS = r"paper's form \(reset_after=False\)"
TORCHS = r"torch.nn.GRU's form \(reset_after=True\)"


@pytest.fixture(params=CELLS)
def module(request):
    cell, options = CELLS[request.param]
    return cell(3, 5, 2, bidirectional=True, **options)


def seeded(module, *arguments, seed=5):
    torch.manual_seed(seed)
    return module(*arguments)[0]


X = torch.linspace(-2, 2, 4 * 2 * 3).reshape(4, 2, 3)


def test_deepcopy(module):
    clone = copy.deepcopy(module)
    assert torch.equal(seeded(clone, X), seeded(module, X))
    with torch.no_grad():
        for p in clone.parameters():
            p.zero_()
    assert seeded(module, X).any()
    assert not seeded(clone, X).any()


def test_pickling(module):
    for clone in (pickle.loads(pickle.dumps(module)), pickle.loads(pickle.dumps(module.eval()))):
        assert clone.training == module.train(clone.training).training
        assert torch.equal(seeded(clone, X), seeded(module, X))
        assert repr(clone) == repr(module)


def test_state_dicts_through_a_file(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    other.reset_parameters()
    assert not torch.equal(seeded(other, X), seeded(module, X))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(seeded(other, X), seeded(module, X))


def test_positional_arguments_are_those_of_torch():
    for cell, before_bias in (("LSTM", ()), ("GRU", ()), ("RNN", ("relu",))):
        arguments = (3, 5, 2, *before_bias, False, True, 0.5, True, 0, "meta", torch.float64)
        ours, theirs = getattr(modules, cell)(*arguments), getattr(nn, cell)(*arguments)
        for name in ("mode", "bias", "batch_first", "dropout", "bidirectional"):
            assert getattr(ours, name) == getattr(theirs, name)
        for (name, x), (other, y) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert (name, x.shape, x.device, x.dtype) == (other, y.shape, y.device, y.dtype)
    assert RNN(3, 5, num_layers=2, nonlinearity="relu", bias=False).mode == "RNN_RELU"
    with pytest.raises(TypeError, match="nonlinearity"):
        RNN(3, 5, 2, "relu", nonlinearity="tanh")
    with pytest.raises(ValueError, match="proj_size is not supported"):
        LSTM(3, 5, 1, True, False, 0.0, False, 2)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("saved", "own"), [(False, True), (True, False)])
def test_one_form_of_the_gru_refuses_the_others_weights(saved, own, strict):
    state = nn.ModuleDict({"decoder": GRU(3, 5, reset_after=saved)}).state_dict()
    target = nn.ModuleDict({"decoder": GRU(3, 5, reset_after=own)})
    before = copy.deepcopy(target.state_dict())
    forms = {False: PAPERS, True: TORCHS}
    message = f"decoder: the state dict is from a GRU of .*{forms[saved]}, but the module is of .*{forms[own]}"
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(state, strict=strict)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_torchs_gru_and_the_papers_form_refuse_each_other():
    with pytest.raises(RuntimeError, match=f"GRU: the state dict is from a GRU of {TORCHS}, .*{PAPERS}"):
        GRU(3, 5).load_state_dict(nn.GRU(3, 5).state_dict())
    with pytest.raises(RuntimeError, match="reset_before"):
        nn.GRU(3, 5).load_state_dict(GRU(3, 5).state_dict())


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_state_dict_without_a_gru_says_nothing_about_its_form(reset_after):
    model = nn.ModuleDict({"embed": nn.Embedding(2, 3), "rnn": GRU(3, 5, reset_after=reset_after)})
    embedding = {"embed.weight": torch.ones(2, 3)}
    model.load_state_dict(embedding, strict=False)
    assert (model["embed"].weight == 1).all()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(embedding)


def test_the_grus_flag_survives_averaging_and_half():
    state = GRU(3, 5).state_dict()
    average = {k: (v + v) / 2 for k, v in state.items()}
    average = {k: v.mul_(0.9).add_(state[k], alpha=0.1) for k, v in average.items()}  # as fairseq's EMA does
    GRU(3, 5).load_state_dict(average)
    GRU(3, 5).load_state_dict(GRU(3, 5).half().state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_half_precision(module, dtype, tolerance, training):
    exact = copy.deepcopy(module).train(training)
    module = module.to(dtype).train(training)
    x = X.to(dtype).requires_grad_()
    output = seeded(module, x)
    assert output.dtype == dtype
    output.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    for p in module.parameters():
        assert p.grad.dtype == dtype and p.grad.isfinite().all()
    torch.testing.assert_close(output.float(), seeded(exact, X), rtol=0, atol=tolerance)
    state = module(x)[1]
    assert {s.dtype for s in (state if isinstance(state, tuple) else (state,))} == {dtype}
    assert module(x, state)[0].dtype == dtype


@pytest.mark.parametrize(("ours", "theirs"), [(LSTM, nn.LSTM), (RNN, nn.RNN)])
def test_autocast(ours, theirs):
    ours, theirs = ours(3, 5, 2, backend="reference"), theirs(3, 5, 2)
    ours.load_state_dict(theirs.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, state = ours(X)
        expected, expected_state = theirs(X)
    pairs = zip(
        (result, *state) if isinstance(state, tuple) else (result, state),
        (expected, *expected_state) if isinstance(state, tuple) else (expected, expected_state),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)  # of equal dtype, too


def test_autocast_with_dropout(module):
    exact = seeded(module, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = seeded(module, X)
        state = module(X)[1]
        again = module(X, state)[0]  # the state in autocast's dtype, the input in float32
    assert output.dtype == again.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=3e-2)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in module.parameters())


def test_autocast_in_float16_where_torchs_kernel_has_none(module):
    layer = module.eval()
    expected = layer(X)[0]
    with torch.autocast("cpu", dtype=torch.float16):
        output = layer(X)[0]
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.01)


def test_autocast_leaves_float64_alone(module):
    module, x = module.double(), X.double()
    exact = seeded(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(seeded(module, x), exact)  # as torch.nn.LSTM does


@pytest.mark.parametrize("name", CELLS)
def test_made_on_the_meta_device(name):
    cell, options = CELLS[name]
    module, real = cell(3, 5, device="meta", **options), cell(3, 5, **options)
    assert all(t.is_meta for t in module.state_dict().values())
    module.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(seeded(module, X), seeded(real, X))


def test_runs_on_the_meta_device(module):
    assert module.to("meta")(X.to("meta"))[0].shape == (4, 2, 10)


def test_functional_call(module):
    others = {k: torch.randn_like(v) for k, v in module.state_dict().items()}
    torch.manual_seed(5)
    output = functional_call(module, others, (X,))[0]
    double = {k: v.double() for k, v in others.items()}
    torch.manual_seed(5)
    in_double = functional_call(module, double, (X.double(),))[0]
    original = seeded(module, X)
    module.load_state_dict(others)
    assert torch.equal(output, seeded(module, X))
    assert in_double.dtype == torch.float64
    torch.testing.assert_close(in_double.float(), output)
    assert not torch.equal(output, original)


def test_parametrized_weights(module):
    plain = copy.deepcopy(module)
    parametrizations.weight_norm(module, "weight_hh_l0")
    torch.testing.assert_close(seeded(module, X), seeded(plain, X))
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)  # the norm
        plain.weight_hh_l0.mul_(2)
    for training in (True, False):
        output = seeded(module.train(training), X)
        torch.testing.assert_close(output, seeded(plain.train(training), X))
    module.train()(X)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original1.grad.any()


def test_moving_between_dtypes_and_loading_keeps_the_weights_in_use(module):
    module.double().float()
    for p in module.parameters():
        nn.init.zeros_(p)
    assert not seeded(module, X).any()


def test_an_empty_batch(module):
    output, _ = module(X[:, :0])
    assert output.shape == (4, 0, 10)


def test_repr_says_what_is_dropped():
    lstm = LSTM(3, 5, 2, dropout=0.1, update_dropout=0.25, cell_dropout=0.5, cell_sampling="sequence")
    assert (
        repr(lstm)
        == "LSTM(3, 5, num_layers=2, dropout=0.1, update_dropout=0.25 per step, cell_dropout=0.5 per sequence)"
    )
    rnn = RNN(3, 5, hidden_dropout=0.5, scaling="expected", nonlinearity="relu", backend="reference")
    assert repr(rnn) == (
        "RNN(3, 5, hidden_dropout=0.5 per step, scaling=expected, nonlinearity=relu, backend=reference)"
    )
    assert repr(GRU(3, 5, reset_after=True)) == "GRU(3, 5, reset_after=True)"
    assert repr(LSTM(3, 5)) == repr(nn.LSTM(3, 5))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        *(
            (LSTM, {f"{kind}_dropout": rate}, rf"{kind}_dropout must be in \[0, 1\), got {rate!r}")
            for kind in ("update", "hidden", "cell")
            for rate in (-0.1, 1.0, 1.5, float("nan"), "much", None)
        ),
        (RNN, {"hidden_dropout": 1}, r"hidden_dropout must be in \[0, 1\), got 1"),
        (RNN, {"update_dropout": 0.1}, "update_dropout must be 0: an RNN has no update to drop"),
        (RNN, {"cell_dropout": 0.1}, "cell_dropout must be 0: an RNN has no cell to drop"),
        (LSTM, {"sampling": "batch"}, "sampling must be one of step, sequence, got 'batch'"),
        (GRU, {"cell_sampling": "batch"}, "cell_sampling must be one of step, sequence, got 'batch'"),
        (LSTM, {"scaling": "no"}, "scaling must be one of inverted, expected, got 'no'"),
        (RNN, {"nonlinearity": "elu"}, "nonlinearity must be one of tanh, relu, got 'elu'"),
        (GRU, {"nonlinearity": "elu"}, "nonlinearity must be one of tanh, relu, got 'elu'"),
        (LSTM, {"backend": "fastest"}, "backend must be one of auto, .*, got 'fastest'"),
        (LSTM, {"proj_size": 2}, "proj_size is not supported"),
        (GRU, {"proj_size": 2}, "proj_size is not supported"),
        (RNN, {"proj_size": 2}, "proj_size is not supported"),
        (LSTM, {"dropout": 1.5}, "dropout should be a number in range"),
    ],
)
def test_wrong_arguments(module, options, message):
    with pytest.raises(ValueError, match=message) as error:
        module(3, 5, **options)
    assert "\n" not in str(error.value)


def test_dropout_between_layers_of_a_single_layer_warns():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LSTM(3, 5, dropout=0.5, update_dropout=0.5)
    assert any("num_layers greater than 1" in str(w.message) for w in caught)


H = torch.zeros(1, 2, 5)
BAD_CALLS = {
    "input-size": (LSTM, (X[..., :2],), "input.size.-1. must be equal to input_size. Expected 3, got 2"),
    "input-4d": (LSTM, (X[None],), "input to be 2D or 3D, got 4D"),
    "input-1d": (LSTM, (X[0, 0],), "input to be 2D or 3D, got 1D"),
    "input-dtype": (LSTM, (X.double(),), "input dtype .torch.float64. does not match weight dtype .torch.float32."),
    "input-empty": (LSTM, (X[:0],), "at least one step"),
    "packed-size": (LSTM, (pack_sequence([X[:, 0, :2]]),), "Expected 3, got 2"),
    "hx-batch": (LSTM, (X, (H[:, :1], H)), r"Expected hidden size \(1, 2, 5\), got \[1, 1, 5\]"),
    "cx-batch": (LSTM, (X, (H, H[:, :1])), r"Expected hidden size \(1, 2, 5\), got \[1, 1, 5\]"),
    "hx-2d": (LSTM, (X, (H[0], H[0])), r"Expected hidden size \(1, 2, 5\), got \[2, 5\]"),
    "hx-packed": (LSTM, (pack_sequence([X[:, 0]]), (H, H)), r"Expected hidden size \(1, 1, 5\), got \[1, 2, 5\]"),
    "unbatched-hx-3d": (LSTM, (X[:, 0], (H[:, :1],) * 2), r"Expected hidden size \(1, 5\), got \[1, 1, 5\]"),
    "hx-dtype": (LSTM, (X, (H, H.double())), "hx is of torch.float64, the input of torch.float32"),
    "hx-tensor": (LSTM, (X, H), "hx must be a tuple of two tensors, h and c, got Tensor"),
    "hx-three": (LSTM, (X, (H, H, H)), "hx must be a tuple of two tensors, h and c, got Tensor, Tensor, Tensor"),
    "hx-none": (LSTM, (X, (H, None)), "hx must be a tuple of two tensors, h and c, got Tensor, NoneType"),
    "gru-hx-tuple": (GRU, (X, (H, H)), "hx must be a tensor, got tuple"),
    "rnn-hx-size": (RNN, (X, H[..., :4]), r"Expected hidden size \(1, 2, 5\), got \[1, 2, 4\]"),
    "masks-none": (LSTM, (X, None, []), "masks must be 1 Masks, one for each layer and direction, got none"),
    "masks-number": (GRU, (X, None, [Masks()] * 2), "masks must be 1 Masks, .*, got Masks, Masks"),
    "masks-type": (RNN, (X, None, Masks()), "masks must be 1 Masks, .*, got Mask, Mask, Mask"),
    "masks-packed": (
        LSTM,
        (pack_sequence([X[:, 0], X[:2, 0]][::-1], enforce_sorted=False), None, [Masks(Mask(torch.ones(3, 5) > 0))]),
        r"the update mask must be \(2, 5\) or \(4, 2, 5\), got \(3, 5\)",
    ),
    "masks-shape": (
        LSTM,
        (X, None, [Masks(cell=Mask(torch.ones(4, 5, dtype=torch.bool)))]),
        r"the cell mask must be \(2, 5\) or \(4, 2, 5\), got \(4, 5\)",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_wrong_calls(case):
    module, arguments, message = BAD_CALLS[case]
    with pytest.raises((ValueError, RuntimeError, TypeError), match=message) as error:
        module(3, 5, hidden_dropout=0.5)(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["hx-tensor", "hx-three", "hx-none", "gru-hx-tuple"])
def test_a_state_of_another_form_is_refused_where_torch_runs_the_layer(case):
    module, arguments, message = BAD_CALLS[case]
    form = {"reset_after": True} if module is GRU else {}
    with pytest.raises(TypeError, match=message):
        module(3, 5, **form)(*arguments)


WITHOUT_FAIRSEQ = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fairseq", "hydra", "omegaconf"):
            raise ImportError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())

import torch
from rnndrop_plugin import modules
from rnndrop_plugin.modules import GRU, LSTM, RNN
torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(8, 16, 4)
target = x.cumsum(0)[..., :1].tanh()
for module in (LSTM(4, 16, update_dropout=0.1), GRU(4, 16, update_dropout=0.1), RNN(4, 16, hidden_dropout=0.1)):
    model = torch.nn.ModuleList([module, torch.nn.Linear(16, 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = (model[1](model[0](x)[0]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(type(module).__name__, sum(losses[-3:]) < sum(losses[:3]) / 2)
assert "fairseq" not in sys.modules
"""


def test_modules_train_without_fairseq():
    result = subprocess.run([sys.executable, "-c", WITHOUT_FAIRSEQ], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:3] == ["LSTM True", "GRU True", "RNN True"]
