import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import benchmark, layers
from rnndrop_plugin.ops import Mask, Masks, choose_backend

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
TINY = layers.Shape(3, 2, 4, 5)


def run(*args):
    command = [sys.executable, str(SCRIPT), "--threads", "1", "--seconds", "0.01", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_figures(tmp_path):
    files = tmp_path / "figures.json", tmp_path / "figures.svg"
    done = run("--shapes", TINY, "--families", "LSTM", "--json", files[0], "--plot", files[1])
    assert done.returncode == 0, done.stderr
    result = json.loads(files[0].read_text())
    assert result["threads"] == 1 and result["product rate"] > 0
    figures = result["figures"]
    assert {figure["section"] for figure in figures} == set(benchmark.SECTIONS)
    for figure in figures:
        assert figure["value"] > 0
        assert figure["name"] in done.stdout and f"[{figure['backend']}]" in done.stdout
        if figure["section"] != "growth" and figure["name"].startswith("torch.nn"):
            assert figure["ratio"] == 1
        if "update dropout" in figure["name"] and "rnndrop" in figure["name"] and figure["section"] == "training":
            dropped = Masks(update=Mask(torch.ones(1, 1, dtype=torch.bool), 2.0))
            assert figure["backend"] == choose_backend("lstm", dropped, training=True)
    drops = [figure["name"] for figure in figures if figure["section"] == "training"]
    for kind in ("update", "hidden", "cell"):
        for sampling in ("step", "sequence"):
            assert f"rnndrop LSTM, {kind} dropout per {sampling}" in drops
    growth = [figure["shape"] for figure in figures if figure["section"] == "growth"]
    assert growth == [[3, 2, 4, 10]] * 2 + [[3, 4, 4, 5]] * 2 + [[6, 2, 4, 5]] * 2
    rows = [(figure["shape"][1], figure["name"]) for figure in figures if figure["section"] == "rows"]
    for batch in layers.ROWS:
        assert (batch, "training: rnndrop LSTM, update dropout per step") in rows
        for scaling in ("inverted", "expected"):
            assert (batch, f"evaluation: rnndrop LSTM, update dropout per step, {scaling} scaling") in rows
    assert "rnndrop LSTM, update dropout per step" in files[1].read_text()


def test_layers_do_what_their_names_say():
    for family in layers.GATES:
        for layer in layers.training_layers(family):
            module = layer.build(4, 5)
            assert ("update dropout" in layer.name) == (getattr(module, "update_dropout", 0) > 0)
            assert ("hidden dropout" in layer.name) == (getattr(module, "hidden_dropout", 0) > 0)
            assert ("cell dropout" in layer.name) == (getattr(module, "cell_dropout", 0) > 0)
            for kind in ("update", "hidden", "cell"):
                if f"{kind} dropout" in layer.name:
                    assert getattr(module, f"{kind}_sampling") == layer.name.split()[-1]
            assert layer.backend == "torch.nn" or module.backend in ("auto", layer.backend)
            assert ("paper's" in layer.name) == (getattr(module, "cell", "") == "gru")
        for layer in layers.evaluation_layers(family):
            assert layer.name.endswith(f"{getattr(layer.build(4, 5), 'scaling', 'no dropout')} scaling") or (
                layer.backend == "torch.nn"
            )


def test_a_step_trains_or_evaluates(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: calls.append(args))
    layer = layers.ours("LSTM", "update")
    layers.make_step(layer, TINY, training=False)()
    assert not calls
    layers.make_step(layer, TINY, training=True)()
    ((output, leaves, gradient),) = calls
    assert output.shape == gradient.shape == (3, 2, 5) and len(leaves) == 5


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_drops_in_training_alone(mode, training):
    layer = layers.Layer("a layer", "LSTM", "torch.nn", lambda features, hidden: mode)
    layers.make_step(layer, layers.Shape(3, 2, 4, 4), training)()
    assert mode.seen == [training]


def test_the_figure_of_a_layer_is_that_of_its_median():
    """The ratio is taken in each repetition."""
    layer = layers.torchs("LSTM")
    figure = layers.timing("training", TINY, layer, [0.004, 0.002, 0.009], [0.002, 0.002, 0.003], True, rate=1e6)
    assert (figure.ratio, figure.value, figure.unit) == (2, 4, "ms")
    assert figure.repetitions == pytest.approx([4, 2, 9])
    assert figure.share == pytest.approx(layers.operations("LSTM", TINY, True) / 1e6 / 0.004)


def test_layers_are_compared_with_torchs_and_growth_with_the_layer_itself(monkeypatch):
    monkeypatch.setattr(layers, "compare", lambda compared, *_: [[float(n)] for n in range(1, len(compared) + 1)])
    found = layers.measure("training", TINY, [layers.torchs("RNN"), layers.ours("RNN")], True, 1.0, 1e6, None)
    assert [figure.ratio for figure in found] == [1, 2]
    ratios = {figure.shape: figure.ratio for figure in layers.growth(["RNN"], TINY, 1.0, 1e6, None)}
    assert ratios == {(6, 2, 4, 5): 2, (3, 4, 4, 5): 3, (3, 2, 4, 10): 4}


def test_the_rate_of_the_products_is_the_best_one(monkeypatch):
    """By a clock on which each product takes a second."""
    monkeypatch.setattr(layers, "clock_of_work", lambda: itertools.count().__next__)
    monkeypatch.setattr(torch, "mm", lambda *_, out: out)
    assert layers.product_rate(2) == 2 * 2048**3


def test_the_time_of_other_programs_counts_where_there_are_threads():
    """The clock of one thread would leave out what the others do."""
    for threads, clock in ((1, time.thread_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        assert layers.clock_of_work() is clock


def test_operations():
    # W x and U h, 4 gates, a multiplication and an addition each; the gradients of both factors
    assert layers.operations("LSTM", TINY, False) == 3 * 2 * 2 * (20 * 4 + 20 * 5)
    assert layers.operations("LSTM", TINY, True) == 3 * layers.operations("LSTM", TINY, False)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--shapes", "3,4,5"], "'3,4,5' is not TIME,BATCH,INPUT,HIDDEN"),
        (["--sections", "memory", "--plot", "x.png"], "--plot needs the section training"),
        (["--json", "/no/such/folder/x.json"], "no such folder"),
        (["--json", "/tmp"], "/tmp is a folder"),
        (["--seconds", "0"], "'0' is not a number above 0"),
    ],
)
def test_bad_arguments(args, words):
    done = run(*args)
    assert done.returncode == 2
    assert words in done.stderr
