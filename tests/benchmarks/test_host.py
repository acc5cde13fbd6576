import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")


def test_every_layer_is_measured(load, monkeypatch, capsys):
    host = load("host")
    monkeypatch.setattr(sys, "argv", ["host.py", "--repetitions", "1"])
    host.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(maxsplit=2)[2] for line in lines] == list(host.LAYERS)
    assert all(float(number) > 0 for line in lines for number in line.split()[:2])
