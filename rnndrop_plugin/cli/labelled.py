"""Writing the data folder of labelled texts: their words, the words' capitalisation and the labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rnndrop_plugin.cli.splits import Counts, Sentence, write_splits
from rnndrop_plugin.cli.vocabulary import Text, word_streams
from rnndrop_plugin.data.streams import LABEL, WORD


class Labelled(Text, Protocol):
    """A text and its label.

    Attributes:
        place: its file and line, for error messages.
        label: the name of its class.
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
        words: those of the dictionary; other words become ``<unk>``.
        training: the texts whose counts determine the dictionary's order; the same for folders that share it.
        labels: all labels.

    Returns:
        The number of entries in the dictionary of words, and the counts of words of each split.
    """

    streams = word_streams(words) | {LABEL: (lambda text: [text.label], labels)}
    results = {}
    for stream, (symbols_of, symbols) in streams.items():
        parts = {name: [Sentence(text.place, symbols_of(text)) for text in texts] for name, texts in splits.items()}
        # The other streams are not counted, so their dictionaries are in alphabetical order, whatever the data.
        counted = [Sentence(text.place, symbols_of(text)) for text in training if stream == WORD]
        results[stream] = write_splits(folder / stream, parts, symbols=symbols, counted=counted)
    return results[WORD]
