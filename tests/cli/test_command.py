import json
import os
import signal
import subprocess
import sys

import pytest

from rnndrop_plugin.cli.command import run
from rnndrop_plugin.data.text import read_lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_a_command_lets_it_clean_up(number):
    before = signal.getsignal(number)
    try:
        # A background job ignores SIGINT and SIGQUIT. Python has a handler of its own for SIGINT alone.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with pytest.raises(SystemExit) as end:
            run(lambda: os.kill(os.getpid(), number))
        assert end.value.code == 128 + number
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        run(lambda: os.kill(os.getpid(), number))
    finally:
        signal.signal(number, before)


def test_a_reader_that_stops_early_ends_a_command_without_a_word():
    code = "from rnndrop_plugin.cli.trained_model import write; write('O\\n' * 10**6)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", -signal.SIGPIPE)


HINT = " (RNNDROP_TRACEBACK=1 shows where)"


@pytest.mark.parametrize("wanted", ["", "0", "1"])
def test_the_line_of_an_error_leads_to_its_traceback(tmp_path, capsys, monkeypatch, wanted):
    monkeypatch.setattr("sys.argv", ["/bin/tag.py"])
    monkeypatch.setenv("RNNDROP_TRACEBACK", wanted)
    (tmp_path / "text").write_bytes(b"caf\xe9")
    expected = {
        lambda: read_lines(tmp_path / "text"): f"{tmp_path}/text, line 1: not UTF-8 (byte 0xe9)",
        lambda: json.loads("{"): f"Expecting property name enclosed in double quotes: line 1 column 2 (char 1){HINT}",
    }
    for main, line in expected.items():
        with pytest.raises(SystemExit) as end:
            run(main)
        *traceback, last = capsys.readouterr().err.splitlines()
        assert (end.value.code, last) == (2, f"tag.py: error: {line}")
        assert bool(traceback) == (wanted == "1") and ("Traceback (most recent call last):" in traceback) == bool(
            traceback
        )


def test_bad_input_is_one_line_where_fairseq_and_hydra_are_not_installed(tmp_path):
    (tmp_path / "log").write_text("no statistics\n")
    code = "import sys; sys.modules.update(fairseq=None, hydra=None); from rnndrop_plugin.cli.main import main; main()"
    command = [sys.executable, "-c", code, "plot", "log", "--output", "curve.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("rnndrop plot: error: log: has neither train_ppl nor valid_ppl")
