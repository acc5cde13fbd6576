"""Writing labelled texts: their words, the words' capitalisation and the labels; choosing the words of any texts."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from rnndrop_plugin.cli.splits import SPECIAL, UNK, Counts, Sentence, write_splits
from rnndrop_plugin.data.capitalisation import CAPITALISATIONS, capitalisation


class Text(Protocol):
    """A text; ``words`` are its words."""

    words: list[str]


class Labelled(Text, Protocol):
    """A text and its label.

    Attributes:
        place: where it stands, for error messages: file and line.
        label: what it is.
    """

    place: str
    label: str


def prepare_words(
    folder: Path, source: str | None, training: Sequence[Text], evaluation: Sequence[Text], min_count: int
) -> tuple[set[str], list[str]]:
    """Choose the dictionary's words, and write the vectors that ``source``, of --vectors, has of them to vectors.txt.

    Returns:
        The dictionary's words as :func:`choose_words` has them, and a line on how many have a vector, if any was asked
        for.
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


def write_streams(
    folder: Path,
    splits: dict[str, Sequence[Labelled]],
    words: set[str],
    training: Sequence[Labelled],
    labels: Sequence[str],
) -> tuple[int, dict[str, Counts]]:
    """Write a data folder: the words of the texts, their capitalisation and the labels, each in a sub-folder.

    Args:
        words: the dictionary's; others become ``<unk>``.
        training: the texts by which the dictionary is ordered: the same for folders that share it.
        labels: all that there are.

    Returns:
        The number of entries of the words' dictionary, and the counts of words of each split.
    """

    def known(text: Labelled) -> Sentence:
        return Sentence(text.place, [word if word in words else UNK for word in text.words])

    def capitals(text: Labelled) -> Sentence:
        return Sentence(text.place, [capitalisation(word) for word in text.words])

    def label(text: Labelled) -> Sentence:
        return Sentence(text.place, [text.label])

    results = {}
    for stream, sentence, symbols, counted in (
        ("word", known, sorted(words), training),
        # nothing is counted for these: their dictionaries have the alphabet's order, whatever the data
        ("capitalisation", capitals, CAPITALISATIONS, []),
        ("label", label, labels, []),
    ):
        results[stream] = write_splits(
            folder / stream,
            {name: [sentence(text) for text in texts] for name, texts in splits.items()},
            symbols=symbols,
            counted=[sentence(text) for text in counted],
        )
    return results["word"]
