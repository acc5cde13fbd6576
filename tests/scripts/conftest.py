import gzip
import signal
import sys

import pytest
from hypothesis import given, settings


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main with arguments, as its command line does: (exit status, stdout, stderr)."""
    import _common

    def call(script, *args):
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, args)])
        capsys.readouterr()
        try:
            _common.run(script.main)
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(params=[pytest.param(300, id="some"), pytest.param(10_000, id="many", marks=pytest.mark.slow)])
def fuzz(request):
    """Runs a check with many inputs: ``fuzz(check, name=strategy)`` calls ``check(name=input)`` for each."""

    def fuzz(check, **strategies):
        settings(max_examples=request.param, deadline=None)(given(**strategies)(check))()

    return fuzz


@pytest.fixture
def read_split():
    """Reads a split as the task does: its sentences as lists of symbols, with ``</s>`` as the last of each."""
    from fairseq.data import Dictionary, data_utils

    def read_split(folder, split):
        dictionary = Dictionary.load(str(folder / "dict.txt"))
        dataset = data_utils.load_indexed_dataset(str(folder / split), dictionary)
        return [[dictionary[i] for i in dataset[n].tolist()] for n in range(len(dataset))]

    return read_split


@pytest.fixture
def write():
    """Writes a file and its folder, gzip-compressed if its name says so."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    return write
