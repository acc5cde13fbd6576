"""The words of a data folder's dictionary, and the streams that are made only from words."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from rnndrop_plugin.cli.splits import SPECIAL, UNK
from rnndrop_plugin.data.capitalisation import CAPITALISATIONS, capitalisation
from rnndrop_plugin.data.streams import CAPITALISATION, WORD


class Text(Protocol):
    """A text; ``words`` are its words."""

    words: list[str]


def prepare_words(
    folder: Path, source: str | None, training: Sequence[Text], evaluation: Sequence[Text], min_count: int
) -> tuple[set[str], list[str]]:
    """Choose the dictionary's words, and write their vectors from ``source``, the value of --vectors, to vectors.txt.

    Returns:
        The words, see :func:`choose_words`, and, if there is a ``source``, a line on how many words have a vector.
    """
    if source is None:
        return choose_words(training, evaluation, (), min_count), []
    from rnndrop_plugin.data import pretrained_vectors  # torch takes seconds to import

    tokens = [word for text in (*training, *evaluation) for word in text.words]
    vectors = pretrained_vectors.lookup(source, sorted(set(tokens)))
    words = choose_words(training, evaluation, vectors, min_count)
    kept = {word: vector for word, vector in vectors.items() if word in words}
    pretrained_vectors.write_vectors(folder / "vectors.txt", kept)
    return words, [pretrained_vectors.coverage(tokens, vectors)]


def choose_words(
    training: Sequence[Text], evaluation: Sequence[Text], with_vector: Collection[str], min_count: int
) -> set[str]:
    """The dictionary's words: those with a vector, and those that occur ``min_count`` times in training."""
    counts = Counter(word for text in training for word in text.words)
    words = {word for word, count in counts.items() if count >= min_count or word in with_vector}
    words |= {word for text in evaluation for word in text.words if word in with_vector}
    return words - SPECIAL


def word_streams(words: set[str]) -> dict[str, tuple[Callable[[Text], list[str]], Sequence[str]]]:
    """The streams that are made from a text's words: for each a function that gives a text's symbols, and all symbols.

    Args:
        words: those of the dictionary; other words become ``<unk>``.
    """
    return {
        WORD: (lambda text: [word if word in words else UNK for word in text.words], sorted(words)),
        CAPITALISATION: (lambda text: [capitalisation(word) for word in text.words], CAPITALISATIONS),
    }
