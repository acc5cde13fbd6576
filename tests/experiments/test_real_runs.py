"""reproduce.py with fairseq's own commands, which the other tests of it replace by fake_fairseq.py."""

import json
import math

import pytest

from experiments import plot_cell_norms, reproduce, table1, table4, table5
from tests.conftest import write_tagging_data


@pytest.fixture
def labelled_data(tmp_path):
    """What Tables 4 and 5 need: tags, labels, weak labels and vectors of three numbers."""
    sizes = {"train": 40, "valid": 12, "test": 12, **dict.fromkeys(table5.SPLITS, 12)}
    folder = write_tagging_data(tmp_path / "data", sizes)
    write_tagging_data(folder / "weak", {"train": 40, "valid": 12})
    names = folder / "label" / "dict.txt"
    names.write_text(names.read_text().replace("people", "positive").replace("places", "negative"))
    (folder / "weak" / "label" / "dict.txt").write_text(names.read_text())
    words = [line.split()[0] for line in (folder / "word" / "dict.txt").read_text().splitlines()]
    (folder / "vectors.txt").write_text("".join(f"{word} 0.5 -1 0.25\n" for word in words))
    return folder


@pytest.mark.slow
def test_table1(call, tmp_path, monkeypatch):
    """Sequences of three symbols are soon solved by fairseq-train, and the nets' memory can be plotted."""
    monkeypatch.setattr(table1, "LENGTHS", {3: "tiny"})
    monkeypatch.setattr(table1, "PAPER", {("update", "step"): {3: ("-", "-")}})
    monkeypatch.setattr(table1, "TARGET", 90)
    small = ["--decoder-hidden-size", "16", "--lr", "1", "--cpu"]
    monkeypatch.setattr(table1, "TRAIN", [*table1.TRAIN, *small])
    status, out, err = call(reproduce, "table1", "--out", tmp_path / "out", "--cells", "3-none", "*inverted")
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "table1.json").read_text())["runs"]
    assert sorted(results) == ["3-none/seed1", "3-update-step-inverted/seed1"]
    for name, result in results.items():
        assert result["solved"], name
        assert result["test"]["test"] > 99
        assert result["updates"] % 200 == 0

    picture = tmp_path / "norms.svg"
    status, _, err = call(plot_cell_norms, tmp_path / "out", "--length", "3", "--output", picture)
    assert (status, err) == (0, "")
    for text in ("evaluation, expected scaling", "training, inverted scaling", "none", "update, per step"):
        assert f"<!-- {text} -->" in picture.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["table2", "table3"])
def test_language_models(call, tmp_path, stream_data, table):
    out = tmp_path / "out"
    status, _, err = call(reproduce, table, "--data", stream_data, "--out", out, "--cells", "none", "--epochs", "1")
    assert status == 0, err
    result = json.loads((out / f"{table}.json").read_text())["runs"]["none/seed1"]
    assert result["epochs"] == 1
    for split in ("valid", "test"):
        score = result["test"][split]
        assert 1 < (score if table == "table2" else 2**score) < 40  # 20 words
        assert math.isclose(result["tests"]["checkpoint_best.pt"][split][result["metric"]], score)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "name", "cell"),
    [(table4, "TRAIN", "forward-update-0.25-step"), (table5, "FINE_TUNING", "gru-0.25")],
    ids=["table4", "table5"],
)
def test_labelled(call, tmp_path, labelled_data, monkeypatch, experiment, name, cell):
    """Two epochs of the tagger; the classifier is pre-trained before."""
    monkeypatch.setattr(experiment, name, [*getattr(experiment, name), "--max-epoch", "2"])
    table, out = experiment.__name__.split(".")[-1], tmp_path / "out"
    status, _, err = call(reproduce, table, "--data", labelled_data, "--out", out, "--cells", cell)
    assert status == 0, err
    results = json.loads((out / f"{table}.json").read_text())["runs"]
    result = results[f"{cell}/seed1"]
    assert result["epochs"] == 2
    assert set(result["test"]) == ({"valid", "test"} if experiment is table4 else set(table5.SPLITS))
    assert all(0 <= score <= 100 for score in result["test"].values())
    assert (f"{cell}-pretraining/seed1" in results) is (experiment is table5)
