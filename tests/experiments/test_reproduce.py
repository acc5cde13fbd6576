import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments import experiment, reproduce, runs, table1, table4, table5

FAKE = Path(__file__).with_name("fake_fairseq.py")


@pytest.fixture
def run_table1(call, tmp_path):
    """Runs reproduce.py table1 in ``tmp_path / "out"``, where the data folders are (the fake trainer reads none)."""
    for length in (15, 30):
        (tmp_path / "out" / f"data-{length}").mkdir(parents=True)
    return lambda *args: call(reproduce, "table1", "--out", tmp_path / "out", *args)


@pytest.fixture
def result(tmp_path):
    return lambda name: json.loads((tmp_path / "out" / name / "result.json").read_text())


def starts(tmp_path, name):
    """The epochs that the trainings of a run started from."""
    return re.findall(r"starts from epoch (\d+)", (tmp_path / "out" / name / "train.log").read_text())


def test_solved_and_given_up(plan, run_table1, result, tmp_path):
    """Solved is the second epoch in a row at the target; a run has FACTOR times the updates of that without dropout."""
    plan({"15-none": [30, 99.6, 99.4, 99.5, 99.7, 100], "*": [25.5]})
    status, out, err = run_table1("--cells", "15-cell-step-expected", "--budget", "1.4")
    assert (status, err) == (0, "")
    none, cell = result("15-none/seed1"), result("15-cell-step-expected/seed1")
    assert (none["solved"], none["updates"], none["training"], none["test"]) == (True, 1000, 99.7, {"test": 5.0})
    assert (cell["solved"], cell["updates"], cell["training"], cell["test"]) == (False, 1400, 25.5, {"test": 7.0})
    assert (none["seconds"], cell["seconds"]) == (10, 14)
    assert cell["train"][-2:] == ["--max-update", "1400"]
    table = (tmp_path / "out" / "table1.md").read_text()
    assert table in out
    assert "| none |  |  | 99.7 / 5.0 |  |  |" in table
    row = "| cell (Moon et al.) | per step | 100 / 100 | 25.5 / 7.0 (not solved after 1,400 updates) | 25 / 25 |  |"
    assert row in table
    assert "| 15-cell-step-expected/seed1 | no | 1,400 | 1.4 | 25.50 | 7.00 |" in table
    results = json.loads((tmp_path / "out" / "table1.json").read_text())["runs"]
    assert {name: run["updates"] for name, run in results.items()} == {
        "15-none/seed1": 1000,
        "15-cell-step-expected/seed1": 1400,
    }


def test_finished_runs_are_kept(plan, run_table1, tmp_path):
    plan({"*": [99.5, 99.5]})
    assert run_table1("--cells", "15-none", "15-update-*-expected")[0] == 0
    plan({"*": ["fail"]})
    status, out, _ = run_table1("--cells", "15-none", "15-update-*-expected")
    assert status == 0
    assert out.count("ended after 400 updates") == 3
    assert starts(tmp_path, "15-update-step-expected/seed1") == ["0"]


def test_a_finished_run_is_neither_trained_nor_tested_again(plan, run_table1, tmp_path, monkeypatch):
    """Neither one that was given up, nor one that was solved under another limit."""
    plan({"15-none": [99.5], "*": [50]})
    cells = ("--cells", "15-hidden-step-expected", "--budget", "2")
    assert run_table1(*cells)[0] == 0
    table = (tmp_path / "out" / "table1.md").read_text()
    monkeypatch.setattr(runs, "TRAIN", ["false"])
    monkeypatch.setattr(runs, "VALIDATE", ["false"])
    monkeypatch.setattr(table1, "LIMIT", 2 * table1.LIMIT)
    assert run_table1(*cells)[0] == 0
    assert (tmp_path / "out" / "table1.md").read_text() == table


def test_a_run_whose_test_failed_is_not_trained_again(plan, run_table1, result, tmp_path, monkeypatch):
    """Neither one that was solved, nor one that has made all its updates."""
    plan({"15-none": [99.5], "*": [50]})
    test = runs.VALIDATE
    for name in ("15-none", "15-cell-step-expected"):
        monkeypatch.setattr(runs, "VALIDATE", ["false"])
        assert run_table1("--cells", name, "--budget", "2")[0] == 1
        monkeypatch.setattr(runs, "VALIDATE", test)
        assert run_table1("--cells", name, "--budget", "2")[0] == 0
        assert starts(tmp_path, f"{name}/seed1") == ["0"]
    assert [result(f"{name}/seed1")["solved"] for name in ("15-none", "15-cell-step-expected")] == [True, False]


def test_a_test_without_its_metric_has_failed(plan, run_table1, tmp_path, monkeypatch):
    """The other runs go on."""
    plan({"15-none": [99.5], "30-none": ["fail"]})
    monkeypatch.setattr(runs, "VALIDATE", [sys.executable, "-c", "print('{}')"])
    status, out, err = run_table1("--cells", "15-none", "30-none", "--jobs", "1")
    assert status == 1 and "30-none/seed1: failed" in out
    assert re.search(r"test_checkpoint\d+.log: has no (valid_accuracy, )?test_accuracy", err)


def test_solved_in_the_last_epoch_of_all(plan, run_table1, result):
    plan({"15-none": [99.5], "*": [50, 99.5]})
    assert run_table1("--cells", "15-cell-step-expected", "--budget", "1.5")[0] == 0
    assert result("15-cell-step-expected/seed1")["solved"] is True


def test_earlier_results_are_in_the_table(plan, run_table1, tmp_path, monkeypatch):
    """Those of other cells and seeds, if they have the flags of now."""
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-hidden-step-expected")[0] == 0
    assert run_table1("--cells", "30-none")[0] == 0
    names = ["15-none/seed1", "15-hidden-step-expected/seed1", "30-none/seed1"]
    assert list(json.loads((tmp_path / "out" / "table1.json").read_text())["runs"]) == names
    assert "| 15-hidden-step-expected/seed1 | yes |" in (tmp_path / "out" / "table1.md").read_text()
    assert run_table1("--cells", "30-none", "--seeds", "2")[0] == 0
    assert set(json.loads((tmp_path / "out" / "table1.json").read_text())["runs"]) == {*names, "30-none/seed2"}
    monkeypatch.setattr(table1, "TRAIN", [*table1.TRAIN, "--lr", "1"])
    assert run_table1("--cells", "30-cell-step-inverted")[0] == 2  # which needs 30-none
    assert run_table1("--cells", "30-none", "--seeds", "3")[0] == 0
    assert list(json.loads((tmp_path / "out" / "table1.json").read_text())["runs"]) == ["30-none/seed3"]


def test_budget_raised(plan, run_table1, result, tmp_path):
    """A run that was given up goes on when it may make more updates, and is not begun again with the same."""
    plan({"15-none": [99.5, 99.5], "*": [50]})
    for budget in ("2", "2", "3"):
        assert run_table1("--cells", "15-hidden-step-inverted", "--budget", budget)[0] == 0
    assert result("15-hidden-step-inverted/seed1")["updates"] == 1200
    assert starts(tmp_path, "15-hidden-step-inverted/seed1") == ["0", "4"]


def test_other_flags(plan, run_table1, monkeypatch, tmp_path):
    """Results of other flags are not passed off as those of these, and the table that has them stays."""
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-none")[0] == 0
    table = (tmp_path / "out" / "table1.md").read_text()
    monkeypatch.setattr(table1, "TRAIN", [*table1.TRAIN, "--clip-norm", "7"])
    status, out, err = run_table1("--cells", "30-none", "15-none")
    assert (status, out) == (2, "")
    assert "seed1: has a run with other flags (see run.json), without 7; remove it or use another --out" in err
    assert (tmp_path / "out" / "table1.md").read_text() == table
    assert not (tmp_path / "out" / "30-none").exists()


def test_a_run_is_the_same_one_from_another_folder(plan, call, run_table1, tmp_path, monkeypatch):
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-none")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert call(reproduce, "table1", "--out", "out", "--cells", "15-none")[0] == 0
    assert starts(tmp_path, "15-none/seed1") == ["0"]


def test_a_limit_is_never_no_update(plan, run_table1, result):
    """--max-update 0 would be no limit."""
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-cell-step-expected", "--budget", "0.0001")[0] == 0
    assert result("15-cell-step-expected/seed1")["train"][-2:] == ["--max-update", "1"]


def test_failure(plan, run_table1, tmp_path):
    """What fails is told with the end of its log; the others are performed, but for those that need it."""
    plan(
        {
            "15-none": [99.5],
            "15-hidden-step-expected": ["refuse"],
            "15-cell-step-expected": [60, "fail"],
            "30-none": ["fail"],
            "*": [99.5],
        }
    )
    status, out, err = run_table1("--cells", "*-none", "*-step-expected", "--jobs", "3")
    assert status == 1
    assert "15-hidden-step-expected/seed1/train.log: the command failed (2). It ends with\nerror: no such flag\n" in err
    assert "15-cell-step-expected/seed1: failed" in out
    assert "train.log: the command failed (3). It ends with" in err
    assert "RuntimeError: it broke" in err
    assert "30-update-step-expected/seed1: not started, for it needs 30-none/seed1" in err
    assert "15-update-step-expected/seed1 | yes | 400" in (tmp_path / "out" / "table1.md").read_text()
    assert not (tmp_path / "out" / "15-cell-step-expected" / "seed1" / "result.json").exists()

    plan({"*": [99.5]})
    assert run_table1("--cells", "*-none", "*-step-expected")[0] == 0
    assert starts(tmp_path, "15-cell-step-expected/seed1") == ["0", "1"]


def test_a_training_that_was_killed_has_failed(plan, run_table1, tmp_path):
    """Its epochs are not taken for all that there are."""
    plan({"15-none": [40, "die"]})
    status, _, err = run_table1("--cells", "15-none")
    assert status == 1
    assert "train.log: the command failed (-9). It ends with" in err


def test_each_training_has_one_thread(plan, run_table1, tmp_path, monkeypatch):
    """Those of several at a time would be in each other's way."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-none")[0] == 0
    assert "OMP_NUM_THREADS=1\n" in (tmp_path / "out" / "15-none" / "seed1" / "train.log").read_text()


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from experiments import experiment, reproduce, runs
from rnndrop_plugin.cli.command import run
fake = [sys.executable, {fake!r}, {plan!r}]
runs.TRAIN, runs.VALIDATE = [*fake, "train"], [*fake, "validate"]
experiment.device = lambda: ["--cpu"]
run(reproduce.main)
"""


@pytest.fixture
def hanging(plan, run_table1, tmp_path):
    """A process of the script, whose two trainings hang, and the files that have their process ids."""
    plan({"15-none": [40, 50, "hang"], "30-none": [40, "hang"]})
    root = str(Path(reproduce.__file__).parents[1])
    code = SCRIPT.format(root=root, fake=str(FAKE), plan=str(tmp_path / "plan.json"))
    command = [sys.executable, "-c", code, "table1", "--out", str(tmp_path / "out"), "--cells", "*-none", "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / "out" / f"{length}-none" / "seed1" / "hangs" for length in (15, 30)]
    while not all(path.exists() for path in files) and process.poll() is None:
        time.sleep(0.05)
    yield process, files
    process.kill()
    process.communicate()


def test_trainings_that_outlive_their_script_keep_others_out(plan, hanging, run_table1):
    process, files = hanging
    process.kill()
    process.wait()
    plan({"*": [99.5]})
    try:
        status, _, err = run_table1("--cells", "15-none")
        assert status == 2
        assert "out: this script, or a training that it left, is running in it" in err
    finally:
        for file in files:
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(plan, hanging, run_table1, result, tmp_path, signum):
    """The trainings end with the script, another script is kept out meanwhile, and later they go on."""
    process, _ = hanging
    status, _, err = run_table1("--cells", "15-none")
    assert (status, err.count("\n")) == (2, 1)
    assert "out: this script, or a training that it left, is running in it" in err
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signum]
    assert "Traceback" not in err

    plan({"15-none": [40, 50, 60, 99.5], "30-none": [99.5]})
    assert run_table1("--cells", "*-none")[0] == 0  # the lock is free, so no training is left
    assert starts(tmp_path, "15-none/seed1") == ["0", "2"]
    assert result("15-none/seed1")["updates"] == 1000
    assert result("15-none/seed1")["seconds"] == 2 * 2 + 3 * 2


def test_seeds(plan, run_table1, tmp_path):
    plan({"15-none": [99, 99.5, 100], "*": [100]})
    (tmp_path / "out" / "15-none" / "seed3 (old)").mkdir(parents=True)  # which is none
    assert run_table1("--cells", "15-none", "--seeds", "1", "7")[0] == 0
    assert "| none |  |  | 100.0 / 3.0 |" in (tmp_path / "out" / "table1.md").read_text()
    assert "| 15-none/seed7 | yes | 600 |" in (tmp_path / "out" / "table1.md").read_text()


def test_some_seeds_not_solved():
    solved = {"solved": True, "training": 100.0, "updates": 6000, "test": {"test": 99.0}}
    given_up = {"solved": False, "training": 30.0, "updates": 4000, "test": {"test": 25.0}}
    text = "65.0 / 62.0 (not solved after 4,000 updates in 1 of 2 runs)"
    assert table1.accuracies([solved, given_up]) == text


def test_table1_tells_scalings_and_seeds_apart():
    def run(updates: int, accuracy: float) -> dict:
        figures = {"training": accuracy, "test": {"test": accuracy}}
        return {"solved": True, "updates": updates, "seconds": 1.0, **figures}

    results = {"15-none/seed1": run(1000, 99), "15-none/seed2": run(500, 99)}
    results |= {"15-update-step-expected/seed2": run(1000, 98), "15-update-step-inverted/seed2": run(1500, 97)}
    table = table1.markdown(results)
    expected, inverted = table.split("## Inverted scaling")
    assert "| update (the paper's) | per step | 100 / 100 | 98.0 / 98.0 | 100 / 100 |  |" in expected
    assert "| update (the paper's) | per step | 97.0 / 97.0 |  |" in inverted
    assert "| 15-update-step-inverted/seed2 | yes | 1,500 | 3.0 |" in inverted  # of the same seed's


def test_damaged_result(plan, run_table1, tmp_path):
    plan({"*": [99.5]})
    assert run_table1("--cells", "15-none")[0] == 0
    for damaged in ("{", "[]", "null"):
        (tmp_path / "out" / "15-none" / "seed1" / "result.json").write_text(damaged)
        status, out, err = run_table1("--cells", "30-none")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "result.json: is damaged (not JSON, or no object)" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["table1", "--cells", "15-none", "16-none"], "table1 has no cell 16-none; --list prints them"),
        (["table5"], "table5 needs --data, a folder made by rnndrop prepare semeval with --weak and --vectors"),
        (["table5", "--data", "nowhere"], "nowhere/word/dict.txt: no such file"),
        (["table4"], "table4 needs --data, a folder made by rnndrop prepare conll with --vectors"),
        (["table4", "--data", "nowhere"], "nowhere/word/dict.txt: no such file"),
        (["table9"], "table9"),
        (["table1", "--budget", "0"], "'0' is not a number above 0"),
        (["table1", "--seeds", "-1"], "'-1' is not a whole number"),
        (["table4", "--epochs", "2"], "table4 does not take --epochs"),
        (["table2", "--budget", "2"], "table2 does not take --budget"),
        (["table1", "--data", "nowhere"], "table1 does not take --data"),
        (["table1", "--jobs", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_bad_input(call, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(reproduce, *args)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_list(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(reproduce, "table1", "--list")
    assert status == 0
    cells = out.splitlines()
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 6)
    assert {"15-none", "30-cell-sequence-inverted"} < set(cells)
    status, out, _ = call(reproduce, "table5", "--list")
    assert status == 0
    assert len(out.splitlines()) == 2 * 6
    status, out, _ = call(reproduce, "table4", "--list")
    assert status == 0
    assert len(set(out.splitlines())) == len(out.splitlines()) == 2 * (1 + 3 * 2 * 2)
    assert list(tmp_path.iterdir()) == []


def test_table1_arguments(plan, run_table1, result):
    """The kind, the sampling, the scaling and the seed that a cell's name says."""
    plan({"*": [100]})
    assert run_table1("--cells", "30-hidden-sequence-inverted", "--seeds", "5")[0] == 0
    arguments = " ".join(result("30-hidden-sequence-inverted/seed5")["train"])
    for flags in (
        "out/data-30 ",
        "out/data-30/vectors.txt",
        "--hidden-dropout 0.5",
        "--recurrent-dropout-sampling sequence",
        "--recurrent-dropout-scaling inverted",
        "--seed 5",
        "--max-update 8000",
    ):
        assert flags in arguments
    assert "--update-dropout" not in arguments
    assert "-dropout" not in " ".join(result("30-none/seed5")["train"]).replace("rnndrop", "")


def write_data(folder, streams, splits):
    """Files that the fake trainer does not read."""
    for stream in streams:
        (folder / stream).mkdir(parents=True)
        for name in ("dict.txt", *(f"{split}.{end}" for split in splits for end in ("bin", "idx"))):
            (folder / stream / name).touch()


def test_a_missing_split_is_said_before_the_training(call, tmp_path):
    write_data(tmp_path / "data", ("word", "tag"), ("train", "valid"))
    status, _, err = call(reproduce, "table4", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert status == 2
    assert "data/word/test.bin: no such file; rnndrop prepare conll makes it" in err


def test_table5(call, plan, tmp_path, result):
    """A pre-training for each network and rate; the seeds' fine-tunings start from its best checkpoint."""
    write_data(tmp_path / "data", ("word", "label"), table5.SPLITS)
    (tmp_path / "data" / "weak" / "word").mkdir(parents=True)
    (tmp_path / "data" / "weak" / "word" / "dict.txt").touch()
    (tmp_path / "data" / "vectors.txt").write_text("word 1 2 3\n")
    plan({"*": [50]})
    args = (
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--cells",
        "gru-0.25",
        "rnn-0.25",
        "--seeds",
        "1",
        "2",
    )
    assert call(reproduce, "table5", *args)[0] == 0
    before, tuned = result("gru-0.25-pretraining/seed1"), result("gru-0.25/seed2")
    assert before["test"] == {}
    assert before["train"][0].endswith("data/weak")
    assert tuned["train"][0].endswith("data")
    log = (tmp_path / "out" / "gru-0.25" / "seed2" / "train.log").read_text()
    assert f"finetune {before['checkpoint']}" in log
    assert before["checkpoint"].endswith("gru-0.25-pretraining/seed1/checkpoint_best.pt")
    assert "--update-dropout 0.25" in " ".join(tuned["train"])
    assert "data/vectors.txt --decoder-embed-dim 3" in " ".join(tuned["train"])
    assert "--hidden-dropout 0.25" in " ".join(result("rnn-0.25/seed1")["train"])
    table = (tmp_path / "out" / "table5.md").read_text()
    epochs = table5.FINE_TUNING[table5.FINE_TUNING.index("--max-epoch") + 1]
    assert f"| GRU | 0.25 | ours |{f' {epochs}.00 ± 0.00 |' * 6} 2 |" in table
    assert "| GRU | 0.25 | paper | 69.04 | 72.10 | 60.34 | 69.65 | 65.73 | 54.77 |  |" in table
    assert "| RNN | 0 | ours |  |  |  |  |  |  | 0 |" in table


def test_table4(call, plan, tmp_path, result):
    """The flags that a cell's name says, and the figures of both splits in its row."""
    write_data(tmp_path / "data", ("word", "tag"), ("train", "valid", "test"))
    (tmp_path / "data" / "vectors.txt").write_text("\u00a0 1 2 3 4\n")
    plan({"*": [50]})
    folders = ("--data", tmp_path / "data", "--out", tmp_path / "out")
    cells = ("none", "cell-0.5-sequence", "forward-update-0.25-step")
    status, out, _ = call(reproduce, "table4", *folders, "--cells", *cells, "--seeds", "1", "2")
    assert status == 0
    update, cell, none = (
        " ".join(result(name)["train"])
        for name in ("forward-update-0.25-step/seed2", "cell-0.5-sequence/seed1", "none/seed1")
    )
    assert "--decoder-dropout-in 0.2 --decoder-dropout-out 0.5" in update
    assert "--update-dropout 0.25 --recurrent-dropout-sampling step --seed 2" in update
    assert "--cell-dropout 0.5 --recurrent-dropout-sampling sequence --seed 1" in cell
    assert "data/vectors.txt --decoder-embed-dim 4" in cell
    assert "--decoder-dropout-in" not in cell and "dropout" not in none
    rates = "--optimizer adam --lr 0.001 --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.95 --max-epoch 50 "
    assert rates in none and "--extract-length 15 " in none  # section 4.4
    assert result("none/seed1")["training"] is None
    assert "none/seed1: trained after 10,000 updates in 100 s, valid 50.00, test 50.00" in out
    table = (tmp_path / "out" / "table4.md").read_text()
    row = "| update (the paper's) | per step | 0.25 | 91.02 | 50.00 ± 0.00 | 87.03 | 50.00 ± 0.00 | 2 |"
    assert row in table.partition("## With forward dropout")[2]
    assert "| none |  |  | 88.56 | 50.00 ± 0.00 | 84.46 | 50.00 ± 0.00 | 2 |" in table
    assert "| hidden (Gal) | per sequence | 0.5 | 90.76 |  | 86.68 |  | 0 |" in table
    assert len(table4.PAPER) == 26


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    for available, flags in ((True, ["--distributed-world-size", "1"]), (False, ["--cpu"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert experiment.device_flags() == flags


def test_table4_has_each_splits_figures_in_its_column():
    table = table4.markdown({"none/seed1": {"test": {"valid": 90.0, "test": 80.0}}})
    assert "| none |  |  | 88.56 | 90.00 | 84.46 | 80.00 | 1 |" in table


def test_spread():
    assert experiment.spread([60.0, 62.0, 64.0]) == "62.00 ± 2.00"
    assert experiment.spread([60.0]) == "60.00"
