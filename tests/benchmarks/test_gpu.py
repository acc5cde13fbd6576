import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark's module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "fairseq", sys.modules.get("fairseq"))
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
