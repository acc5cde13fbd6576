"""Writing prepared text in the format of fairseq-preprocess."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rnndrop_plugin.progress import progress_bar

if TYPE_CHECKING:
    from fairseq.data import Dictionary

SPLITS = ("train", "valid", "test")
UNK = "<unk>"
RESERVED = frozenset(("<s>", "<pad>", "</s>"))  # symbols that a text must not have
SPECIAL = RESERVED | {UNK}  # the symbols that every fairseq dictionary has


class Sentence(NamedTuple):
    """One sentence of a text, without the ``</s>`` that ends it.

    Attributes:
        place: its file and line, for error messages.
        symbols: its words in a list, or its characters in a str.
    """

    place: str
    symbols: Sequence[str]


class Counts(NamedTuple):
    """How many sentences and tokens a split has."""

    sentences: int
    tokens: int  # with one </s> per sentence
    unknown: int  # how many of the tokens are <unk>
    replaced: int  # how many of these were other symbols in the text

    def __str__(self) -> str:
        return (
            f"{self.sentences:,} sentences, {self.tokens:,} tokens, "
            f"{self.unknown:,} of them {UNK} ({self.replaced:,} replaced)"
        )


def cut(items: list, valid: float, test: float) -> dict[str, list]:
    """Cut ``items`` into a first part for training, a second one for validation and a third one for testing.

    Args:
        valid, test: the shares of the second and the third part.

    Raises:
        ValueError: a part is empty.
    """
    test_from = len(items) - round(len(items) * test)
    valid_from = max(test_from - round(len(items) * valid), 0)
    parts = items[:valid_from], items[valid_from:test_from], items[test_from:]
    if not all(parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"there are too few sentences or texts: {len(items)} make parts of {sizes}")
    return dict(zip(SPLITS, parts, strict=True))


def describe_dictionary(folder: Path, entries: int) -> str:
    """The last line that a command prints: the size of the dictionary that it has written."""
    return f"{folder}: dictionary of {entries:,} entries, <s>, <pad>, </s> and {UNK} among them"


def write_splits(
    folder: Path,
    splits: dict[str, list[Sentence]],
    *,
    min_count: int = 1,
    max_words: int | None = None,
    symbols: Sequence[str] = (),
    counted: Sequence[Sentence] | None = None,
    dictionary: "Dictionary | None" = None,
) -> tuple[int, dict[str, Counts]]:
    """Write dict.txt and the splits as fairseq-preprocess --only-source would, with ``</s>`` after each sentence.

    The dictionary has the symbols of the training text, the most frequent first. A symbol that it lacks becomes
    ``<unk>`` if the training text itself has ``<unk>`` or there is a cut-off.

    Args:
        folder: where to write them; it is made if it is not there.
        splits: the sentences of each split. "train" must be among them if the dictionary is made from it.
        min_count: how often a symbol must occur in the training text to be in the dictionary.
        max_words: how many symbols to keep at most, not counting ``<unk>`` and ``</s>``; None for all.
        symbols: symbols to have in the dictionary whether they occur or not.
        counted: sentences from which to make the dictionary instead of "train", for folders that share one.
        dictionary: an existing dictionary to use as it is; symbols that it lacks become ``<unk>``.

    Returns:
        The dictionary's number of entries, including fairseq's four symbols, and the counts of each split.

    Raises:
        ValueError: the text has a symbol that is not in the dictionary and does not become ``<unk>``, or one of
            fairseq's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    closed = False
    if dictionary is None:
        counts = Counter(dict.fromkeys(symbols, 0))
        for sentence in splits["train"] if counted is None else counted:
            counts.update(sentence.symbols)
        closed = UNK not in counts and min_count == 1 and max_words is None
        dictionary = _make_dictionary(counts, 0 if symbols else min_count, max_words)
    dictionary.save(str(folder / "dict.txt"))
    return len(dictionary), {
        split: _write_split(folder / split, sentences, dictionary, closed) for split, sentences in splits.items()
    }


def _make_dictionary(counts: Counter[str], min_count: int, max_words: int | None) -> "Dictionary":
    from fairseq.data import Dictionary  # takes seconds, so read the input before it

    dictionary = Dictionary()
    for symbol, count in sorted(counts.items()):
        dictionary.add_symbol(symbol, count)
    most = -1 if max_words is None else dictionary.nspecial + max_words
    dictionary.finalize(threshold=min_count, nwords=most, padding_factor=1)
    return dictionary


def _write_split(path: Path, sentences: list[Sentence], dictionary: "Dictionary", closed: bool) -> Counts:
    """Write ``path``.bin and .idx; with ``closed`` a symbol that the dictionary lacks is an error."""
    import torch  # this and fairseq take seconds to import, so read the input before them
    from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=len(dictionary))
    tokens = unknown = replaced = 0
    for place, sentence in progress_bar(sentences, desc=path.name, unit=" sentences"):
        if not RESERVED.isdisjoint(sentence):
            symbol = next(symbol for symbol in sentence if symbol in RESERVED)
            raise ValueError(f"{place}: {symbol} is a symbol of fairseq's own, which a text must not have")
        ids = [dictionary.indices.get(symbol, -1) for symbol in sentence]
        if -1 in ids:
            if closed:
                raise ValueError(
                    f"{place}: {sentence[ids.index(-1)]!r} is not in the training text, which has no {UNK} "
                    "to stand for it; a cut-off such as --min-count 2 would make one"
                )
            replaced += ids.count(-1)
            ids = [dictionary.unk_index if i == -1 else i for i in ids]
        builder.add_item(torch.tensor([*ids, dictionary.eos_index]))
        tokens += len(ids) + 1
        unknown += ids.count(dictionary.unk_index)
    builder.finalize(f"{path}.idx")
    return Counts(len(sentences), tokens, unknown, replaced)
