"""Trained language models from whose predictions another one learns (knowledge distillation, Hinton et al. 2015)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnndrop_plugin.data.stream import ContiguousWindows
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.progress import progress_bar
from rnndrop_plugin.tasks import prediction
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask

logger = logging.getLogger(__name__)

#: Words drawn for each token of the training text.
WORDS = 50


def load(paths: str, data: str, expected: type[RnndropTask], device: torch.device) -> list[nn.Module]:
    """The models of checkpoints, in evaluation.

    Args:
        paths: of the checkpoints, with colons between them, as fairseq has them.
        data: the data folder, whose dictionary must be theirs.
        expected: the task that they must be of.

    Raises:
        InputError: one of them is missing, cannot be loaded, is of another task or of another dictionary.
    """
    models = []
    for path in paths.split(":"):
        try:
            _, model = prediction.load(path, data, expected)
        except (OSError, ValueError) as error:
            raise InputError(f"--teachers: {error}") from error
        models.append(model.to(device))
    return models


@torch.no_grad()
def draw_words(models: Sequence[nn.Module], windows: ContiguousWindows, seed: int) -> Tensor:
    """Draw what may follow each token of ``windows``, which the models read in order, from a zero state.

    A teacher's whole distributions would take the vocabulary's size for each token. Words drawn from them are an
    unbiased estimate of these, as the most probable words are not (Anshumann et al. 2025, "Sparse logit sampling").

    Args:
        models: teachers, in evaluation; the words come from the mean of their probabilities.

    Returns:
        ``(rows, length, WORDS)`` on the CPU, the same for the same seed.
    """
    logger.info(f"the teachers draw {WORDS} words for each token of the training text")
    device = next(models[0].parameters()).device
    generator, drawn = torch.Generator(device).manual_seed(seed), []
    for window in progress_bar(windows, desc="teachers", unit=" windows"):
        inputs = {**window["net_input"], "src_tokens": window["net_input"]["src_tokens"].to(device)}
        probs = sum(model.get_normalized_probs(model(**inputs), log_probs=False) for model in models)
        words = torch.multinomial(probs.flatten(0, 1), WORDS, replacement=True, generator=generator)
        drawn.append(words.view(*window["target"].shape, WORDS).int().cpu())
    return torch.cat(drawn, dim=1)
