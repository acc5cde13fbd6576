import json
import math
import shutil
import subprocess

import pytest

from experiments import experiment, figure2, origin, reproduce, table2, table3
from rnndrop_plugin.data.tokenization import Tokenization


@pytest.fixture
def run_table(call, stream_data, tmp_path):
    """Runs a table in ``tmp_path / "out"`` (the fake trainer reads no data)."""
    return lambda table, *args: call(reproduce, table, "--data", stream_data, "--out", tmp_path / "out", *args)


def result(tmp_path, name):
    return json.loads((tmp_path / "out" / name / "result.json").read_text())


def after(losses, rates):
    """What an epoch's end leaves in the log, for each of these."""
    return [{"valid_nll_loss": f"{x}", "train_lr": f"{y}"} for x, y in zip(losses, rates, strict=True)]


@pytest.mark.parametrize(
    ("losses", "rates", "over"),
    [
        ([7, 6, 6, 6.1, 6.2, 6.3, 6.4], [1, 1, 1, 1, 1, 1, 0.04], True),  # 6 again is not better
        ([7, 6, 6, 6.1, 6.2, 6.3, 6.4], [1, 1, 1, 1, 1, 1, 0.05], False),
        ([7, 6, 6, 6.1, 6.2, 6.3], [0.04] * 6, False),  # the best is four epochs old
        ([7, 6.5, 6.6, 6.6, 6.6, 6.6, 6.4], [0.04] * 7, False),  # it is the last one
        ([7], [0.01], False),
    ],
)
def test_end_of_training(losses, rates, over):
    assert table2.is_over(after(losses, rates)) is over


def test_table2(plan, run_table, tmp_path):
    """The best and the last checkpoint of a training that its rule ends, and of one that the limit ends."""
    falling = [[9, 1], [8, 1], [7, 1]]
    plan({"none": [*falling, [8, 0.04], [8, 0.04], [8, 0.04], [8, 0.04], [8, 0.04], "hang"], "*": falling})
    cells = ("--cells", "none", "forward-update-0.25-step")
    status, out, err = run_table("table2", *cells, "--jobs", "2")
    assert (status, err) == (0, "")
    none, update = result(tmp_path, "none/seed1"), result(tmp_path, "forward-update-0.25-step/seed1")
    assert (none["epochs"], none["solved"], none["updates"], none["seconds"]) == (8, True, 1600, 16)
    assert (update["epochs"], update["solved"]) == (100, False)
    same = {split: {"ppl": 3.0, "ppl_batch_mean": 3.0} for split in ("valid", "test")}
    assert none["tests"]["checkpoint_best.pt"] == same
    assert none["tests"]["checkpoint_last.pt"]["valid"]["ppl"] == 8
    assert none["test"] == {"valid": 3, "test": 3}
    assert (none["commits"], none["devices"]) == (["c0ffee"], ["a device, True"])
    table = (tmp_path / "out" / "table2.md").read_text()
    assert table in out
    for row in (
        "| none |  |  | best | 3.00 | 3.00 | 3.00 | 3.00 | 130.0 / 125.2 | 0.023 / 0.024 | 1 |",
        "| none |  |  | last | 8.00 | 8.00 | 8.00 | 8.00 | 130.0 / 125.2 | 0.062 / 0.064 | 1 |",
        "| update (the paper's) | 0.25 | per step | last | 100.00 | 100.00 | 100.00 | 100.00 | 91.6 / 87.0 |",
        "| hidden (Gal) | 0.5 | per sequence |  |  |  |  |  | 125.2 / 117.9 |  | 0 |",
        "| none/seed1 | 8 | its rule | 1,600 | 0.3 | c0ffee | a device, True |",
        "The paper's protocol: at most 100 epochs.",
    ):
        assert row in table
    assert "commit c0ffee, on a device, True" in table

    plan({"*": ["fail"]})
    status, out, _ = run_table("table2", *cells)  # which are finished
    assert status == 0


def test_the_ratios_are_those_of_the_papers_metric():
    """The mean over the batches, of each split."""
    tests = {"valid": {"ppl": 1.0, "ppl_batch_mean": 130.0}, "test": {"ppl": 2.0, "ppl_batch_mean": 250.4}}
    finished = {"train": ["--max-epoch", "100"], "solved": True, "epochs": 8, "updates": 1600, "seconds": 16.0}
    finished |= {"commits": [], "devices": [], "tests": {"checkpoint_best.pt": tests, "checkpoint_last.pt": tests}}
    table = table2.TABLE.markdown({"none/seed1": finished})
    row = "| none |  |  | best | 1.00 | 2.00 | 130.00 | 250.40 | 130.0 / 125.2 | 1.000 / 2.000 | 1 |"
    assert row in table


def test_a_run_is_the_same_one_whatever_the_spelling_of_its_data(plan, run_table, stream_data, monkeypatch):
    plan({"*": [[9, 1]]})
    assert run_table("table2", "--cells", "none", "--epochs", "1")[0] == 0
    monkeypatch.chdir(stream_data.parent)
    status, _, err = run_table("table2", "--cells", "none", "--epochs", "1", "--data", stream_data.name)
    assert (status, err) == (0, "")


def test_seeds_and_shortened(plan, run_table, tmp_path):
    """A run of another limit is another run."""
    plan({"*": [[9, 1], [8, 1]]})
    assert run_table("table2", "--cells", "none", "--seeds", "1", "2", "--epochs", "3")[0] == 0
    table = (tmp_path / "out" / "table2.md").read_text()
    assert "**A shortened protocol**: at most 3 of the paper's 100 epochs." in table
    assert f"| none |  |  | last |{' 3.00 ± 0.00 |' * 4} 130.0 / 125.2 | 0.023 / 0.024 | 2 |" in table
    status, _, err = run_table("table2", "--cells", "none", "--epochs", "4")
    assert status == 2
    assert "has a run with other flags (see run.json), without 4" in err


def test_resumed(plan, run_table, tmp_path, monkeypatch):
    """A run that goes on under another commit names both."""
    plan({"*": [[9, 1], "fail"]})
    assert run_table("table2", "--cells", "none", "--epochs", "2")[0] == 1
    monkeypatch.setattr(origin, "commit", lambda: "decade")
    plan({"*": [[9, 1], [8, 1]]})
    assert run_table("table2", "--cells", "none", "--epochs", "2")[0] == 0
    assert "starts from epoch 1" in (tmp_path / "out" / "none" / "seed1" / "train.log").read_text()
    assert result(tmp_path, "none/seed1")["commits"] == ["c0ffee", "decade"]
    assert result(tmp_path, "none/seed1")["epochs"] == 2


def test_table2_flags(plan, run_table, tmp_path):
    """Section 4.2's numbers, and the dropout that a cell's name says."""
    plan({"*": [[9, 1]]})
    assert run_table("table2", "--cells", "forward-cell-0.5-sequence", "none", "--seeds", "3", "--epochs", "1")[0] == 0
    none, cell = (result(tmp_path, f"{name}/seed3")["train"] for name in ("none", "forward-cell-0.5-sequence"))
    arguments = " ".join(none)
    for flags in (
        "--arch lstm_rnndrop_ptb_word ",
        "--batch-size 32 --tokens-per-sample 35 ",
        "--optimizer sgd --lr 1 --clip-norm 10 ",
        "--sentence-avg ",
        "--no-epoch-checkpoints ",
        "--seed 3",
    ):
        assert flags in arguments
    assert "-dropout" not in arguments.replace("rnndrop", "")
    forward = "--decoder-dropout-in 0.2 --decoder-dropout-out 0.5"
    assert f" {forward} --cell-dropout 0.5 --recurrent-dropout-sampling sequence --seed 3" in " ".join(cell)


def test_table3(plan, run_table, tmp_path):
    """Section 4.3's numbers; a shortened run has the same rates, and the table says so."""
    plan({"*": [[2.5, 1]]})
    assert run_table("table3", "--cells", "none", "--epochs", "2")[0] == 0
    arguments = " ".join(result(tmp_path, "none/seed1")["train"])
    for flags in (
        "--arch lstm_rnndrop_ptb_char ",
        "--batch-size 32 --tokens-per-sample 100 ",
        "--optimizer adam --lr 0.001 --clip-norm 10 --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.97 ",
        "--max-epoch 2 ",
    ):
        assert flags in arguments
    assert table3.TABLE.limit == 50
    table = (tmp_path / "out" / "table3.md").read_text()
    assert "**A shortened protocol**: at most 2 of the paper's 50 epochs." in table
    assert "| none |  |  | best | 1.000 | 1.000 | 1.460 / 1.457 | 0.685 / 0.686 | 1 |" in table
    assert "| none |  |  | last | 2.000 | 2.000 | 1.460 / 1.457 | 1.370 / 1.373 | 1 |" in table
    assert "| none/seed1 | 2 | the limit | 400 |" in table


def test_figure2(plan, run_table, tmp_path, monkeypatch):
    """The runs of Table 2 that are there are not done again; the error is in nats."""
    plan({"*": [[9, 1], [1, 1]]})
    assert run_table("table2", "--cells", "none", "--epochs", "2")[0] == 0
    plan({"none": ["fail"], "*": [[9, 1], [1, 1]]})
    drawn = []
    monkeypatch.setattr(figure2, "draw", lambda *args, **kwargs: drawn.append(args))
    assert run_table("figure2", "--epochs", "2")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["none", "update-0.25-step"]
    curves, labels, output = drawn[-1]
    assert labels == ["without dropout,", "with update dropout 0.25 per step,"]
    assert curves[0] == curves[1]
    assert curves[0][1] == ([200, 400], [9 * math.log(2), math.log(2)])
    assert output == tmp_path / "out" / "figure2.png"


def test_figure2_looks_for_the_runs_where_table2_leaves_them(plan, call, stream_data, tmp_path, monkeypatch):
    plan({"*": [[9, 1]]})
    monkeypatch.chdir(tmp_path)
    arguments = ("--data", stream_data, "--cells", "none", "--epochs", "1")
    assert call(reproduce, "table2", *arguments)[0] == 0
    plan({"*": ["fail"]})
    assert call(reproduce, "figure2", *arguments)[0] == 0
    assert (tmp_path / "outputs" / "table2" / "figure2.png").exists()


def test_there_is_no_picture_of_no_runs(plan, run_table, tmp_path):
    plan({"*": ["fail"]})
    status, _, err = run_table("figure2", "--cells", "none")
    assert status == 1
    assert "train.log: the command failed (3)" in err
    assert not (tmp_path / "out" / "figure2.png").exists()
    assert "figure2.png" not in (tmp_path / "out" / "figure2.md").read_text()


def test_picture(plan, run_table, tmp_path):
    """A picture of what there is, in the folder of Table 2."""
    plan({"*": [[9, 1], [1, 1]]})
    assert run_table("figure2", "--epochs", "2", "--cells", "none", "--seeds", "1", "2")[0] == 0
    assert (tmp_path / "out" / "figure2.png").read_bytes().startswith(b"\x89PNG")
    assert "![Learning curves](figure2.png)" in (tmp_path / "out" / "figure2.md").read_text()


@pytest.mark.parametrize("table", [table2.TABLE, table3.TABLE])
def test_cells(table):
    """12 kinds of recurrent dropout and none, without and with forward dropout."""
    names = list(table.paper)
    assert len(names) == 2 * 13
    upper = names[:13]
    assert names[13:] == ["forward", *(f"forward-{name}" for name in upper[1:])]
    assert len({experiment.split_name(name) for name in upper}) == 13
    assert experiment.dropout_flags("none") == []


def test_data_of_the_tables_own_level(plan, run_table, stream_data, tmp_path):
    plan({"*": [[9, 1]]})
    for table, tokenizer in (("table2", "moses"), ("table3", "characters")):
        folder = tmp_path / tokenizer
        shutil.copytree(stream_data, folder)
        Tokenization(tokenizer).save(folder)
        args = ("--cells", "none", "--epochs", "1", "--data", folder, "--out", tmp_path / table)
        assert run_table(table, *args)[0] == 0


def test_bad_data(call, tmp_path, stream_data):
    """Each ends in one line, and leaves nothing."""
    out = tmp_path / "out"
    for args, words in (
        ([], "table2 needs --data, a folder made by rnndrop prepare ptb --level word"),
        (["--data", "nowhere"], "nowhere/dict.txt: no such file; rnndrop prepare ptb --level word makes it"),
    ):
        status, text, err = call(reproduce, "table2", "--out", out, *args)
        assert (status, text, err.count("\n")) == (2, "", 1)
        assert words in err
    characters = tmp_path / "characters"
    characters.mkdir()
    for file in stream_data.iterdir():
        (characters / file.name).symlink_to(file)
    Tokenization("characters").save(characters)
    status, _, err = call(reproduce, "table2", "--out", out, "--data", characters)
    assert (status, err.count("\n")) == (2, 1)
    assert "its tokens are not those of rnndrop prepare ptb --level word, which table2 needs" in err
    Tokenization("moses").save(characters)
    status, _, err = call(reproduce, "table3", "--out", out, "--data", characters)
    assert status == 2
    assert "its tokens are not those of rnndrop prepare ptb --level char, which table3 needs" in err
    assert not out.exists()


def test_commit(tmp_path, monkeypatch):
    """That of the checkout alone, and with a word of its changes."""
    inner = tmp_path / "repository" / "inner"
    inner.mkdir(parents=True)
    git = ["git", "-c", "user.name=N", "-c", "user.email=E", "-C", str(inner.parent)]
    subprocess.run([*git, "init", "-q"], check=True)
    (inner.parent / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "M"], check=True)
    monkeypatch.setattr(origin, "ROOT", inner)
    assert origin.commit() is None
    monkeypatch.setattr(origin, "ROOT", inner.parent)
    commit = origin.commit()
    assert int(commit, 16)
    (inner.parent / "file").write_text("2")
    assert origin.commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert origin.commit() is None
