"""Table 4 of COLING 2016: named entities of CoNLL-2003 (section 4.4). Batch size and clipping are our choice."""

import argparse
from pathlib import Path

from experiments.experiment import (
    Experiment,
    check_data,
    common_flags,
    dropout_flags,
    embedding_flags,
    files_of,
    first_columns,
    halves,
    header,
    of_cell,
    row,
    spread,
)
from experiments.runs import Run
from rnndrop_plugin.data.streams import TAG, WORD

TRAIN = (
    "--arch lstm_rnndrop_tagger_conll2003 --decoder-freeze-embed --extract-length 15 --criterion rnndrop_tagging "
    "--optimizer adam --lr 0.001 --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.95 --max-epoch 50 "
    "--batch-size 32 --batch-size-valid 64 --clip-norm 5 "
    "--best-checkpoint-metric f1 --maximize-best-checkpoint-metric --no-epoch-checkpoints"
).split()
SPLITS = ("train", "valid", "test")
# Table 4 of COLING 2016: F1 on the validation and the test set, means of 3 runs
PAPER = {
    "none": (88.56, 84.46),
    "cell-0.25-step": (88.79, 84.80),
    "cell-0.5-step": (88.68, 84.43),
    "cell-0.25-sequence": (88.71, 84.33),
    "cell-0.5-sequence": (88.06, 83.92),
    "hidden-0.25-step": (88.95, 84.34),
    "hidden-0.5-step": (88.66, 84.33),
    "hidden-0.25-sequence": (88.54, 84.88),
    "hidden-0.5-sequence": (89.05, 84.22),
    "update-0.25-step": (89.27, 84.78),
    "update-0.5-step": (89.06, 84.39),
    "update-0.25-sequence": (89.32, 84.95),
    "update-0.5-sequence": (88.94, 84.32),
    "forward": (90.53, 86.99),
    "forward-cell-0.25-step": (90.86, 87.19),
    "forward-cell-0.5-step": (90.71, 87.03),
    "forward-cell-0.25-sequence": (90.73, 87.32),
    "forward-cell-0.5-sequence": (89.61, 86.39),
    "forward-hidden-0.25-step": (91.06, 87.05),
    "forward-hidden-0.5-step": (90.76, 87.23),
    "forward-hidden-0.25-sequence": (90.86, 86.89),
    "forward-hidden-0.5-sequence": (90.76, 86.68),
    "forward-update-0.25-step": (91.02, 87.03),
    "forward-update-0.5-step": (90.78, 87.31),
    "forward-update-0.25-sequence": (90.99, 87.33),
    "forward-update-0.5-sequence": (90.40, 86.82),
}


def prepare(args: argparse.Namespace) -> None:
    """Check that the data are there."""
    names = [*files_of(WORD, SPLITS), *files_of(TAG, SPLITS), "vectors.txt"]
    check_data(args, names, "rnndrop prepare conll", " with --vectors")


def runs(args: argparse.Namespace) -> list[Run]:
    """The runs of all cells: without and with forward dropout, each with every recurrent dropout and none."""
    data = args.data or Path("DATA")  # --list needs none
    shared = [str(data), *common_flags("rnndrop_tagging")]
    train = [*shared, *TRAIN, *embedding_flags(data)]
    return [
        Run(
            f"{cell}/seed{seed}",
            [*train, *dropout_flags(cell), "--seed", str(seed)],
            [*shared, "--batch-size", "64"],
            ["valid", "test"],
            ["f1"],
        )
        for seed in args.seeds
        for cell in PAPER
    ]


def markdown(results: dict[str, dict]) -> str:
    """Table 4 with our figures beside the paper's, as mean and standard deviation over the seeds."""
    lines = ["# Named entities of CoNLL-2003 (Table 4 of COLING 2016)", ""]
    lines += [
        "F1 of the entities in percent, as mean over the seeds ± standard deviation. Each run is tested with the epoch "
        "that is best on the validation set. The paper's figures are means of 3 runs.",
        "",
    ]
    heads = ["dropout", "sampling", "rate", "valid: paper", "valid: ours", "test: paper", "test: ours", "seeds"]
    for title, cells in halves(PAPER):
        lines += [f"## {title}", "", *header(heads)]
        for cell, paper in cells.items():
            kind, rate, sampling = first_columns(cell)
            ours = of_cell(results, cell)
            figures = []
            for split, value in zip(("valid", "test"), paper, strict=True):
                figures += [f"{value:.2f}", spread([result["test"][split] for result in ours])]
            lines.append(row([kind, sampling, rate, *figures, str(len(ours))]))
        lines.append("")
    lines.append("The paper uses word2vec's vectors; our runs use those in the data folder.")
    return "\n".join(lines) + "\n"


EXPERIMENT = Experiment(runs, prepare, markdown, frozenset({"data"}))
