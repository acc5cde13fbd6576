"""Table 1: Temporal Order. The optimisation follows section 4.1, the clipping the authors' code."""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean

from experiments.experiment import WHOSE, Experiment, common_flags, header, of_cell, row
from experiments.origin import ROOT
from experiments.runs import Run
from rnndrop_plugin.errors import failure

DATA_SEED = 1
TRAIN = (
    "--arch lstm_rnndrop_classifier_temporal_order --criterion rnndrop_classification --batch-size 32 "
    "--optimizer sgd --lr 0.1 --clip-norm 5 --batch-size-valid 500 --validate-interval 10 "
    "--keep-last-epochs 5"  # a few epochs may pass before a run that has reached its target is stopped
).split()
RATE = 0.5
TARGET = 99.5  # percent: the task is solved if the training accuracy with dropout reaches this in two epochs in a row
LIMIT = 200_000  # the number of updates after which the net without dropout is given up
LENGTHS = {15: "short", 30: "medium"}
# Table 1 (COLING and arXiv v2): training and test accuracy, percent
PAPER = {
    ("update", "step"): {15: ("100", "100"), 30: ("100", "100")},
    ("update", "sequence"): {15: ("100", "100"), 30: ("100", "100")},
    ("hidden", "step"): {15: ("100", "100"), 30: ("100", "100")},
    ("hidden", "sequence"): {15: ("100", "100"), 30: ("100", "100")},
    ("cell", "step"): {15: ("100", "100"), 30: ("25", "25")},
    ("cell", "sequence"): {15: ("100", "25"), 30: ("100", "<25")},
}


def data_folder(args: argparse.Namespace, length: int) -> Path:
    return args.out / f"data-{length}"


def prepare(args: argparse.Namespace) -> None:
    """Make the data of both lengths unless they are there."""
    for length in LENGTHS:
        dest = data_folder(args, length)
        if not dest.exists():
            script = str(ROOT / "scripts" / "make_temporal_order.py")
            given = ["--length", str(length), "--seed", str(DATA_SEED), "--dest", str(dest)]
            done = subprocess.run([sys.executable, script, *given], capture_output=True, text=True)
            if done.returncode:
                raise failure(Path(script).name, done.returncode, done.stderr)


def is_solved(done: list[dict]) -> bool:
    """Whether the last two epochs have reached the target."""
    return len(done) > 1 and all(float(entry["train_accuracy"]) >= TARGET for entry in done[-2:])


def cell_name(length: int, kind: str, sampling: str, scaling: str) -> str:
    return f"{length}-{kind}-{sampling}-{scaling}"


def runs(args: argparse.Namespace) -> list[Run]:
    """The runs for each length: first the net without dropout, then every dropout, sampling and scaling."""

    def more(needed: dict) -> list[str]:
        return ["--max-update", str(max(1, round(args.budget * needed["updates"])))]

    planned = []
    for seed in args.seeds:
        for length in LENGTHS:
            data = data_folder(args, length)
            shared = [str(data), *common_flags("rnndrop_classification")]
            train = [*shared, *TRAIN, "--decoder-embed-path", str(data / "vectors.txt"), "--seed", str(seed)]
            common = {
                "test": [*shared, "--batch-size", "100"],
                "splits": ["test"],
                "metrics": ["accuracy"],
                "ends": is_solved,
                "checkpoints": ["checkpoint_last.pt"],
            }
            none = f"{length}-none/seed{seed}"
            planned.append(Run(none, [*train, "--max-update", str(LIMIT)], **common))
            for scaling in ("expected", "inverted"):
                for kind, sampling in PAPER:
                    flags = [f"--{kind}-dropout", str(RATE), "--recurrent-dropout-sampling", sampling]
                    flags += ["--recurrent-dropout-scaling", scaling]
                    name = f"{cell_name(length, kind, sampling, scaling)}/seed{seed}"
                    planned.append(Run(name, [*train, *flags], needs=none, more=more, **common))
    return planned


def accuracies(results: list[dict]) -> str:
    """The training and test accuracy as means over the seeds, and a note if not all seeds were solved."""
    if not results:
        return ""
    text = f"{mean(r['training'] for r in results):.1f} / {mean(r['test']['test'] for r in results):.1f}"
    solved = sum(r["solved"] for r in results)
    if solved == len(results):
        return text
    given_up = f"not solved after {max(r['updates'] for r in results if not r['solved']):,} updates"
    return f"{text} ({given_up}{f' in {len(results) - solved} of {len(results)} runs' if len(results) > 1 else ''})"


def markdown(results: dict[str, dict]) -> str:
    """Table 1 beside the paper's, the same table for inverted scaling, and the updates and the time of each run."""
    lines = ["# Temporal Order (Table 1)", ""]
    lines += [f"Accuracy in percent, training (masks on) / test (masks off); dropout rate {RATE}.", ""]
    for scaling, title in (
        ("expected", "Expected scaling (Eq. 3), the paper's"),
        ("inverted", "Inverted scaling (Eq. 14 of COLING, 18 of arXiv v2), which the paper's table does not have"),
    ):
        paper = scaling == "expected"
        heads = ["dropout", "sampling"]
        for length in LENGTHS.values():
            heads += [f"{length}: paper", f"{length}: ours"] if paper else [length]
        lines += [f"## {title}", "", *header(heads)]
        cells = []
        for length in LENGTHS:
            cells += ([""] if paper else []) + [accuracies(of_cell(results, f"{length}-none"))]
        lines.append(row(["none", "", *cells]))
        for kind, sampling in PAPER:
            cells = []
            for length in LENGTHS:
                if paper:
                    cells.append(" / ".join(PAPER[kind, sampling][length]))
                cells.append(accuracies(of_cell(results, cell_name(length, kind, sampling, scaling))))
            lines.append(row([WHOSE[kind], f"per {sampling}", *cells]))
        lines.append("")
    heads = ["run", "solved", "updates", "ratio to no dropout", "training", "test", "seconds"]
    lines += ["## Runs", "", *header(heads)]
    for name, result in results.items():
        length, seed = name.split("-")[0], name.rsplit("/", 1)[1]
        none = results.get(f"{length}-none/{seed}")
        times = f"{result['updates'] / none['updates']:.1f}" if none else ""
        figures = [f"{result['training']:.2f}", f"{result['test']['test']:.2f}", f"{result['seconds']:.0f}"]
        solved = "yes" if result["solved"] else "no"
        lines.append(row([name, solved, f"{result['updates']:,}", times, *figures]))
    lines += [
        "",
        f"Solved: the training accuracy is at least {TARGET} % in two epochs (of 200 updates) in a row. Updates are "
        "counted up to the second of these epochs, whose checkpoint is tested. A run is given up, but still tested, "
        "after a multiple of the updates that the net without dropout of its length and seed took. The paper's runs "
        "have up to 5,000 epochs. For each length there are 10,000 test sequences.",
    ]
    return "\n".join(lines) + "\n"


EXPERIMENT = Experiment(runs, prepare, markdown, frozenset({"budget"}))
