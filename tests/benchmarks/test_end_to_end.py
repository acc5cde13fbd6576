"""The end-to-end part of the benchmark: what it runs, in which order, and what it makes of the logs."""

import subprocess
import types

import pytest

from benchmarks.end_to_end import BASELINE, PLAIN_TAGGER, end_to_end, is_tagged, prepare, scaling, taggers


def argument(command, flag):
    return command[command.index(flag) + 1]


@pytest.fixture
def fairseq_train(monkeypatch):
    """Stands in for fairseq-train: logs the speeds that are asked for, and keeps the commands."""
    commands = []

    def run(command, stdout, stderr, env):
        baseline, update = "lstm_lm" in command, "--update-dropout" in command
        repetition = len(commands) // 3
        speed = 100 * (repetition + 1) if baseline else 400 if update else 300
        lines = [f'2026-01-01 | INFO | train_inner | {{"epoch": 1, "loss": "9.1", "wps": "{w}"}}' for w in (
            0, speed - 10, speed, speed + 50
        )]  # fmt: skip
        stdout.write("\n".join(["a line of another kind", *lines, 'INFO | train | {"train_wps": "7"}']))
        commands.append((command, env["OMP_NUM_THREADS"]))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_speeds_and_ratios(fairseq_train, stream_data):
    baseline, plain, update = end_to_end(stream_data, size=8, rows=2, steps=5, repetitions=3, threads=2)
    assert (baseline.name, baseline.words_per_second, baseline.ratio) == (BASELINE, 200, 1)
    assert baseline.repetitions == [100, 200, 300]
    lstm, output = 4 * 8 * (8 + 8), 8 * 24  # weights, 24 types in the dictionary
    assert baseline.operations == update.operations == 3 * 2 * (lstm + output)
    assert (plain.words_per_second, plain.ratio) == (300, 1.5)  # of 3, 1.5 and 1
    assert (update.words_per_second, update.ratio) == (400, 2.0)
    commands = [command for command, threads in fairseq_train if threads == "2"]
    assert [argument(command, "--arch") for command in commands] == ["lstm_lm", "lstm_rnndrop", "lstm_rnndrop"] * 3
    for command in commands:
        for flag, value in (("--decoder-hidden-size", "8"), ("--batch-size", "2"), ("--tokens-per-sample", "5")):
            assert argument(command, flag) == value
    assert argument(commands[0], "--dropout") == "0"


def test_taggers(fairseq_train, tagging_data, stream_data):
    assert is_tagged(tagging_data) and not is_tagged(stream_data)
    plain, update, _ = taggers(tagging_data, size=8, rows=2, repetitions=2, threads=1)
    assert (plain.name, plain.ratio, plain.operations) == (PLAIN_TAGGER, 1, None)
    assert (update.words_per_second, update.ratio) == (400, 4 / 3)
    commands = [command for command, _ in fairseq_train]
    assert [("--crf" in command, "--update-dropout" in command) for command in commands] == [
        (True, False),
        (True, True),
        (False, True),
    ] * 2


def test_scaling(monkeypatch, stream_data):
    commands = []

    def run(command, stdout, stderr, env):
        processes = int(argument(command, "--processes"))
        speed = (100 if processes == 1 else 190) + len(commands) // 2
        stdout.write("\n".join(f'INFO | train_inner | {{"wps": "{w}"}}' for w in (0, speed, speed, speed)))
        commands.append((processes, env["OMP_NUM_THREADS"], argument(command, "--batch-size")))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    one, two = scaling(stream_data, size=8, rows=2, repetitions=3)
    assert commands == [(1, "1", "2"), (2, "1", "2")] * 3
    assert (one.words_per_second, one.ratio, two.words_per_second) == (101, 1, 191)
    assert two.ratio == pytest.approx(191 / 101)


def test_a_run_that_fails(monkeypatch, stream_data):
    def run(command, stdout, stderr, env):
        stdout.write("some words\nerror: no such thing")
        return types.SimpleNamespace(returncode=2)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match="exit status 2: error: no such thing"):
        end_to_end(stream_data)


def test_the_speeds_of_the_others_are_kept(monkeypatch, fairseq_train, stream_data, capsys):
    run = subprocess.run

    def fails(command, stdout, stderr, env):
        result = run(command, stdout, stderr, env)
        return types.SimpleNamespace(returncode=-9) if "--update-dropout" in command else result

    monkeypatch.setattr(subprocess, "run", fails)
    speeds = end_to_end(stream_data, size=8, rows=2, steps=5, repetitions=2, threads=1)
    assert [(speed.name, len(speed.repetitions)) for speed in speeds] == [
        (BASELINE, 2),
        ("lstm_rnndrop, no dropout", 2),
    ]
    assert "update dropout 0.25 per step: -m fairseq_cli.train" in capsys.readouterr().out


def test_unusable_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least 20 updates are needed, got 19"):
        end_to_end(updates=19)
    with pytest.raises(ValueError, match=f"{tmp_path}: .*ptb.train.txt"):
        end_to_end(tmp_path)


@pytest.mark.slow
def test_real_runs(stream_data):
    speeds = end_to_end(stream_data, size=4, rows=2, steps=5, updates=20, repetitions=1)
    assert len(speeds) == 3 and speeds[0].ratio == 1
    assert all(speed.words_per_second > 0 and speed.repetitions == [speed.words_per_second] for speed in speeds)


@pytest.mark.slow
def test_real_runs_of_taggers(tagging_data):
    speeds = taggers(tagging_data, size=4, rows=2, updates=20, repetitions=1)
    assert [speed.repetitions == [speed.words_per_second] for speed in speeds] == [True] * 3


@pytest.mark.slow
def test_the_quickstarts_text(tmp_path):
    data = prepare(None, tmp_path)
    assert {"dict.txt", "train.bin", "train.idx"} <= {path.name for path in data.iterdir()}
