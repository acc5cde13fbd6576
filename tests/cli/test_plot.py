import json
import os
import threading

import pytest

from rnndrop_plugin.cli import plot
from rnndrop_plugin.training_log import entries

PREFIX = "2026-01-01 00:00:00 | INFO | train | "


@pytest.fixture
def log(tmp_path):
    """The log of a run that was stopped while it wrote a line, and resumed from update 20."""
    lines = ["task: X", "{'not': json}", "[1] {}"]
    lines += [json.dumps({"epoch": 1, "ppl": str(400 - u), "num_updates": str(u)}) for u in (10, 20, 30)]
    lines += [PREFIX + json.dumps({"epoch": 1, "valid_ppl": "250.5", "valid_num_updates": "20"})]
    lines += [PREFIX + json.dumps({"epoch": 1, "train_ppl": "300", "train_num_updates": "20"})]
    lines += ['{"epoch": 2, "valid_ppl": "1', json.dumps({"epoch": 2, "ppl": "7", "num_updates": "30"})]
    lines += [json.dumps({"epoch": 2, "valid_ppl": "150", "valid_num_updates": "40"})]
    (tmp_path / "train.log").write_text("\n".join(lines))
    return tmp_path / "train.log"


def test_curves(log):
    assert plot.curve(list(entries(log)), "ppl", ("", "train_")) == ([10, 20, 30], [390, 380, 7])
    assert plot.curve(list(entries(log)), "ppl", ("train_",)) == ([20], [300])
    assert plot.curve(list(entries(log)), "ppl", ("valid_",)) == ([20, 40], [250.5, 150])


def test_a_curve_is_in_the_order_of_its_updates(log):
    log.write_text(log.read_text() + "\n" + json.dumps({"epoch": 2, "ppl": "9", "num_updates": "25"}))
    assert plot.curve(list(entries(log)), "ppl", ("",)) == ([10, 20, 25, 30], [390, 380, 9, 7])


def test_picture(call, log, tmp_path):
    """What is drawn, read from the picture's text: a curve of each log, the axes' names."""
    args = log, log, "--labels", "none", "update 0.25", "--title", "PTB", "--max", "300"
    assert call(plot, *args, "--output", tmp_path / "curves.svg") == (0, "", "")
    svg = (tmp_path / "curves.svg").read_text()
    for text in ("none training", "none validation", "update 0.25 validation", "perplexity", "updates", "PTB"):
        assert f"<!-- {text} -->" in svg
    assert call(plot, log, "--output", tmp_path / "curves.png")[0] == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_logs_of_one_name_are_called_by_their_folders(call, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("none", "update"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.log").write_text(log.read_text())
    assert call(plot, "none/train.log", "update/train.log", "--output", "curves.svg") == (0, "", "")
    svg = (tmp_path / "curves.svg").read_text()
    assert "<!-- none validation -->" in svg and "<!-- update validation -->" in svg


def test_a_metric_of_the_validation_alone(call, log, tmp_path):
    log.write_text(log.read_text() + "\n" + json.dumps({"valid_f1": "80", "valid_num_updates": "40"}))
    assert call(plot, log, "--metric", "f1", "--output", tmp_path / "f1.svg") == (0, "", "")
    svg = (tmp_path / "f1.svg").read_text()
    assert "<!-- validation -->" in svg and "<!-- training -->" not in svg


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--metric", "f1"], "train.log: has neither train_f1 nor valid_f1; was it written with --log-format json?"),
        (["--labels", "a", "b"], "1 logs and 2 --labels"),
        (["--output", "curves.xyz"], "curves.xyz: its ending must be that of a picture: "),
        (["--output", "curves.pgf"], "curves.pgf: its ending must be that of a picture: "),
        (["--max", "-1"], "argument --max: '-1' is not a number above 0"),
        (["--max", "nan"], "argument --max: 'nan' is not a number above 0"),
        (["--output", "curves."], "curves.: its ending must be that of a picture: "),
    ],
)
def test_bad_input(call, log, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(plot, log, "--output", "curves.png", *args)
    assert status == 2
    assert words in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


def test_a_log_that_can_be_read_once(call, log, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(log.read_text()), daemon=True)
    writer.start()
    title = ("--title", "what costs $5_^ and $6")  # no formula
    assert call(plot, tmp_path / "pipe", *title, "--output", tmp_path / "curves.svg") == (0, "", "")
    assert "<!-- what costs $5_^ and $6 -->" in (tmp_path / "curves.svg").read_text()


def test_numbers_that_cannot_be_drawn(call, tmp_path):
    (tmp_path / "train.log").write_text('{"valid_num_updates": 3, "valid_ppl": "nan"}\n')
    status, _, err = call(plot, tmp_path / "train.log", "--output", tmp_path / "curves.png")
    assert (status, err.splitlines()[-1].partition("train.log: ")[2]) == (
        2,
        "no ppl is a finite number, there is nothing to draw",
    )
    assert not (tmp_path / "curves.png").exists()
