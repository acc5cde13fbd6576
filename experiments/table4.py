"""Table 4 of COLING 2016: named entities of CoNLL-2003. Section 4.4; batch size and clipping are ours."""

import argparse
from pathlib import Path

from experiments.experiment import WHOSE, Experiment, common_flags, of_cell, row, spread
from experiments.runs import Run

TRAIN = (
    "--arch lstm_rnndrop_tagger_conll2003 --decoder-freeze-embed --extract-length 15 --criterion rnndrop_tagging "
    "--optimizer adam --lr 0.001 --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.95 --max-epoch 50 "
    "--batch-size 32 --batch-size-valid 64 --clip-norm 5 "
    "--best-checkpoint-metric f1 --maximize-best-checkpoint-metric --no-epoch-checkpoints"
).split()
FORWARD = {"plain": [], "forward": "--decoder-dropout-in 0.2 --decoder-dropout-out 0.5".split()}
TITLES = {"plain": "Without forward dropout", "forward": "With forward dropout, 0.2 in and 0.5 out"}
NONE = ("none", "", "0")
# Table 4 of COLING 2016: F1 on the validation and the test set, means of 3 runs
PAPER = {
    "plain": {
        NONE: (88.56, 84.46),
        ("cell", "step", "0.25"): (88.79, 84.80),
        ("cell", "step", "0.5"): (88.68, 84.43),
        ("cell", "sequence", "0.25"): (88.71, 84.33),
        ("cell", "sequence", "0.5"): (88.06, 83.92),
        ("hidden", "step", "0.25"): (88.95, 84.34),
        ("hidden", "step", "0.5"): (88.66, 84.33),
        ("hidden", "sequence", "0.25"): (88.54, 84.88),
        ("hidden", "sequence", "0.5"): (89.05, 84.22),
        ("update", "step", "0.25"): (89.27, 84.78),
        ("update", "step", "0.5"): (89.06, 84.39),
        ("update", "sequence", "0.25"): (89.32, 84.95),
        ("update", "sequence", "0.5"): (88.94, 84.32),
    },
    "forward": {
        NONE: (90.53, 86.99),
        ("cell", "step", "0.25"): (90.86, 87.19),
        ("cell", "step", "0.5"): (90.71, 87.03),
        ("cell", "sequence", "0.25"): (90.73, 87.32),
        ("cell", "sequence", "0.5"): (89.61, 86.39),
        ("hidden", "step", "0.25"): (91.06, 87.05),
        ("hidden", "step", "0.5"): (90.76, 87.23),
        ("hidden", "sequence", "0.25"): (90.86, 86.89),
        ("hidden", "sequence", "0.5"): (90.76, 86.68),
        ("update", "step", "0.25"): (91.02, 87.03),
        ("update", "step", "0.5"): (90.78, 87.31),
        ("update", "sequence", "0.25"): (90.99, 87.33),
        ("update", "sequence", "0.5"): (90.40, 86.82),
    },
}


def prepare(args: argparse.Namespace) -> None:
    """Check that there are data."""
    if args.data is None:
        raise ValueError("table4 needs --data, a folder made by rnndrop prepare conll with --vectors")
    for name in ("word/dict.txt", "tag/dict.txt", "vectors.txt"):
        if not (args.data / name).is_file():
            raise FileNotFoundError(f"{args.data / name}: no such file; rnndrop prepare conll makes it with --vectors")


def cell_name(forward: str, kind: str, sampling: str, rate: str) -> str:
    """As in Tables 2 and 3: none, update-0.25-step, forward, forward-update-0.25-step."""
    recurrent = [] if kind == "none" else [kind, rate, sampling]
    return "-".join([*([] if forward == "plain" else ["forward"]), *recurrent]) or "none"


def runs(args: argparse.Namespace) -> list[Run]:
    """Without and with forward dropout: no recurrent dropout, then every kind, sampling and rate."""
    data = args.data or Path("DATA")  # --list needs none
    shared = [str(data), *common_flags("rnndrop_tagging")]
    planned = []
    for seed in args.seeds:
        for forward, cells in PAPER.items():
            for kind, sampling, rate in cells:
                train = [*shared, *TRAIN, *FORWARD[forward], "--decoder-embed-path", str(data / "vectors.txt")]
                if kind != "none":
                    train += [f"--{kind}-dropout", rate, "--recurrent-dropout-sampling", sampling]
                planned.append(
                    Run(
                        f"{cell_name(forward, kind, sampling, rate)}/seed{seed}",
                        [*train, "--seed", str(seed)],
                        [*shared, "--batch-size", "64"],
                        ["valid", "test"],
                        "f1",
                    )
                )
    return planned


def markdown(results: dict[str, dict]) -> str:
    """Table 4, ours beside the paper's: mean and standard deviation over the seeds."""
    lines = ["# Named entities of CoNLL-2003 (Table 4 of COLING 2016)", ""]
    lines += [
        "F1 of the entities, percent: mean over the seeds ± standard deviation, each of the epoch that is best on the "
        "validation set. The paper's figures are means of 3 runs.",
        "",
    ]
    heads = ["dropout", "sampling", "rate", "valid: paper", "valid: ours", "test: paper", "test: ours", "seeds"]
    for forward, cells in PAPER.items():
        lines += [f"## {TITLES[forward]}", "", row(heads), row(["---"] * len(heads))]
        for (kind, sampling, rate), paper in cells.items():
            ours = of_cell(results, cell_name(forward, kind, sampling, rate))
            figures = []
            for split, value in zip(("valid", "test"), paper, strict=True):
                figures += [f"{value:.2f}", spread([result["test"][split] for result in ours])]
            names = ["none", "", ""] if kind == "none" else [WHOSE[kind], f"per {sampling}", rate]
            lines.append(row([*names, *figures, str(len(ours))]))
        lines.append("")
    lines.append("The paper has word2vec's vectors, ours are those in the data folder.")
    return "\n".join(lines) + "\n"


EXPERIMENT = Experiment(runs, prepare, markdown)
