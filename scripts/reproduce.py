"""Run an experiment of the paper and write its table beside the paper's figures."""

import argparse
import fnmatch
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from _common import positive, run
from _runs import Run, Runs, write_whole

ROOT = Path(__file__).parents[1]
PLUGIN = ["--user-dir", str(ROOT / "rnndrop_plugin"), "--task", "rnndrop_classification"]
LOGGING = "--log-format json --log-interval 1000000".split()  # what an epoch has, nothing between


# Table 1: Temporal Order. Optimisation: section 4.1; clipping: the authors' code.
ORDER_DATA_SEED = 1
ORDER_TRAIN = (
    "--arch lstm_rnndrop_classifier_temporal_order --criterion rnndrop_classification --batch-size 32 "
    "--optimizer sgd --lr 0.1 --clip-norm 5 --batch-size-valid 500 --validate-interval 10 "
    "--keep-last-epochs 5"  # a few epochs may pass before a run that has reached its target is stopped
).split()
ORDER_RATE = 0.5
ORDER_TARGET = 99.5  # percent of the training sequences, masks on: in two epochs in a row, the task is solved
ORDER_LIMIT = 200_000  # updates after which the net without dropout is given up
LENGTHS = {15: "short", 30: "medium"}
# Table 1 (COLING and arXiv v2): training and test accuracy, percent
ORDER_PAPER = {
    ("update", "step"): {15: ("100", "100"), 30: ("100", "100")},
    ("update", "sequence"): {15: ("100", "100"), 30: ("100", "100")},
    ("hidden", "step"): {15: ("100", "100"), 30: ("100", "100")},
    ("hidden", "sequence"): {15: ("100", "100"), 30: ("100", "100")},
    ("cell", "step"): {15: ("100", "100"), 30: ("25", "25")},
    ("cell", "sequence"): {15: ("100", "25"), 30: ("100", "<25")},
}
WHOSE = {"update": "update (the paper's)", "hidden": "hidden (Gal)", "cell": "cell (Moon et al.)"}

# Table 5: Twitter sentiment. Section 4.5 of arXiv v2, "all the other settings" being those of its section 4.4, but for
# two: tanh, as with relu single batches have losses of 30 and more; and embeddings that the pre-training goes on with.
TWITTER_TRAIN = (
    "--recurrent-nonlinearity tanh --criterion rnndrop_classification --f1-classes positive,negative "
    "--optimizer rnndrop_rmsprop --lr 0.001 --lr-scheduler fixed --force-anneal 2 --lr-shrink 0.99 --clip-norm 5 "
    "--best-checkpoint-metric f1 --maximize-best-checkpoint-metric --no-epoch-checkpoints --batch-size-valid 100"
).split()
TWITTER_PRETRAINING = "--batch-size 64 --max-epoch 2 --seed 1".split()
TWITTER_FINE_TUNING = "--batch-size 32 --max-epoch 6 --decoder-freeze-embed".split()
TWITTER_SPLITS = {
    "twitter13": "Twitter13",
    "livejournal14": "LiveJournal14",
    "twitter15": "Twitter15",
    "twitter14": "Twitter14",
    "sms13": "SMS13",
    "sarcasm14": "Sarcasm14",
}
TWITTER_RATES = {"rnn": "--hidden-dropout", "lstm": "--update-dropout", "gru": "--update-dropout"}
# Table 5 of arXiv v2: F1 in the order of TWITTER_SPLITS
TWITTER_PAPER = {
    ("rnn", "0"): (67.54, 71.20, 59.35, 68.90, 64.51, 53.58),
    ("rnn", "0.25"): (66.35, 67.70, 59.91, 67.76, 64.46, 48.74),
    ("lstm", "0"): (67.97, 69.82, 57.84, 67.95, 61.47, 53.49),
    ("lstm", "0.25"): (69.11, 71.39, 61.35, 68.08, 65.45, 53.80),
    ("gru", "0"): (67.09, 70.80, 59.07, 67.02, 67.11, 51.01),
    ("gru", "0.25"): (69.04, 72.10, 60.34, 69.65, 65.73, 54.77),
}


class Experiment(NamedTuple):
    """A table of the paper.

    Attributes:
        runs: its runs, given the command line. A run's name is its cell's and "/seedN".
        prepare: makes or checks the data, given the command line.
        markdown: the table, given the results by the runs' names.
    """

    runs: Callable[[argparse.Namespace], list[Run]]
    prepare: Callable[[argparse.Namespace], None]
    markdown: Callable[[dict[str, dict]], str]


def device() -> list[str]:
    import torch  # takes seconds: not before the command line has been read

    return [] if torch.cuda.is_available() else ["--cpu"]


def order_data(args: argparse.Namespace, length: int) -> Path:
    return args.out / f"data-{length}"


def order_prepare(args: argparse.Namespace) -> None:
    """Make the data of both lengths unless they are there."""
    for length in LENGTHS:
        dest = order_data(args, length)
        if not dest.exists():
            script = str(ROOT / "scripts" / "make_temporal_order.py")
            given = ["--length", str(length), "--seed", str(ORDER_DATA_SEED), "--dest", str(dest)]
            done = subprocess.run([sys.executable, script, *given], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(done.stderr.strip().splitlines()[-1])


def order_cell(length: int, kind: str, sampling: str, scaling: str) -> str:
    return f"{length}-{kind}-{sampling}-{scaling}"


def order_runs(args: argparse.Namespace) -> list[Run]:
    """For each length the net without dropout, then every dropout, sampling and scaling."""

    def more(needed: dict) -> list[str]:
        return ["--max-update", str(round(args.budget * needed["updates"]))]

    runs = []
    for seed in args.seeds:
        for length in LENGTHS:
            data = order_data(args, length)
            shared = [str(data), *PLUGIN, *LOGGING, *device()]
            train = [*shared, *ORDER_TRAIN, "--decoder-embed-path", str(data / "vectors.txt"), "--seed", str(seed)]
            common = {
                "test": [*shared, "--batch-size", "100"],
                "splits": ["test"],
                "metric": "accuracy",
                "target": ORDER_TARGET,
                "checkpoint": "checkpoint_last.pt",
            }
            none = f"{length}-none/seed{seed}"
            runs.append(Run(none, [*train, "--max-update", str(ORDER_LIMIT)], **common))
            for scaling in ("expected", "inverted"):
                for kind, sampling in ORDER_PAPER:
                    flags = [f"--{kind}-dropout", str(ORDER_RATE), "--recurrent-dropout-sampling", sampling]
                    flags += ["--recurrent-dropout-scaling", scaling]
                    name = f"{order_cell(length, kind, sampling, scaling)}/seed{seed}"
                    runs.append(Run(name, [*train, *flags], needs=none, more=more, **common))
    return runs


def of_cell(results: dict[str, dict], cell: str) -> list[dict]:
    """The results of a cell, one a seed."""
    return [result for name, result in results.items() if name.rsplit("/", 1)[0] == cell]


def order_figures(results: list[dict]) -> str:
    """Training and test accuracy, means over the seeds, and whether all were solved."""
    if not results:
        return ""
    text = f"{mean(r['training'] for r in results):.1f} / {mean(r['test']['test'] for r in results):.1f}"
    solved = sum(r["solved"] for r in results)
    if solved == len(results):
        return text
    given_up = f"not solved after {max(r['updates'] for r in results if not r['solved']):,} updates"
    return f"{text} ({given_up}{f' in {len(results) - solved} of {len(results)} runs' if len(results) > 1 else ''})"


def order_markdown(results: dict[str, dict]) -> str:
    """Table 1 beside the paper's, the same for inverted scaling, and each run's updates and time."""
    lines = ["# Temporal Order (Table 1)", ""]
    lines += [f"Accuracy in percent, training (masks on) / test (masks off); dropout rate {ORDER_RATE}.", ""]
    for scaling, title in (
        ("expected", "Expected scaling (Eq. 3), the paper's"),
        ("inverted", "Inverted scaling (Eq. 14 of COLING, 18 of arXiv v2), which the paper's table does not have"),
    ):
        paper = scaling == "expected"
        heads = ["dropout", "sampling"]
        for length in LENGTHS.values():
            heads += [f"{length}: paper", f"{length}: ours"] if paper else [length]
        lines += [f"## {title}", "", row(heads), row(["---"] * len(heads))]
        cells = []
        for length in LENGTHS:
            cells += ([""] if paper else []) + [order_figures(of_cell(results, f"{length}-none"))]
        lines.append(row(["none", "", *cells]))
        for kind, sampling in ORDER_PAPER:
            cells = []
            for length in LENGTHS:
                if paper:
                    cells.append(" / ".join(ORDER_PAPER[kind, sampling][length]))
                cells.append(order_figures(of_cell(results, order_cell(length, kind, sampling, scaling))))
            lines.append(row([WHOSE[kind], f"per {sampling}", *cells]))
        lines.append("")
    heads = ["run", "solved", "updates", "of no dropout's", "training", "test", "seconds"]
    lines += ["## Runs", "", row(heads), row(["---"] * len(heads))]
    for name, result in results.items():
        length, seed = name.split("-")[0], name.rsplit("/", 1)[1]
        none = results.get(f"{length}-none/{seed}")
        times = f"{result['updates'] / none['updates']:.1f}" if none else ""
        figures = [f"{result['training']:.2f}", f"{result['test']['test']:.2f}", f"{result['seconds']:.0f}"]
        solved = "yes" if result["solved"] else "no"
        lines.append(row([name, solved, f"{result['updates']:,}", times, *figures]))
    lines += [
        "",
        f"Solved: training accuracy of at least {ORDER_TARGET} % in two epochs (of 200 updates) in a row; the updates "
        "are those up to the second, and its checkpoint is tested. A run is given up, and tested all the same, after a "
        "multiple of the updates that the net without dropout of its length and seed took. The paper's runs have up to "
        "5,000 epochs. All lengths have 10,000 sequences to test.",
    ]
    return "\n".join(lines) + "\n"


def twitter_prepare(args: argparse.Namespace) -> None:
    """Check that there are data."""
    if args.data is None:
        raise ValueError("table5 needs --data, a folder made by prepare_semeval.py with --weak and --vectors")
    for name in ("word/dict.txt", "weak/word/dict.txt", "vectors.txt"):
        if not (args.data / name).is_file():
            raise FileNotFoundError(
                f"{args.data / name}: no such file; prepare_semeval.py makes it with --weak and --vectors"
            )


def twitter_runs(args: argparse.Namespace) -> list[Run]:
    """For each network and rate the pre-training, then the fine-tuning with each seed."""
    data = args.data or Path("DATA")  # --list needs none
    runs = []
    for network, rate in TWITTER_PAPER:
        shared = [*PLUGIN, *LOGGING, *device()]
        train = [*shared, *TWITTER_TRAIN, "--arch", f"{network}_rnndrop_classifier_semeval"]
        train += ["--decoder-embed-path", str(data / "vectors.txt"), TWITTER_RATES[network], rate]
        test = [str(data), *shared, "--batch-size", "100"]
        before = f"{network}-{rate}-pretraining/seed1"
        runs.append(Run(before, [str(data / "weak"), *train, *TWITTER_PRETRAINING], [], [], "f1"))
        for seed in args.seeds:
            runs.append(
                Run(
                    f"{network}-{rate}/seed{seed}",
                    [str(data), *train, *TWITTER_FINE_TUNING, "--seed", str(seed)],
                    test,
                    list(TWITTER_SPLITS),
                    "f1",
                    needs=before,
                    more=lambda needed: ["--finetune-from-model", needed["checkpoint"]],
                )
            )
    return runs


def twitter_markdown(results: dict[str, dict]) -> str:
    """Table 5 of arXiv v2, ours beside the paper's: mean and standard deviation over the seeds."""
    lines = ["# Twitter sentiment (Table 5 of arXiv v2)", ""]
    lines += ["Mean of the F1 of positive and of negative, percent: mean over the seeds ± standard deviation.", ""]
    heads = ["network", "rate", "", *TWITTER_SPLITS.values(), "seeds"]
    lines += [row(heads), row(["---"] * len(heads))]
    for (network, rate), paper in TWITTER_PAPER.items():
        lines.append(row([network.upper(), rate, "paper", *(f"{value:.2f}" for value in paper), ""]))
        ours = of_cell(results, f"{network}-{rate}")
        cells = [spread([result["test"][split] for result in ours]) for split in TWITTER_SPLITS]
        lines.append(row([network.upper(), rate, "ours", *cells, str(len(ours))]))
    lines += [
        "",
        "The paper pre-trained on 1,000,000 weakly labelled tweets and had other word vectors. Ours has one "
        "pre-training for each network and rate, which the seeds of the fine-tuning share.",
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


TABLES = {
    "table1": Experiment(order_runs, order_prepare, order_markdown),
    "table5": Experiment(twitter_runs, twitter_prepare, twitter_markdown),
}


def write(args: argparse.Namespace, runs: Runs) -> str:
    """Write the results so far, earlier commands' too, as Markdown and JSON, and return the Markdown."""
    results = runs.results_so_far()
    command = shlex.join(["python", "scripts/reproduce.py", *sys.argv[1:]])
    machine = f"{platform.processor() or platform.machine()}, one thread a run, {args.jobs} at a time"
    text = f"{TABLES[args.table].markdown(results)}\nMade by `{command}` ({machine}).\n"
    figures = {name: {key: r[key] for key in r if key not in ("train", "checkpoint")} for name, r in results.items()}
    content = {"command": command, "machine": machine, "runs": figures}
    write_whole(args.out / f"{args.table}.json", json.dumps(content, indent=2) + "\n")
    write_whole(args.out / f"{args.table}.md", text)
    return text


def factor(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run an experiment of the paper and write its table beside the paper's, as Markdown and JSON. When "
        "the command is given again, a run that is finished is not done again and one that was interrupted goes on.",
    )
    parser.add_argument("table", choices=TABLES, help="table1: Temporal Order; table5: Twitter sentiment (arXiv v2)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs and the table (default: outputs/TABLE)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="table5: the folder made by prepare_semeval.py (table1 makes its data)"
    )
    parser.add_argument(
        "--cells", nargs="+", metavar="NAME", help="these cells alone, and what they need; may have * (default: all)"
    )
    parser.add_argument("--seeds", type=positive, nargs="+", default=[1], metavar="N", help="(default: 1)")
    parser.add_argument(
        "--budget",
        type=factor,
        default=20,
        metavar="FACTOR",
        help="table1: give a run up after this many times the updates of the net without dropout (default: 20)",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the cells and do nothing else")
    args = parser.parse_args()
    args.out = args.out or Path("outputs") / args.table

    runs = Runs(TABLES[args.table].runs(args), args.out)
    runs.results_so_far()  # if one is damaged, say so now
    cells = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in runs.runs))
    if args.list:
        print("\n".join(cells))
        return
    for pattern in args.cells or []:
        if not fnmatch.filter(cells, pattern):
            raise ValueError(f"{args.table} has no cell {pattern}; --list prints them")
    chosen = [cell for cell in cells if not args.cells or any(fnmatch.fnmatchcase(cell, p) for p in args.cells)]
    TABLES[args.table].prepare(args)
    names = [name for name in runs.runs if name.rsplit("/", 1)[0] in chosen]
    runs.perform(names, args.jobs, lambda: write(args, runs))
    print(f"\n{write(args, runs)}\nThe table is in {args.out / args.table}.md and .json")
    for name, reason in runs.failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if runs.failures:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
