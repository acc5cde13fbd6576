"""What the experiments share: flags, and helpers for their tables."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from experiments.origin import ROOT
from experiments.runs import Run

WHOSE = {"update": "update (the paper's)", "hidden": "hidden (Gal)", "cell": "cell (Moon et al.)"}
TITLES = {False: "Without forward dropout", True: "With forward dropout, 0.2 on the inputs and 0.5 on the outputs"}
FORWARD = "--decoder-dropout-in 0.2 --decoder-dropout-out 0.5".split()  # of Tables 2 to 4
LOGGING = "--log-format json --log-interval 1000000".split()  # one line per epoch, none in between


class Experiment(NamedTuple):
    """A table or a figure of the paper.

    Attributes:
        runs: returns its runs, given the command line. A run's name is the name of its cell followed by "/seedN".
        prepare: makes or checks the data, given the command line.
        markdown: returns the table, given the results by the runs' names.
        takes: which of the flags "data", "budget" and "epochs", which not all experiments take, it takes.
        folder: the folder of its runs in outputs, if it is not the experiment's own name.
        picture: draws a picture, given the results (at least one) and the folder of the runs.
    """

    runs: Callable[[argparse.Namespace], list[Run]]
    prepare: Callable[[argparse.Namespace], None]
    markdown: Callable[[dict[str, dict]], str]
    takes: frozenset[str]
    folder: str | None = None
    picture: Callable[[dict[str, dict], Path], None] | None = None


def device_flags() -> list[str]:
    """The flags of fairseq's commands for this machine's device: one GPU, or the CPU."""
    import torch  # takes seconds, so read the command line before it

    return ["--distributed-world-size", "1"] if torch.cuda.is_available() else ["--cpu"]


def common_flags(task: str) -> list[str]:
    """The flags of fairseq's commands that all runs of an experiment have."""
    return ["--user-dir", str(ROOT / "rnndrop_plugin"), "--task", task, *LOGGING, *device_flags()]


def check_data(args: argparse.Namespace, names: Sequence[str], made: str, flags: str = "") -> None:
    """Raise ValueError without --data, and FileNotFoundError unless the folder has the files ``names``.

    Args:
        made: the command that makes such a folder.
        flags: the flags that this command needs, as a text such as " with --vectors".
    """
    if args.data is None:
        raise ValueError(f"{args.table} needs --data, a folder made by {made}{flags}")
    for name in names:
        if not (args.data / name).is_file():
            raise FileNotFoundError(f"{args.data / name}: no such file; {made} makes it{flags}")


def files_of(stream: str, splits: Sequence[str]) -> list[str]:
    """The files of a stream in a data folder (``""``: the folder itself): its dictionary and its splits."""
    names = ("dict.txt", *(f"{split}.{ending}" for split in splits for ending in ("bin", "idx")))
    return [os.path.join(stream, name) for name in names]


def split_name(cell: str) -> tuple[str, str, str]:
    """The kind, the rate and the sampling of a cell's recurrent dropout; ``("none", "", "")`` if it has none."""
    parts = cell.removeprefix("forward").strip("-").split("-")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("none", "", "")


def halves(paper: dict[str, tuple]) -> Iterator[tuple[str, dict[str, tuple]]]:
    """The two halves of a table, without and with forward dropout: the title and the paper's figures by cell."""
    for forward, title in TITLES.items():
        yield title, {cell: figures for cell, figures in paper.items() if cell.startswith("forward") == forward}


def first_columns(cell: str) -> tuple[str, str, str]:
    """The first columns of a cell's row: the kind of recurrent dropout and its author, the rate and the sampling."""
    kind, rate, sampling = split_name(cell)
    return WHOSE.get(kind, kind), rate, f"per {sampling}" if sampling else ""


def dropout_flags(cell: str) -> list[str]:
    """The flags that a cell's name stands for."""
    kind, rate, sampling = split_name(cell)
    flags = FORWARD if cell.startswith("forward") else []
    if kind != "none":
        flags = [*flags, f"--{kind}-dropout", rate, "--recurrent-dropout-sampling", sampling]
    return flags


def embedding_flags(data: Path) -> list[str]:
    """The flags for the word vectors of a data folder, which may have any dimension."""
    path = data / "vectors.txt"
    flags = ["--decoder-embed-path", str(path)]
    if path.is_file():  # --list needs none
        with path.open(encoding="utf-8") as rows:
            size = rows.readline().rstrip().count(" ")
        if size:  # the training itself refuses an empty file
            flags += ["--decoder-embed-dim", str(size)]
    return flags


def of_cell(results: dict[str, dict], cell: str) -> list[dict]:
    """The results of a cell, one for each seed."""
    return [result for name, result in results.items() if name.rsplit("/", 1)[0] == cell]


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def all_of(results: dict[str, dict], key: str) -> list[str]:
    """All values that the results have under ``key`` ("commits" or "devices"), each once."""
    return [*dict.fromkeys(value for result in results.values() for value in result.get(key, []))]


def header(heads: Sequence[str]) -> list[str]:
    """The first two rows of a Markdown table."""
    return [row(heads), row(["---"] * len(heads))]


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
