"""What the scripts share: reading text, the destination folder, fairseq's files, errors in one line."""

import argparse
import gzip
import json
import logging
import os
import shutil
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

SPLITS = ("train", "valid", "test")
MARKER = "prepared.json"
STDIN = Path("<stdin>")  # where read_lines is to read standard input
UNK = "<unk>"
RESERVED = frozenset(("<s>", "<pad>", "</s>"))  # with <unk> the symbols that every fairseq dictionary has


class Sentence(NamedTuple):
    """One sentence of a text, without the ``</s>`` that ends it.

    Attributes:
        place: where it stands, for error messages: file and line.
        symbols: its words in a list, or its characters in a str.
    """

    place: str
    symbols: Sequence[str]


class Counts(NamedTuple):
    """What a split has: sentences, tokens with one ``</s>`` a sentence, ``<unk>`` among them, and those made here."""

    sentences: int
    tokens: int
    unknown: int
    replaced: int

    def __str__(self) -> str:
        return (
            f"{self.sentences:,} sentences, {self.tokens:,} tokens, "
            f"{self.unknown:,} of them {UNK} ({self.replaced:,} replaced)"
        )


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``; bad input ends with one line on stderr and exit status 2."""
    for name in ("fairseq", "rnndrop_plugin"):
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-written folders are removed then too
    try:
        main()
    except (OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that ``folder`` has, each as it is or with .gz.

    Raises:
        OSError: no such folder, or none of the files in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{folder}: has no {' or '.join(names)}, with or without .gz")


def read_lines(path: Path, encoding: str = "UTF-8") -> list[str]:
    """The lines of a text file, gzip-compressed if its name ends in .gz, or of ``STDIN``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, empty or not of this encoding.
    """
    data = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not {encoding} (byte 0x{error.object[error.start]:02x})") from None
    if not text.strip():
        raise ValueError(f"{path}: has no text")
    return text.removesuffix("\n").split("\n")


@contextmanager
def destination(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``folder`` when the block ends well.

    An existing ``folder`` is replaced if it is empty or if one of these scripts wrote everything in it.

    Raises:
        ValueError: it holds something else.
    """
    folder = folder.resolve()
    check_destination(folder)
    parents = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    new.mkdir()
    try:
        yield new
        files = sorted([*(path.relative_to(new).as_posix() for path in new.rglob("*")), MARKER])
        (new / MARKER).write_text(json.dumps({"script": Path(sys.argv[0]).name, "files": files}, indent=2) + "\n")
        check_destination(folder)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        if not folder.exists():
            with suppress(OSError):  # someone else may have put something there
                for parent in parents:
                    parent.rmdir()


def check_destination(folder: Path) -> None:
    """Raise ValueError if :func:`destination` would have to remove something that is not of these scripts."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: exists and is not a folder")
    try:
        ours = set(json.loads((folder / MARKER).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    foreign = next((name for name in names if name not in ours), None)
    if foreign is not None:
        raise ValueError(f"{folder}: exists and has files that this script did not write ({foreign}); left as it is")


def write_splits(
    folder: Path,
    splits: dict[str, list[Sentence]],
    *,
    min_count: int = 1,
    max_words: int | None = None,
    symbols: Sequence[str] = (),
    counted: Sequence[Sentence] | None = None,
) -> tuple[int, dict[str, Counts]]:
    """Write dict.txt and the splits as fairseq-preprocess --only-source would: ``</s>`` after each sentence.

    The dictionary has the symbols of the training text, the most frequent first. A symbol that it lacks becomes
    ``<unk>`` where the training text has ``<unk>`` itself or a cut-off makes it.

    Args:
        folder: an existing folder.
        splits: the sentences of each split, "train" among them.
        min_count: how often a symbol must occur in the training text to be in the dictionary.
        max_words: how many symbols to keep at most, ``<unk>`` and ``</s>`` not counted; None for all.
        symbols: symbols to have in the dictionary whether they occur or not.
        counted: sentences to make the dictionary of in place of those of "train", for folders that share one.

    Returns:
        The dictionary's number of entries, fairseq's four symbols among them, and the counts of each split.

    Raises:
        ValueError: a symbol outside the dictionary where nothing makes it ``<unk>``, or one of fairseq's own.
    """
    import torch  # this and fairseq take seconds to import: not before the input has been read
    from fairseq.data import Dictionary, indexed_dataset

    dictionary = Dictionary()
    counts = Counter(dict.fromkeys(symbols, 0))
    for sentence in splits["train"] if counted is None else counted:
        counts.update(sentence.symbols)
    closed = UNK not in counts and min_count == 1 and max_words is None
    for symbol, count in sorted(counts.items()):
        dictionary.add_symbol(symbol, count)
    dictionary.finalize(
        threshold=0 if symbols else min_count,
        nwords=-1 if max_words is None else dictionary.nspecial + max_words,
        padding_factor=1,
    )
    dictionary.save(str(folder / "dict.txt"))

    results = {}
    for split, sentences in splits.items():
        builder = indexed_dataset.make_builder(f"{folder / split}.bin", "mmap", vocab_size=len(dictionary))
        tokens = unknown = replaced = 0
        for place, sentence in tqdm(sentences, desc=split, unit=" sentences", leave=False, disable=None):
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
        builder.finalize(f"{folder / split}.idx")
        results[split] = Counts(len(sentences), tokens, unknown, replaced)
    return len(dictionary), results
