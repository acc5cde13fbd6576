"""Table 3: character language models on the Penn Treebank (section 4.3)."""

from experiments.experiment import Experiment
from experiments.language_models import LanguageModels

TABLE = LanguageModels(
    title="Character language models on the Penn Treebank (Table 3)",
    level="char",
    batch="--batch-size 32 --tokens-per-sample 100 --num-workers 0".split(),
    train=(
        "--arch lstm_rnndrop_ptb_char --criterion rnndrop_cross_entropy --sentence-avg "
        "--optimizer adam --lr 0.001 --clip-norm 10 --lr-scheduler fixed --force-anneal 11 --lr-shrink 0.97 "
        "--best-checkpoint-metric nll_loss --no-epoch-checkpoints"
    ).split(),
    limit=50,
    ends=None,
    metrics={"nll_loss": "bits per character"},
    digits=3,
    # Table 3 (COLING and arXiv v2): bits per character
    paper={
        "none": (1.460, 1.457),
        "update-0.25-step": (1.338, 1.301),
        "update-0.5-step": (1.355, 1.316),
        "update-0.25-sequence": (1.356, 1.319),
        "update-0.5-sequence": (1.496, 1.450),
        "hidden-0.25-step": (1.345, 1.308),
        "hidden-0.5-step": (1.387, 1.348),
        "hidden-0.25-sequence": (1.341, 1.304),
        "hidden-0.5-sequence": (1.408, 1.369),
        "cell-0.25-step": (1.435, 1.394),
        "cell-0.5-step": (1.610, 1.561),
        "cell-0.25-sequence": (1.433, 1.390),
        "cell-0.5-sequence": (1.691, 1.647),
        "forward": (1.362, 1.326),
        "forward-update-0.25-step": (1.358, 1.321),
        "forward-update-0.5-step": (1.422, 1.380),
        "forward-update-0.25-sequence": (1.403, 1.363),
        "forward-update-0.5-sequence": (1.567, 1.522),
        "forward-hidden-0.25-step": (1.381, 1.344),
        "forward-hidden-0.5-step": (1.463, 1.425),
        "forward-hidden-0.25-sequence": (1.387, 1.348),
        "forward-hidden-0.5-sequence": (1.477, 1.435),
        "forward-cell-0.25-step": (1.471, 1.428),
        "forward-cell-0.5-step": (1.668, 1.622),
        "forward-cell-0.25-sequence": (1.455, 1.413),
        "forward-cell-0.5-sequence": (1.681, 1.637),
    },
    notes=[
        "The learning rate is 0.001 in the first ten epochs. After that it is 0.97 times that of the previous epoch, "
        "even with fewer epochs than in the paper. `best` is the checkpoint of the best validation, `last` that "
        "of the last epoch; the paper does not say which it tests. The figures are means over the seeds ± standard "
        "deviation.",
        "",
        "They are mean negative log-likelihoods to the base 2. The text is read in 32 rows, in windows of 100 "
        "characters. The state starts from zero and is carried from window to window. Every character counts, also "
        "the ends of lines.",
        "",
        "The paper does not say how many rows a batch has, whether the state is carried, and which loss has the "
        "gradient that is clipped at 10. 32 rows, a carried state and the sum over the 100 steps, averaged over the "
        "rows, are assumptions, which are taken from its word models.",
    ],
)
EXPERIMENT = Experiment(TABLE.runs, TABLE.prepare, TABLE.markdown, frozenset({"data", "epochs"}))
