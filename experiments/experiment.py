"""What the experiments share: their flags, and their tables."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from experiments.origin import ROOT
from experiments.runs import Run

WHOSE = {"update": "update (the paper's)", "hidden": "hidden (Gal)", "cell": "cell (Moon et al.)"}
LOGGING = "--log-format json --log-interval 1000000".split()  # what an epoch has, nothing between


class Experiment(NamedTuple):
    """A table or a figure of the paper.

    Attributes:
        runs: its runs, given the command line. A run's name is its cell's and "/seedN".
        prepare: makes or checks the data, given the command line.
        markdown: the table, given the results by the runs' names.
        folder: of its runs below outputs, where it is not the experiment's own name.
        picture: draws a picture, given the results, of which there is one at least, and the folder of the runs.
    """

    runs: Callable[[argparse.Namespace], list[Run]]
    prepare: Callable[[argparse.Namespace], None]
    markdown: Callable[[dict[str, dict]], str]
    folder: str | None = None
    picture: Callable[[dict[str, dict], Path], None] | None = None


def device() -> list[str]:
    import torch  # takes seconds: not before the command line has been read

    return [] if torch.cuda.is_available() else ["--cpu"]


def common_flags(task: str) -> list[str]:
    """The flags of fairseq's commands that all runs of an experiment have."""
    return ["--user-dir", str(ROOT / "rnndrop_plugin"), "--task", task, *LOGGING, *device()]


def of_cell(results: dict[str, dict], cell: str) -> list[dict]:
    """The results of a cell, one a seed."""
    return [result for name, result in results.items() if name.rsplit("/", 1)[0] == cell]


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def all_of(results: dict[str, dict], key: str) -> list[str]:
    """What the results have under ``key`` ("commits" or "devices"), each once."""
    return [*dict.fromkeys(value for result in results.values() for value in result.get(key, []))]


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
