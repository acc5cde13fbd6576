"""Trained language models whose predictions teach another one (knowledge distillation, Hinton et al. 2015)."""

import hashlib
import logging
import zipfile
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from torch import Tensor, nn

from rnndrop_plugin.data.indexed import never_written
from rnndrop_plugin.data.stream import ContiguousWindows
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.files import split_paths
from rnndrop_plugin.progress import progress_bar
from rnndrop_plugin.tasks import prediction
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask

logger = logging.getLogger(__name__)

WORDS = 50  # how many words are drawn for each token
ROWS, STEPS = 100, 10  # the size of the windows in which the teachers read

Lesson = tuple[Tensor, Tensor]  # a text, (tokens,), and the words that teachers expect at each token, (tokens, WORDS)


def split_teachers(paths: str) -> list[str]:
    """The checkpoints that --teachers names.

    Raises:
        InputError: a name is empty.
    """
    try:
        return split_paths(paths)
    except InputError as error:
        raise InputError(f"--teachers: {error}") from error


def digest(paths: str, seed: int) -> str:
    """A hash of the seed and the checkpoint files: other teachers, or another seed, draw other words."""
    found = hashlib.sha256(f"{seed}".encode())
    for path in split_teachers(paths):
        try:
            found.update(Path(path).read_bytes())
        except OSError:
            found.update(b"gone")
    return found.hexdigest()[:16]


def save(lesson: Lesson, teachers: str, path: Path) -> None:
    """Keep a lesson for :func:`load`.

    Args:
        teachers: identifies the teachers, see :func:`digest`.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text, words = lesson
    checkpoint_utils.torch_persistent_save({"teachers": teachers, "text": text, "words": words}, str(path))


def load(teachers: str, tokens: Tensor, count: int, path: Path) -> Lesson | None:
    """The lesson of these teachers that :func:`save` has written. Its words are read from the file when needed.

    Args:
        teachers: identifies them, see :func:`digest`.
        tokens: the text that they read, ``(tokens,)``.
        count: how many tokens they write.

    Returns:
        None if there is no such lesson, or the file is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
        kept = torch.load(path, weights_only=True, mmap=True) if whole else {}
        text, words = kept["text"], kept["words"]
        same = kept["teachers"] == teachers and len(text) == len(tokens) + count
    except OSError:
        raise
    except Exception as error:
        logger.warning(f"{path}: is damaged, the teachers begin anew ({error!r})")
        return None
    return (text, words) if same and torch.equal(text[: len(tokens)], tokens) else None


class Teachers:
    """Language models whose probabilities are averaged.

    To keep a full distribution would take a number for each word of the vocabulary at each token. Words drawn from the
    distribution are an unbiased estimate of it, while its most probable words are not (Anshumann et al. 2025, "Sparse
    logit sampling").

    Args:
        paths: the paths of the checkpoints, separated by colons as in fairseq.
        data: the data folder, whose dictionary must be the teachers'.
        expected: the class of the teachers' task.
        device: the device on which they run.
        seed: the seed of all draws.

    Raises:
        InputError: one of them is missing, cannot be loaded, or is for another task or another dictionary.
    """

    def __init__(self, paths: str, data: str, expected: type[RnndropTask], device: torch.device, seed: int):
        self.paths = split_teachers(paths)
        self.models: list[nn.Module] = []
        for path in self.paths:
            try:
                task, model = prediction.load(path, data, expected)
            except (OSError, ValueError) as error:
                which = "" if path in str(error) else f"{path}: "
                raise InputError(f"--teachers: {which}{error}") from error
            self.models.append(model.to(device))
        self.dictionary: Dictionary = task.target_dictionary
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def teach(self, tokens: Tensor, count: int) -> Lesson:
        """Read a text, and write another one of ``count`` tokens, which is appended to it.

        Raises:
            InputError: a teacher's probabilities are not finite.
        """
        words = self.read(tokens)
        if not count:
            return tokens, words
        written, words_of_written = self.write(count)
        return torch.cat([tokens, written]), torch.cat([words, words_of_written])

    def read(self, tokens: Tensor) -> Tensor:
        """Draw the words that may stand in place of each token of a text, given the tokens before it.

        The text is read in ``ROWS`` rows, each of which starts from a zero state.

        Args:
            tokens: ``(tokens,)``.

        Returns:
            ``(tokens, WORDS)``, on the CPU.

        Raises:
            InputError: a teacher's probabilities are not finite.
        """
        windows = ContiguousWindows(tokens, self.dictionary, min(ROWS, len(tokens)), STEPS)
        logger.info(f"the teachers read {len(tokens):,} tokens")
        drawn = [
            self._draw(window["net_input"]["src_tokens"], window["net_input"]["starts_stream"], WORDS)
            for window in progress_bar(windows, desc="teachers read", unit=" windows")
        ]
        return torch.cat(drawn, dim=1).flatten(0, 1)[: len(tokens)]

    def write(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw a text of ``count`` tokens, and the words that may stand in place of each token.

        The text consists of ``ROWS`` parts, one after the other. Each of them begins like a new stream.

        Returns:
            ``(count,)`` and ``(count, WORDS)``, on the CPU.

        Raises:
            InputError: a teacher's probabilities are not finite.
        """
        logger.info(f"the teachers write {count:,} tokens")
        tokens, steps = torch.full((ROWS, 1), self.dictionary.eos()), -(-count // ROWS)
        drawn = torch.empty(ROWS, steps, 1 + WORDS, dtype=torch.int32)
        never = never_written(self.dictionary)
        for step in progress_bar(range(steps), desc="teachers write", unit=" steps"):
            drawn[:, step : step + 1] = self._draw(tokens, step == 0, 1 + WORDS, never)
            tokens = drawn[:, step : step + 1, 0].long()
        text = drawn.flatten(0, 1)[:count]
        return text[:, 0].long(), text[:, 1:]

    @torch.no_grad()
    def _draw(self, tokens: Tensor, starts_stream: bool, count: int, never: list[int] | None = None) -> Tensor:
        """Draw words to follow each of ``tokens``, ``(rows, steps)``: ``(rows, steps, count)``, int32, on the CPU."""
        tokens = tokens.to(self.device)
        probs: Tensor | float = 0.0
        for path, model in zip(self.paths, self.models, strict=True):
            of_model = model.get_normalized_probs(model(tokens, starts_stream=starts_stream), log_probs=False).float()
            if not of_model.sum().isfinite():
                raise InputError(f"--teachers: {path}: its probabilities are not finite, has its training diverged?")
            probs = probs + of_model
        if never:
            probs[:, :, never] = 0
        words = torch.multinomial(probs.flatten(0, 1), count, replacement=True, generator=self.generator)
        return words.view(*tokens.shape, count).int().cpu()
