"""What fairseq-eval-lm says of a text: fairseq_cli/eval_lm.py knows its tokens alone, and one way to evaluate."""

import functools
import logging
from collections import Counter

from fairseq import utils
from fairseq_cli import eval_lm as command

logger = logging.getLogger("fairseq_cli.eval_lm")

upstream_eval_lm = command.eval_lm


@functools.wraps(upstream_eval_lm)
def eval_lm(models, source_dictionary, batch_iterator, post_process=None, **kwargs):
    """Say how the model was evaluated, if it is one of ours, and the perplexity of a word and the bits of a character
    where the batches tell how many they have.

    With --post-process the perplexity is that of words already.
    """
    counts = Counter()

    def counted():
        for batch in batch_iterator:
            counts.update({name: batch.get(name, 0) for name in ("ntokens", "words", "characters")})
            yield batch

    results = upstream_eval_lm(models, source_dictionary, counted(), post_process=post_process, **kwargs)
    if post_process is None and counts["words"]:
        bits = float(results["loss"]) * counts["ntokens"]
        words, characters = round(counts["words"]), round(counts["characters"])
        perplexity = utils.get_perplexity(bits / words)
        logger.info(
            f"Per word: perplexity {perplexity:.2f}; per character: {bits / characters:.4f} bits "
            f"({words:,} words and {characters:,} characters, each sentence's end among them)"
        )
    if hasattr(models[0], "evaluation"):
        logger.addFilter(_NameEvaluation(str(models[0].evaluation or "static evaluation")))
    return results


class _NameEvaluation(logging.Filter):
    """Puts the name of the evaluation before the next result that is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Loss (base 2)"):
            logger.removeFilter(self)
            record.msg, record.args = f"{self.name}: {record.getMessage()}", ()
        return True
