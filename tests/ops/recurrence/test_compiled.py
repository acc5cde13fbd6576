"""What only the compiled recurrence can get wrong: instruction sets, threads, processes and its library."""

import logging
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from rnndrop_plugin.ops import Mask, Masks, Weights, c_library, choose_backend, recurrence
from rnndrop_plugin.ops.recurrence import compiled
from rnndrop_plugin.ops.recurrence.reference import GATES
from tests.conftest import needs_library


def random_problem(cell, time, batch, features, hidden, dtype=torch.float32):
    torch.manual_seed(0)
    rows = GATES[cell] * hidden

    def leaf(*shape, scale=1.0):
        return (torch.randn(*shape, dtype=dtype) * scale).requires_grad_()

    weights = Weights(
        leaf(rows, features, scale=features**-0.5),
        leaf(rows, hidden, scale=0.5 * hidden**-0.5),
        leaf(rows, scale=0.1),
        leaf(rows, scale=0.1),
    )
    masks = Masks(
        Mask(torch.rand(time, batch, hidden) < 0.7, 1 / 0.7),
        Mask(torch.rand(batch, hidden) < 0.8, 1 / 0.8),
        Mask(torch.rand(time, batch, hidden) < 0.9),
    )
    if cell == "rnn":  # which has nothing else to drop
        masks = Masks(hidden=masks.hidden)
    state = tuple(leaf(batch, hidden) for _ in range(2 if cell == "lstm" else 1))
    return cell, leaf(time, batch, features), state, weights, masks


def results(problem, backend="cpu", **options):
    _, input, state, weights, _ = problem
    output, final = recurrence(*problem, backend=backend, **options)
    loss = output.square().sum() + sum(s.sum() for s in final)
    return [output, *final, *torch.autograd.grad(loss, (input, *state, *weights))]


def assert_close(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        difference = (x.detach().double() - y.detach().double()).abs().max()
        assert float(difference) <= tolerance * float(y.detach().abs().max())


@needs_library
@pytest.mark.parametrize("instructions", [b"plain", b"avx2", b"avx512"])
@pytest.mark.parametrize("cell", GATES)
def test_every_instruction_set(cell, instructions):
    loaded, _ = c_library.load()
    try:
        if not loaded.rnndrop_set_instructions(instructions):
            pytest.skip(f"this machine does not have {instructions.decode()}")
        for batch in (3, 20, 45):
            problem = random_problem(cell, 6, batch, 9, 37)
            assert_close(results(problem), results(problem, "reference"), 2e-5)
            problem = random_problem(cell, 6, batch, 9, 37, torch.float64)
            assert_close(results(problem), results(problem, "reference"), 1e-12)
        assert loaded.rnndrop_instructions() == instructions
    finally:
        loaded.rnndrop_set_instructions(None)


@needs_library
@pytest.mark.parametrize("cell", GATES)
def test_sums_longer_than_a_block(cell):
    problem = random_problem(cell, 3, 5, 521, 530, torch.float64)
    assert_close(results(problem), results(problem, "reference"), 1e-12)


@needs_library
@pytest.mark.parametrize("cell", GATES)
def test_result_does_not_depend_on_threads(cell):
    problem = random_problem(cell, 9, 35, 20, 250)
    lengths = torch.arange(35) % 9 + 1
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(results(problem, lengths=lengths, reverse=True))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_sigmoid_and_tanh_are_accurate(dtype, tolerance):
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, torch.inf, -torch.inf], dtype=dtype)
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.linspace(-1, 1, 4001), torch.logspace(-30, 1, 1000)]).to(dtype)
    x = torch.cat([special, x])[None, :, None]
    none, one = torch.zeros(4, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    state = torch.zeros(x.size(1), 1, dtype=dtype)
    tanh, _ = recurrence("rnn", x, (state,), Weights(one, 0 * one), backend="cpu")
    expected = torch.tanh(x.double())
    assert bool(((tanh - expected).abs() <= tolerance * expected.abs()).all())

    finite = x[:, x[0, :, 0].isfinite()]
    state = state[: finite.size(1)]
    to_forget_gate = none.clone()
    to_forget_gate[1] = 1  # c = sigmoid(x) * 1
    _, (_, sigmoid) = recurrence("lstm", finite, (state, state + 1), Weights(to_forget_gate, none), backend="cpu")
    expected = torch.sigmoid(finite[0].double())
    in_range = finite[0] > -80  # below, float32 comes to its smallest numbers
    assert bool(((sigmoid - expected).abs() <= tolerance * expected + 1e-37)[in_range].all())

    nan, _ = recurrence("rnn", x[:, :3] * torch.nan, (state[:3],), Weights(one, 0 * one), backend="cpu")
    assert bool(nan.isnan().all())


@needs_library
@pytest.mark.parametrize("cell", GATES)
def test_saves_nothing_without_gradient(cell):
    from rnndrop_plugin.ops.recurrence.autograd import Options, Problem

    _, input, state, weights, masks = random_problem(cell, 4, 3, 5, 6)
    options = Options(cell, masks, "tanh", None, False)
    with torch.no_grad():
        assert compiled.forward(Problem(options, input, state, weights), save=False)[2] == ()


@needs_library
@pytest.mark.parametrize("offset", [1, 4])  # bytes: less than an element, less than a vector
@pytest.mark.parametrize("cell", GATES)
def test_what_was_saved_comes_back_at_another_address(cell, offset):
    def misalign(x):
        memory = torch.empty(x.numel() * x.element_size() + 128, dtype=torch.uint8)
        start = -memory.data_ptr() % 64 + offset
        copy = torch.frombuffer(memory.numpy(), dtype=x.dtype, count=x.numel(), offset=start).view(x.shape)
        assert copy.data_ptr() % 64 == offset
        return copy.copy_(x)

    problem = random_problem(cell, 4, 20, 5, 37)
    expected = results(problem)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, misalign):
        found = results(problem)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@needs_library
def test_what_was_saved_comes_back_in_other_strides():
    def transpose_twice(x):
        return x if x.dim() < 2 else x.transpose(0, 1).contiguous().transpose(0, 1)

    problem = random_problem("lstm", 4, 20, 5, 37)
    expected = results(problem)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, transpose_twice):
        found = results(problem)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def run_python(code: str) -> str:
    prelude = """
    import sys
    sys.modules["fairseq"] = None  # not needed, slow to import, and its dependencies bring runtimes of their own
    import torch
    torch.set_num_threads(2)
    from rnndrop_plugin.ops import Weights, recurrence
    x, h = torch.randn(5, 32, 64), torch.zeros(32, 256)
    w = Weights(torch.randn(1024, 64), torch.randn(1024, 256))
    def run(): return recurrence("lstm", x, (h, h), w, backend="cpu")[0]
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
def test_one_openmp_runtime():
    runtimes = run_python("""
    run()
    print(*{line.split()[-1] for line in open("/proc/self/maps")}, sep="\\n")
    """)
    assert "librecurrence" in runtimes
    assert len(re.findall(r"lib(?:gomp|omp|iomp5)[^/\n]*\.so", runtimes)) == 1


@needs_library
def test_two_threads_work_at_once():
    # The clock of the process must run faster than that of its main thread while the recurrence runs.
    run_python("""
    import time
    run()
    process, thread = time.process_time(), time.thread_time()
    for _ in range(20): run()
    process, thread = time.process_time() - process, time.thread_time() - thread
    assert process > 1.2 * thread, (process, thread)
    """)


@needs_library
def test_forked_child_runs():
    run_python("""
    import os, signal
    expected = run().numpy().tobytes()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs, as torch's own operations on two threads would
        os._exit(0 if run().numpy().tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    """)


@needs_library
def test_denormal_numbers_stay():
    assert run_python("run(); print(float(torch.tensor(1e-40) * 0.5) > 0)").strip() == "True"


@pytest.fixture
def library_path(tmp_path, monkeypatch):
    """Where the backend looks for its library and sources, in a new folder that has the sources."""
    shutil.copytree(c_library.LIBRARY.parent / "csrc", tmp_path / "csrc")
    path = tmp_path / c_library.LIBRARY.name
    monkeypatch.setattr(c_library, "LIBRARY", path)
    c_library.load.cache_clear()
    c_library.warn_unavailable.cache_clear()
    yield path
    c_library.load.cache_clear()
    c_library.warn_unavailable.cache_clear()


def expect_torch_operations(caplog, reason):
    caplog.set_level(logging.WARNING)
    problem = random_problem("lstm", 3, 2, 4, 5)
    assert choose_backend("gru") == "torch"
    for _ in range(2):
        assert_close(results(problem, "auto"), results(problem, "reference"), 1e-5)
    (record,) = caplog.records
    assert re.search(reason, record.getMessage())
    assert "where there is a C compiler" in record.getMessage()
    with pytest.raises(ValueError, match=f"backend 'cpu' cannot run this recurrence: .*{reason}"):
        recurrence(*problem, backend="cpu")


def test_absent_library(library_path, caplog):
    expect_torch_operations(caplog, "was not compiled")


def test_broken_library(library_path, caplog):
    library_path.write_bytes(b"not a library")
    expect_torch_operations(caplog, "cannot be used")


@needs_library
def test_stale_library(library_path, caplog):
    shutil.copy(c_library.__file__.replace("c_library.py", library_path.name), library_path)
    assert c_library.unavailable() is None
    c_library.load.cache_clear()
    with (library_path.parent / "csrc" / "kernel.c").open("a") as source:
        source.write("/* changed */\n")
    expect_torch_operations(caplog, "was compiled from other sources")


def test_named_backends_take_no_log_line(library_path, caplog):
    results(random_problem("lstm", 3, 2, 4, 5), "torch")
    choose_backend("lstm", device="cuda")
    assert not caplog.records
