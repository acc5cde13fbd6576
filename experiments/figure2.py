"""Figure 2 of arXiv v2: training and validation error of two runs of Table 2, without and with update dropout."""

import argparse
import importlib
import math
from pathlib import Path

from experiments.experiment import Experiment
from experiments.runs import Run
from experiments.table2 import TABLE
from rnndrop_plugin.cli.plot import both_curves, draw

LABELS = {"none": "without dropout,", "update-0.25-step": "with update dropout 0.25 per step,"}
PICTURE = "figure2.png"


def prepare(args: argparse.Namespace) -> None:
    """Check that the data and matplotlib are there."""
    importlib.import_module("matplotlib")  # fail before the training if it is missing
    TABLE.prepare(args)


def runs(args: argparse.Namespace) -> list[Run]:
    """The runs of Table 2 that the figure shows."""
    return [run for run in TABLE.runs(args) if run.name.split("/")[0] in LABELS]


def picture(results: dict[str, dict], out: Path) -> None:
    """Draw the curves of the finished runs, in nats."""
    labels, curves = [], []
    for name in results:
        cell, seed = name.split("/")
        several = sum(other.startswith(f"{cell}/") for other in results) > 1
        labels.append(f"{LABELS[cell]} {seed.replace('seed', 'seed ')}," if several else LABELS[cell])
        both = both_curves(out / name / "train.log", "nll_loss")
        curves.append([(updates, [value * math.log(2) for value in values]) for updates, values in both])
    draw(curves, labels, out / PICTURE, ylabel="nats per word", title="Penn Treebank, LSTM of 256 units")


def markdown(results: dict[str, dict]) -> str:
    """The picture and its legend."""
    lines = ["# Learning curves (Figure 2 of arXiv v2)"]
    if results:
        lines.append(f"![Learning curves]({PICTURE})")
    lines.append(
        "Mean negative log-likelihood of a word against the number of updates, once an epoch. Training (dashed): mean "
        "over the epoch, dropout on. Validation (solid): after it, dropout off. The paper draws the training solid and "
        "the validation dashed."
    )
    lines += [f"{name}: {result['epochs']} epochs." for name, result in results.items()]
    return "\n\n".join(lines) + "\n"


EXPERIMENT = Experiment(runs, prepare, markdown, frozenset({"data", "epochs"}), folder="table2", picture=picture)
