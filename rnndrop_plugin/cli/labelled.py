"""Writing labelled texts: their words, the words' capitalisation and the labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rnndrop_plugin.cli.splits import Counts, Sentence, write_splits
from rnndrop_plugin.cli.vocabulary import Text, word_streams
from rnndrop_plugin.data.streams import LABEL, WORD


class Labelled(Text, Protocol):
    """A text and its label.

    Attributes:
        place: where it stands, for error messages: file and line.
        label: what it is.
    """

    place: str
    label: str


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

    streams = word_streams(words) | {LABEL: (lambda text: [text.label], labels)}
    results = {}
    for stream, (symbols_of, symbols) in streams.items():
        parts = {name: [Sentence(text.place, symbols_of(text)) for text in texts] for name, texts in splits.items()}
        # nothing is counted for the others: their dictionaries have the alphabet's order, whatever the data
        counted = [Sentence(text.place, symbols_of(text)) for text in training if stream == WORD]
        results[stream] = write_splits(folder / stream, parts, symbols=symbols, counted=counted)
    return results[WORD]
