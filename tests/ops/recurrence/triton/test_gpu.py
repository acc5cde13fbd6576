"""The kernels on a GPU: ``python -m pytest -m gpu``."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from rnndrop_plugin.modules import GRU, LSTM, RNN
from rnndrop_plugin.ops import Mask, Masks, availability, choose_backend, recurrence
from rnndrop_plugin.ops.packing import pack
from rnndrop_plugin.ops.recurrence import triton as kernel
from rnndrop_plugin.ops.recurrence.reference import GATES

DEVICE = torch.device("cuda", 0)
ALL = ("update", "hidden", "cell")

if reason := availability.obstacle(DEVICE, torch.float32):
    pytest.skip(f"Triton's kernels cannot run on this GPU: {reason}", allow_module_level=True)

from rnndrop_plugin.ops.recurrence.triton import backend, loops, tiles  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_barrier_failed():
    yield
    torch.cuda.synchronize()
    backend.raise_if_failed(DEVICE)


@contextmanager
def products_in_tf32(allowed: bool):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def float32():
    """Products in float32 as exact as they can be."""
    with products_in_tf32(False):
        yield


@pytest.fixture
def tf32():
    """Products in float32 in TF32."""
    with products_in_tf32(True):
        yield


def layer(cls=LSTM, size=(12, 48), **options):
    torch.manual_seed(0)
    return cls(*size, device=DEVICE, **{"update_dropout": 0.25} | options)


def packed_layer(cls):
    """A layer that reads packed sequences in both directions, what it reads, and masks of all its kinds.

    Its kernels are those of EXACT.
    """
    torch.manual_seed(0)
    kinds = ("hidden",) if cls is RNN else ALL
    masks = [
        Masks(**{kind: Mask(torch.rand(6, 3, 50, device=DEVICE) < 0.7, 1 / 0.7) for kind in kinds}) for _ in range(4)
    ]
    sequences = [torch.randn(n, 12, device=DEVICE) for n in (4, 6, 1)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    return cls(12, 50, num_layers=2, bidirectional=True, device=DEVICE), packed, masks


# Compiling takes half a second a kernel, so the tests below share the kernels of these tables where they can.
LENGTHS = [5, 1, 0, 3, *[5] * 16]
EXACT = {
    f"{cell} {'backwards' if reverse else 'forwards'}": (
        (cell, (5, 20, 12, 50), ALL),
        {"lengths": LENGTHS, "reverse": reverse},
    )
    for cell in GATES
    for reverse in (True, False)
} | {
    "lstm without masks": (("lstm", (4, 17, 12, 48)), {"relu": True, "bias": False}),
    "gru without lengths": (("gru", (4, 17, 12, 48), ("update",)), {}),
}
ROUNDED = {
    f"{cell} in {dtype}": ((cell, (5, 20, 12, 50), ALL), {"sampling": "sequence", "dtype": dtype}, tolerance)
    for cell, dtype, tolerance in (
        *((cell, torch.bfloat16, 0.1) for cell in GATES),
        ("lstm", torch.float16, 0.02),
        ("gru", torch.float16, 0.02),
    )
} | {
    f"{batch} x {hidden} in {dtype}": (("lstm", (6, batch, 64, hidden), ("update",)), {"dtype": dtype}, tolerance)
    for batch, hidden, dtype, tolerance in (
        (32, 48, torch.float32, 0.01),
        (32, 48, torch.float16, 0.02),
        (32, 48, torch.bfloat16, 0.06),
        (32, 256, torch.float32, 0.01),
        (32, 256, torch.bfloat16, 0.06),
        (20, 650, torch.bfloat16, 0.06),
        (32, 1024, torch.float32, 0.01),
    )
}


@pytest.fixture(scope="module", autouse=True)
def compiled_ahead(problem):
    """The kernels of the two tables, compiled beside each other."""

    def run(arguments, options, *_):
        with torch.no_grad():
            p = problem(*arguments, **options, device=DEVICE)
            output, final, saved = kernel.forward(p.whole, save=True)
            kernel.backward(p.whole, saved, tuple(map(torch.zeros_like, (output, *final))), True)

    with ThreadPoolExecutor(8) as pool:
        for table, allowed in ((EXACT, False), (ROUNDED, True)):
            with products_in_tf32(allowed):
                list(pool.map(lambda case: run(*case), table.values()))


@pytest.mark.parametrize("name", EXACT)
def test_agrees_exactly(float32, problem, name):
    arguments, options = EXACT[name]
    problem(*arguments, **options, device=DEVICE).check(kernel, 1e-4)


@pytest.mark.parametrize("name", ROUNDED)
def test_agrees_within_rounding(tf32, problem, name):
    arguments, options, tolerance = ROUNDED[name]
    problem(*arguments, **options, device=DEVICE).check(kernel, tolerance)


@pytest.mark.parametrize("cell", GATES)
def test_step_by_step(float32, monkeypatch, problem, cell):
    monkeypatch.setattr(backend, "chosen", lambda *key: None)
    problem(cell, (5, 20, 12, 50), ALL, lengths=LENGTHS, device=DEVICE).check(kernel, 1e-4)


def test_the_gpu_may_be_the_default_device(float32, problem):
    backend._failure_flag.cache_clear()
    p = problem("lstm", (3, 2, 5, 48), ("update",), device=DEVICE)
    with DEVICE:
        found = p.results(kernel)
    assert all(torch.equal(x, y) for x, y in zip(found, p.results(kernel), strict=True))


def test_one_compilation_serves_all_batches(float32, problem):
    """Of every number of steps and sequences."""
    for time, batch in ((1, 1), (3, 2), (2, 16), (5, 31), (4, 32)):
        problem("gru", (time, batch, 5, 48), ("update",), device=DEVICE).check(kernel, 1e-4)


@pytest.mark.parametrize("cell, dtype", [("lstm", torch.bfloat16), ("gru", torch.float32)])
def test_repetitions_are_the_same_bit_for_bit_under_load(tf32, problem, cell, dtype):
    p = problem(cell, (40, 32, 64, 256), ("update",), dtype=dtype, device=DEVICE)
    expected = [x.clone() for x in p.results(kernel)]
    load = torch.randn(4096, 4096, device=DEVICE)
    beside = torch.cuda.Stream()
    for repetition in range(200):
        if repetition % 5 == 0:
            with torch.cuda.stream(beside):
                torch.mm(load, load)
        found = p.results(kernel)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), repetition


def test_an_oversubscribed_grid_is_refused_and_taken_step_by_step(float32, monkeypatch, problem):
    """A cut of more blocks than can be on the device at once must be refused by the driver: nothing hangs."""
    processors, shared = tiles.device_limits(DEVICE)
    small = tiles.choose("forward", "lstm", 16, 8, "tf32x3", processors, shared)
    monkeypatch.setattr(tiles, "_chosen", {})
    monkeypatch.setattr(tiles, "choose", lambda *arguments: small)
    launched = []
    launch = backend.launch
    monkeypatch.setattr(
        backend, "launch", lambda kernel, *rest, **more: launched.append(kernel) or launch(kernel, *rest, **more)
    )
    batch = 16 * 64 * processors  # 64 blocks of four warps each are more than a multiprocessor holds
    problem("lstm", (1, batch, 3, 8), device=DEVICE).check(kernel, 1e-4)
    assert launched[0] is loops.forward and len(launched) > 2
    assert set(tiles._chosen.values()) == {None}
    assert not tiles.is_persistent("lstm", batch, 8, "tf32x3", DEVICE)


@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_layers_take_packed_batches_in_both_directions(float32, cls):
    ours, packed, masks = packed_layer(cls)
    found = []
    for name in ("triton", "reference"):
        ours.backend = name
        output, state = ours(packed, masks=masks)
        h = state[0] if cls is LSTM else state
        found.append(
            [output.data, h, *torch.autograd.grad(output.data.square().sum() + h.sum(), list(ours.parameters()))]
        )
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_a_call_is_captured_in_a_cuda_graph(tf32, problem):
    p = problem("lstm", (12, 32, 16, 48), ("update",), device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            p.results(kernel)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = p.results(kernel)
    with torch.no_grad():
        p.input.normal_()
    graph.replay()
    for x, y in zip(captured, p.results(kernel), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)  # cuBLAS may choose another product, in TF32


def test_graphed_callables_draw_new_masks_at_each_replay():
    lstm = layer(update_dropout=0.5)
    input = torch.randn(10, 32, 12, device=DEVICE, requires_grad=True)

    class Output(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, x):
            return self.lstm(x)[0]

    graphed = torch.cuda.make_graphed_callables(Output(), (input,))
    first, second = graphed(input).clone(), graphed(input).clone()
    assert not torch.equal(first, second)
    second.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in lstm.parameters())


def test_torch_compile_with_cuda_graphs():
    lstm = layer()
    masks = lstm.draw_masks(10, 32)
    input = torch.randn(10, 32, 12, device=DEVICE)
    compiled = torch.compile(lambda x: lstm(x, masks=masks)[0], mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        output = compiled(input)
        output.square().sum().backward()
        found = [output.detach().clone(), *(p.grad.clone() for p in lstm.parameters())]
        lstm.zero_grad()
    expected = lstm(input, masks=masks)[0]
    expected.square().sum().backward()
    for x, y in zip(found, [expected, *(p.grad for p in lstm.parameters())], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_nothing_waits_for_the_device(float32):
    """Neither the packing of a batch nor a step of a layer synchronises; of whole models see tasks/test_waiting.py."""
    gru, packed, masks = packed_layer(GRU)
    padded = torch.randn(6, 3, 12, device=DEVICE)

    def step():
        gru(pack(padded, torch.tensor([4, 6, 1])), masks=masks)[0].data.sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_is_chosen(float32, problem):
    masks = problem("lstm", (2, 2, 3, 8), ("update",), device=DEVICE).options.masks
    assert choose_backend("lstm", masks, device=DEVICE) == "triton"
    assert choose_backend("lstm", masks, device=DEVICE, dtype=torch.float64) == "torch"
    assert choose_backend("lstm", device=DEVICE) == "vendor"
    assert choose_backend("lstm", device=DEVICE, batch=4096, hidden=2048) == "vendor"
    p = problem("gru", (3, 2, 3, 48), ("update",), device=DEVICE)
    recurrence("gru", p.input, p.state, p.weights, p.options.masks)
    assert any(key[0] == "forward" and key[4] == "gru" for key in backend._launchers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    lstm = layer()
    with torch.autocast("cuda", dtype=dtype):
        output, _ = lstm(torch.randn(5, 4, 12, device=DEVICE))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in lstm.parameters())


def test_a_learning_layer():
    """Remembering the first number of a sequence, which no layer does without a gradient through all its steps."""
    lstm = layer(size=(1, 48), update_dropout=0.1)
    head = torch.nn.Linear(48, 1, device=DEVICE)
    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(150):
        x = torch.randn(6, 64, 1, device=DEVICE)
        loss = (head(lstm(x)[0][-1]) - x[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses[-10:]).mean() < 0.2 * torch.stack(losses[:10]).mean()  # a CPU has at most 0.04
