import json
import sys
import time

import pytest
import torch


@pytest.fixture
def gpu(load):
    """The benchmark's module."""
    return load("gpu")


def test_the_plan_begins_each_table_with_what_it_is_compared_with(gpu):
    plan = list(gpu.comparisons(gpu.SHAPES, list(gpu.DTYPES), list(gpu.GATES)))
    for title, cases in plan:
        assert cases[0].options is None or title.startswith("growth")
        assert len({(case.family, case.dtype, case.training) for case in cases}) == 1
    measured = [case for _, cases in plan for case in cases]
    assert {case.shape for case in measured} > set(gpu.SHAPES)
    lstm = gpu.Case("LSTM", None, (35, 32, 256, 256), "float32", True)
    assert lstm in measured
    assert lstm.operations() == 3 * 35 * 32 * 2 * (4 * 256) * (256 + 256)


def test_growth_doubles_the_size_that_the_title_says(gpu):
    sizes = {"time": (6, 2, 4, 8), "batch": (3, 4, 4, 8), "hidden": (3, 2, 4, 16)}
    plan = gpu.comparisons([(3, 2, 4, 8)], ["float32"], ["LSTM"])
    grown = {title.split()[4]: cases for title, cases in plan if title.startswith("growth")}
    assert {size: [case.shape for case in cases] for size, cases in grown.items()} == {
        size: [(3, 2, 4, 8), shape] for size, shape in sizes.items()
    }


@pytest.mark.parametrize(
    "flags, words",
    [((), "there is no GPU that torch can use"), (("--shapes", "1,2,3"), "argument --shapes: invalid shape value")],
)
def test_what_cannot_be_measured_is_refused(gpu, monkeypatch, capsys, flags, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
    with pytest.raises(SystemExit) as exit:
        gpu.main()
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


class Event:
    """Stands for CUDA's."""

    def __init__(self, enable_timing):
        self.time = None

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time) + 1e-6


def test_a_time_is_that_of_one_call(gpu, monkeypatch):
    """By a clock on which each call takes a millisecond."""
    calls = []

    class Clock:
        def __init__(self, enable_timing):
            self.time = None

        def record(self):
            self.time = len(calls)

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    (times,) = gpu.timed([lambda: calls.append(1)], 1e-9)
    assert times == [1.0] * 5


def test_a_figure_is_of_medians_and_beside_the_first_case(gpu, monkeypatch):
    """In a graph beside the graph's. The ratios are taken in each repetition."""
    times = iter([[[2.0, 2.0, 4.0], [4.0, 6.0, 4.0]], [[1.0, 1.0, 2.0], [3.0, 4.0, 3.0]]])
    monkeypatch.setattr(gpu, "timed", lambda calls, seconds: next(times))
    monkeypatch.setattr(gpu, "captured", lambda step: step)
    monkeypatch.setattr(gpu, "peak_memory", lambda step: 7.0)
    monkeypatch.setattr(gpu.Case, "step", lambda case: None)
    cases = [gpu.Case("LSTM", options, (3, 2, 4, 8), "float32", True) for options in (None, {"update_dropout": 0.25})]
    first, second = gpu.compare(cases, 1.0, 1e6)
    assert (first.ratio, first.graph_ratio) == (1, 1)
    assert (second.milliseconds, second.ratio, second.graph_milliseconds, second.graph_ratio) == (4, 2, 3, 3)
    assert second.share == pytest.approx(cases[1].operations() / 1e6 / 0.003)


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_drops_in_training_alone(gpu, mode, monkeypatch, training):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu.modules, "LSTM", lambda *_, **__: mode)
    gpu.Case("LSTM", {"update_dropout": 0.25}, (3, 2, 4, 4), "float32", training).step()()
    assert mode.seen == [training]


@pytest.fixture
def run(gpu, monkeypatch, tmp_path, capsys):
    """The whole benchmark of small layers, on a CPU in the place of a GPU: (output, errors, what it wrote)."""
    for name, value in {
        "is_available": True,
        "get_device_name": "a card",
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 2**20,
        "max_memory_allocated": 3 * 2**20,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "captured", lambda step: step)
    monkeypatch.setattr(gpu, "product_rate", lambda dtype: 1e9)
    monkeypatch.setattr(gpu, "compile_ahead", lambda cases, tf32, seconds: [gpu.warm(case, tf32) for case in cases])
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def run(*flags):
        file = tmp_path / "figures.json"
        small = ("--shapes", "3,2,4,8", "2,3,4,8", "--dtypes", "float32", "--seconds", "0.001", "--json", str(file))
        monkeypatch.setattr(sys, "argv", ["gpu.py", *small, *flags])
        gpu.main()
        return *capsys.readouterr(), json.loads(file.read_text()) if file.exists() else None

    yield run
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_the_whole_benchmark(gpu, run):
    output, errors, written = run()
    plan = list(gpu.comparisons([(3, 2, 4, 8), (2, 3, 4, 8)], ["float32"], list(gpu.GATES)))
    cases = [case for _, cases in plan for case in cases]
    assert errors == "" and len(written["figures"]) == len(cases)
    for figure, case in zip(written["figures"], cases, strict=True):
        assert figure["case"]["shape"] == list(case.shape) and figure["milliseconds"] > 0 and figure["memory"] == 2
    assert all(title in output for title, _ in plan) and "torch.nn.LSTM" in output
    assert written["card"] == "a card" and written["tf32"] is True


@pytest.mark.parametrize(("flags", "tf32"), [((), True), (("--ieee",), False)])
def test_products_are_in_tf32_unless_that_is_not_wanted(gpu, run, monkeypatch, flags, tf32):
    monkeypatch.setattr(gpu, "compile_ahead", lambda *_: None)
    written = run("--families", "RNN", *flags)[-1]
    assert written["tf32"] is torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32


def test_what_fails_costs_its_own_table_alone(gpu, run, monkeypatch):
    def step(case):
        if case.family == "GRU":
            raise RuntimeError("no memory is left")
        return upstream(case)

    upstream = gpu.Case.step
    monkeypatch.setattr(gpu, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(gpu.Case, "step", step)
    _, errors, written = run()
    assert errors.count("not measured: no memory is left") == 2
    assert {figure["case"]["family"] for figure in written["figures"]} == {"LSTM", "RNN"}


def test_without_time_nothing_is_begun(run):
    output, _, written = run("--budget", "-1")
    assert "no time was left for training" in output and written is None
