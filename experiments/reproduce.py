"""Run an experiment of the paper and write its table beside the paper's figures, or draw its figure."""

import argparse
import fnmatch
import json
import shlex
import sys
from pathlib import Path

from experiments import figure2, table1, table2, table3, table4, table5
from experiments.experiment import all_of
from experiments.runs import Runs
from rnndrop_plugin.cli.arguments import positive, positive_number
from rnndrop_plugin.files import write_text

TABLES = {
    "table1": table1.EXPERIMENT,
    "table2": table2.EXPERIMENT,
    "table3": table3.EXPERIMENT,
    "table4": table4.EXPERIMENT,
    "table5": table5.EXPERIMENT,
    "figure2": figure2.EXPERIMENT,
}

BUDGET = 20


def write(args: argparse.Namespace, runs: Runs) -> str:
    """Write the results so far, including those of earlier commands, as Markdown and JSON, and return the Markdown."""
    results = runs.results_so_far()
    command = shlex.join(["python", "scripts/reproduce.py", *sys.argv[1:]])
    commits, devices = (all_of(results, key) for key in ("commits", "devices"))
    by = "".join(f", {word} {', '.join(names)}" for word, names in (("commit", commits), ("on", devices)) if names)
    experiment = TABLES[args.table]
    if experiment.picture and results:
        experiment.picture(results, args.out)
    text = f"{experiment.markdown(results)}\nMade by `{command}`{by}.\n"
    figures = {name: {key: r[key] for key in r if key not in ("train", "checkpoint")} for name, r in results.items()}
    content = {"command": command, "commits": commits, "devices": devices, "jobs": args.jobs, "runs": figures}
    write_text(args.out / f"{args.table}.json", json.dumps(content, indent=2) + "\n")
    write_text(args.out / f"{args.table}.md", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run an experiment of the paper and write its table beside the paper's, as Markdown and JSON. If "
        "the command is given again, finished runs are not repeated, and interrupted runs go on.",
    )
    parser.add_argument(
        "table",
        choices=TABLES,
        help="table1: Temporal Order; table2 and table3: language models of words, of characters; table4: named "
        "entities (COLING); table5: Twitter sentiment (arXiv v2); figure2: learning curves of two runs of table2",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs and the table (default: outputs/TABLE)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="table2, table3, figure2: the folder made by rnndrop prepare ptb; table4: by rnndrop prepare conll; "
        "table5: by rnndrop prepare semeval (table1 makes its data)",
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        metavar="NAME",
        help="run only these cells and the runs that they need; * stands for any text (default: all)",
    )
    parser.add_argument("--seeds", type=positive, nargs="+", default=[1], metavar="N", help="(default: 1)")
    parser.add_argument(
        "--budget",
        type=positive_number,
        metavar="FACTOR",
        help="table1: give up a run after FACTOR times as many updates as the net without dropout needed (default: "
        f"{BUDGET})",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="table2, table3, figure2: number of epochs of a run at most (default: the paper's)",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the cells and do nothing else")
    args = parser.parse_args()
    for flag in sorted(frozenset.union(*(experiment.takes for experiment in TABLES.values()))):
        if getattr(args, flag) is not None and flag not in TABLES[args.table].takes:
            parser.error(f"{args.table} does not take --{flag}")
    args.budget = args.budget or BUDGET
    args.out = (args.out or Path("outputs") / (TABLES[args.table].folder or args.table)).resolve()
    args.data = args.data and args.data.resolve()  # a run has the same flags from whichever folder it is started

    seeds = {f"seed{seed}" for seed in args.seeds}
    there = {path.name for path in args.out.glob("*/seed*")}  # the table also has the runs of earlier commands
    args.seeds += sorted(int(name[4:]) for name in there - seeds if name[4:].isdecimal())
    runs = Runs(TABLES[args.table].runs(args), args.out)
    runs.results_so_far()  # fail now if a result is damaged
    cells = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in runs.runs))
    if args.list:
        print("\n".join(cells))
        return
    for pattern in args.cells or []:
        if not fnmatch.filter(cells, pattern):
            raise ValueError(f"{args.table} has no cell {pattern}; --list prints them")
    chosen = [cell for cell in cells if not args.cells or any(fnmatch.fnmatchcase(cell, p) for p in args.cells)]
    TABLES[args.table].prepare(args)
    names = [name for name in runs.runs if name.split("/")[0] in chosen and name.split("/")[1] in seeds]
    runs.perform(names, args.jobs, lambda: write(args, runs))
    print(f"\n{write(args, runs)}\nThe table is in {args.out / args.table}.md and .json")
    for name, reason in runs.failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if runs.failures:
        sys.exit(1)
