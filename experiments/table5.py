"""Table 5: Twitter sentiment, after section 4.5 of arXiv v2. "All the other settings" are those of its section 4.4.

Four settings are different. The embeddings are trained in the pre-training. The pre-training leaves out the label that
the weak tweets lack. LSTM and GRU use tanh, because with relu single batches have losses of 30 and more. The RNN, which
is stable with relu, has a fifth of the learning rate.
"""

import argparse
from pathlib import Path

from experiments.experiment import (
    Experiment,
    check_data,
    common_flags,
    embedding_flags,
    files_of,
    header,
    of_cell,
    row,
    spread,
)
from experiments.runs import Run
from rnndrop_plugin.data.streams import LABEL, WORD

TRAIN = (
    "--criterion rnndrop_classification --f1-classes positive,negative "
    "--optimizer rnndrop_rmsprop --lr-scheduler fixed --force-anneal 2 --lr-shrink 0.99 --clip-norm 5 "
    "--best-checkpoint-metric f1 --maximize-best-checkpoint-metric --no-epoch-checkpoints --batch-size-valid 100"
).split()
PRETRAINING = "--batch-size 32 --max-epoch 1 --seed 1 --ignore-absent-classes".split()
FINE_TUNING = "--batch-size 32 --max-epoch 10 --decoder-freeze-embed".split()
SPLITS = {
    "twitter13": "Twitter13",
    "livejournal14": "LiveJournal14",
    "twitter15": "Twitter15",
    "twitter14": "Twitter14",
    "sms13": "SMS13",
    "sarcasm14": "Sarcasm14",
}
NETWORKS = {
    "rnn": "--recurrent-nonlinearity relu --lr 0.0002".split(),
    "lstm": "--recurrent-nonlinearity tanh --lr 0.001".split(),
    "gru": "--recurrent-nonlinearity tanh --lr 0.001".split(),
}
RATES = {"rnn": "--hidden-dropout", "lstm": "--update-dropout", "gru": "--update-dropout"}
# Table 5 of arXiv v2: F1 in the order of SPLITS
PAPER = {
    ("rnn", "0"): (67.54, 71.20, 59.35, 68.90, 64.51, 53.58),
    ("rnn", "0.25"): (66.35, 67.70, 59.91, 67.76, 64.46, 48.74),
    ("lstm", "0"): (67.97, 69.82, 57.84, 67.95, 61.47, 53.49),
    ("lstm", "0.25"): (69.11, 71.39, 61.35, 68.08, 65.45, 53.80),
    ("gru", "0"): (67.09, 70.80, 59.07, 67.02, 67.11, 51.01),
    ("gru", "0.25"): (69.04, 72.10, 60.34, 69.65, 65.73, 54.77),
}


def prepare(args: argparse.Namespace) -> None:
    """Check that the data are there."""
    names = [*files_of(WORD, SPLITS), *files_of(LABEL, SPLITS), "weak/word/dict.txt", "vectors.txt"]
    check_data(args, names, "rnndrop prepare semeval", " with --weak and --vectors")


def runs(args: argparse.Namespace) -> list[Run]:
    """The runs for each network and rate: first the pre-training, then the fine-tuning with each seed."""
    data = args.data or Path("DATA")  # --list needs none
    planned = []
    for network, rate in PAPER:
        shared = common_flags("rnndrop_classification")
        train = [*shared, *TRAIN, "--arch", f"{network}_rnndrop_classifier_semeval"]
        train += [*NETWORKS[network], *embedding_flags(data), RATES[network], rate]
        test = [str(data), *shared, "--batch-size", "100"]
        before = f"{network}-{rate}-pretraining/seed1"
        planned.append(Run(before, [str(data / "weak"), *train, *PRETRAINING], [], [], ["f1"]))
        for seed in args.seeds:
            planned.append(
                Run(
                    f"{network}-{rate}/seed{seed}",
                    [str(data), *train, *FINE_TUNING, "--seed", str(seed)],
                    test,
                    list(SPLITS),
                    ["f1"],
                    needs=before,
                    more=lambda needed: ["--finetune-from-model", needed["checkpoint"]],
                )
            )
    return planned


def markdown(results: dict[str, dict]) -> str:
    """Table 5 of arXiv v2 with our figures beside the paper's, as mean and standard deviation over the seeds."""
    lines = ["# Twitter sentiment (Table 5 of arXiv v2)", ""]
    lines += ["Mean of the F1 of positive and of negative in percent, as mean over the seeds ± standard deviation.", ""]
    heads = ["network", "rate", "", *SPLITS.values(), "seeds"]
    lines += header(heads)
    for (network, rate), paper in PAPER.items():
        lines.append(row([network.upper(), rate, "paper", *(f"{value:.2f}" for value in paper), ""]))
        ours = of_cell(results, f"{network}-{rate}")
        cells = [spread([result["test"][split] for result in ours]) for split in SPLITS]
        lines.append(row([network.upper(), rate, "ours", *cells, str(len(ours))]))
    lines += [
        "",
        "The paper pre-trained on 1,000,000 weakly labelled tweets and had other word vectors. Here there is one "
        "pre-training for each network and rate, which the seeds of the fine-tuning share.",
    ]
    return "\n".join(lines) + "\n"


EXPERIMENT = Experiment(runs, prepare, markdown, frozenset({"data"}))
