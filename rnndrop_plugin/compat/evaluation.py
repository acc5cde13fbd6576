"""What fairseq-eval-lm reports: fairseq_cli/eval_lm.py knows only the tokens of a text, and one way to evaluate."""

import functools
import logging
from collections import Counter

from fairseq import checkpoint_utils, utils
from fairseq_cli import eval_lm as command

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.files import split_paths

logger = logging.getLogger("fairseq_cli.eval_lm")

upstream_eval_lm = command.eval_lm


def load_models(filenames: list[str], **kwargs):
    """fairseq_cli/eval_lm.py reads --path as the name of one file. fairseq's other commands, and this one here, read it
    as several names with colons between them. The probabilities of an ensemble are the mean of its models'.

    Raises:
        InputError: the flags ask for an evaluation that is only for one model, or one of the models does not fit.
    """
    models, paths = [], [path for filename in filenames for path in split_paths(filename)]
    for path in paths:
        try:
            (model,), cfg, kwargs["task"] = checkpoint_utils.load_model_ensemble_and_task([path], **kwargs)
        except InputError as error:
            raise InputError(str(error) if path in str(error) else f"{path}: {error}") from error
        models.append(model)
    task = kwargs["task"]
    evaluation = getattr(task, "evaluation", None)
    if len(models) > 1 and evaluation is not None and not evaluation.is_static:
        raise InputError(f"--path: several models only have a static evaluation, not this one: {evaluation}")
    return models, cfg, task


@functools.wraps(upstream_eval_lm)
def eval_lm(models, source_dictionary, batch_iterator, post_process=None, **kwargs):
    """Log how the model was evaluated, if it is one of ours. If the batches have the numbers of their words and
    characters, log the perplexity per word and the bits per character, too.

    With --post-process fairseq's own perplexity is per word, so these two are left out.
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
        several = f" of the mean of {len(models)} models" if len(models) > 1 else ""
        logger.info(f"Evaluation: {models[0].evaluation or 'static evaluation'}{several}")
    return results
