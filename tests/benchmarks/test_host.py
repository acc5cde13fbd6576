import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")


def test_every_layer_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "fairseq", sys.modules.get("fairseq"))
    spec = importlib.util.spec_from_file_location(
        "benchmarks_host", Path(__file__).parents[2] / "benchmarks" / "host.py"
    )
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    monkeypatch.setattr(sys, "argv", ["host.py", "--repetitions", "1"])
    host.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(maxsplit=2)[2] for line in lines] == list(host.LAYERS)
    assert all(float(number) > 0 for line in lines for number in line.split()[:2])
