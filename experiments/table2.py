"""Table 2: word language models on the Penn Treebank (section 4.2). ``is_over`` determines when a training ends."""

from experiments.experiment import Experiment
from experiments.language_models import LanguageModels

RATE = 0.05
PATIENCE = 5


def is_over(done: list[dict]) -> bool:
    """Whether the last epoch had a rate below 0.05 and is at least the fifth in a row without a new best validation."""
    losses = [float(entry["valid_nll_loss"]) for entry in done]
    return float(done[-1]["train_lr"]) < RATE and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


TABLE = LanguageModels(
    title="Word language models on the Penn Treebank (Table 2)",
    level="word",
    batch="--batch-size 32 --tokens-per-sample 35 --num-workers 0".split(),
    train=(
        "--arch lstm_rnndrop_ptb_word --criterion rnndrop_cross_entropy --sentence-avg "
        "--optimizer sgd --lr 1 --clip-norm 10 --lr-scheduler rnndrop_plateau --best-checkpoint-metric nll_loss "
        "--no-epoch-checkpoints"
    ).split(),
    limit=100,
    ends=is_over,
    metrics={"ppl": "exp(mean NLL)", "ppl_batch_mean": "mean over batches"},
    digits=2,
    # Table 2 (COLING and arXiv v2): perplexity
    paper={
        "none": (130.0, 125.2),
        "update-0.25-step": (106.1, 100.0),
        "update-0.5-step": (102.8, 98.0),
        "update-0.25-sequence": (106.3, 100.7),
        "update-0.5-sequence": (103.2, 96.8),
        "hidden-0.25-step": (119.8, 114.2),
        "hidden-0.5-step": (118.3, 112.5),
        "hidden-0.25-sequence": (120.5, 114.0),
        "hidden-0.5-sequence": (125.2, 117.9),
        "cell-0.25-step": (113.0, 108.7),
        "cell-0.5-step": (124.0, 116.5),
        "cell-0.25-sequence": (121.0, 113.0),
        "cell-0.5-sequence": (137.7, 126.2),
        "forward": (94.1, 89.5),
        "forward-update-0.25-step": (91.6, 87.0),
        "forward-update-0.5-step": (100.6, 95.5),
        "forward-update-0.25-sequence": (92.4, 87.6),
        "forward-update-0.5-sequence": (107.8, 101.8),
        "forward-hidden-0.25-step": (92.9, 88.4),
        "forward-hidden-0.5-step": (98.6, 92.5),
        "forward-hidden-0.25-sequence": (94.5, 89.7),
        "forward-hidden-0.5-sequence": (98.4, 92.5),
        "forward-cell-0.25-step": (113.5, 105.8),
        "forward-cell-0.5-step": (140.6, 130.1),
        "forward-cell-0.25-sequence": (105.7, 99.9),
        "forward-cell-0.5-sequence": (125.4, 117.4),
    },
    notes=[
        f"A training is over after the first epoch whose rate is below {RATE} and which is at least the fifth in a row "
        "without a new best validation, or at the limit. `best` is the checkpoint of the best validation, `last` that "
        "of the last epoch, which the paper tests. The figures are means over the seeds ± standard deviation.",
        "",
        "The text is read in 32 rows, in windows of 35 words. The state starts from zero and is carried from window to "
        "window, and every word counts. exp(mean NLL) is the perplexity. The mean over batches of exp(mean NLL of the "
        "batch) is what the paper reports; the ratio is that of this measure to the paper's figure.",
    ],
)
EXPERIMENT = Experiment(TABLE.runs, TABLE.prepare, TABLE.markdown, frozenset({"data", "epochs"}))
