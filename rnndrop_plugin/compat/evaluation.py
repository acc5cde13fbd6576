"""What fairseq-eval-lm says of a text: fairseq_cli/eval_lm.py knows its tokens alone."""

import functools
import logging
import math
from collections import Counter

from fairseq_cli import eval_lm as command

logger = logging.getLogger("fairseq_cli.eval_lm")

upstream_eval_lm = command.eval_lm


@functools.wraps(upstream_eval_lm)
def eval_lm(models, source_dictionary, batch_iterator, post_process=None, **kwargs):
    """Say the perplexity of a word and the bits of a character, too, where the batches tell how many they have.

    Not with --post-process, whose perplexity is that of words already.
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
        results["word_perplexity"] = math.pow(2, min(bits / words, 1000))
        results["bits_per_character"] = bits / characters
        logger.info(
            f"Per word: perplexity {results['word_perplexity']:.2f}; per character: {bits / characters:.4f} bits "
            f"({words:,} words and {characters:,} characters, each sentence's end among them)"
        )
    return results
