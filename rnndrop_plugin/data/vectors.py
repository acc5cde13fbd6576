"""Pretrained word vectors in files."""

import codecs
import gzip
import io
import itertools
import os
import re
import reprlib
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from rnndrop_plugin.data.text import normalize
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.progress import progress_bar

_HEADER = rb"(\d{1,10}) ([1-9]\d{0,4})\s*"  # the number of words, and the size of a vector
_NOT_NUMBERS = rb"[\0-\x08\x0b\x0c\x0e-\x1f]|\A[^\n]*[\x80-\xff]"  # a line of numbers has none of these

_Row = tuple[str, str, Sequence]  # where it stands, the word, its numbers


def read_vectors(
    path: str | os.PathLike,
    words: Container[str],
    size: int | None = None,
    *,
    name: str | None = None,
    size_name: str | None = None,
) -> dict[str, Tensor]:
    """Read the vectors of ``words`` from a file of word2vec (text or binary) or GloVe, compressed if it ends in .gz.

    The content determines the format: a file of word2vec begins with a line of two numbers, the number of words and the
    size of a vector, and one of GloVe with a word. In the text formats (UTF-8) a line has a word and its numbers,
    separated by single blanks. In the binary format each word is followed by a blank and its numbers in little-endian
    float32.

    Args:
        words: the words to read. For other words only the length of the line is checked, and nothing is kept.
        size: how many numbers a vector has; None for what the file has.
        name: how error messages name the file, its path if None.
        size_name: the flag that has set the size, for error messages.

    Returns:
        The vectors found, each ``(size,)``, float32. If a word occurs several times, it is the first one.

    Raises:
        InputError: the file cannot be read, is damaged or malformed, or has none of ``words``.
    """
    vectors, spelled, count = {}, set(), 0
    name = name or str(path)
    try:
        with (
            open(path, "rb") as raw,
            progress_bar(desc=os.path.basename(path), total=os.path.getsize(path), unit="B", unit_scale=True) as bar,
        ):
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if str(path).endswith(".gz") else raw
            for place, word, values in _rows(file, size, f" ({size_name})" if size_name else ""):
                count += 1
                bar.update(raw.tell() - bar.n)
                if word in words:
                    if word not in spelled:
                        vectors[word] = _vector(place, values)
                    spelled.add(word)
                elif (normalized := normalize(word, keep_lone=True)) in words:
                    vectors.setdefault(normalized, _vector(place, values))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{name}, {error}") from error
    if not count:
        raise InputError(f"{name}: has no vectors")
    if not vectors:
        raise InputError(f"{name}: no word of the data is among its {count:,}")
    return vectors


def _rows(file: BinaryIO, size: int | None, flag: str) -> Iterator[_Row]:
    first = file.readline().removeprefix(codecs.BOM_UTF8)
    header = re.fullmatch(_HEADER, first)
    if header is None:
        yield from _text_rows(itertools.chain([first] if first else [], file), 1, size, flag)
        return
    announced, found = map(int, header.groups())
    if size not in (None, found):
        raise ValueError(f"line 1: vectors of {found} numbers, expected {size}{flag}")
    count = 0
    for row in _binary_rows(file, found) if _is_binary(file, found) else _text_rows(file, 2, found, flag):
        count += 1
        yield row
    if count != announced:
        raise ValueError(f"line 1: {announced:,} words announced, {count:,} found")


def _is_binary(file: BinaryIO, size: int) -> bool:
    """Whether the bytes after the first blank are float32 numbers. The file's position does not change."""
    position = file.tell()
    _, _, numbers = file.read(1000 + 4 * size).partition(b" ")
    file.seek(position)
    return re.search(_NOT_NUMBERS, numbers[: 4 * size]) is not None


def _text_rows(lines: Iterable[bytes], first: int, size: int | None, flag: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, first):
        fields = _decode(f"line {number}", line).rstrip(" \r\n").split(" ")
        if size is None:
            size = max(len(fields) - 1, 1)
        word, values = fields[:-size], fields[-size:]
        # A word may contain blanks (some in GloVe's largest file do), but an extra number is a mistake.
        if not word or len(word) > 1 and _is_number(word[-1]):
            raise ValueError(
                f"line {number}: {len(fields) - 1} numbers after {reprlib.repr(fields[0])}, expected {size}{flag}"
            )
        yield f"line {number}", " ".join(word), values


def _binary_rows(file: BinaryIO, size: int) -> Iterator[_Row]:
    for number in itertools.count(1):
        word = bytearray()
        while (byte := file.read(1)) not in (b" ", b""):
            word += byte
        word = word.lstrip(b"\n")  # word2vec ends each vector with one, other programs do not
        if not (byte or word):
            return
        values = file.read(4 * size)
        if len(values) < 4 * size:
            raise ValueError(f"word {number:,}: the file ends within it")
        yield f"word {number:,}", _decode(f"word {number:,}", word), np.frombuffer(values, "<f4")


def _decode(place: str, data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 (byte 0x{data[error.start]:02x})") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _vector(place: str, values: Sequence) -> Tensor:
    try:
        vector = torch.tensor([float(value) for value in values], dtype=torch.float32)
    except ValueError:
        wrong = next(value for value in values if not _is_number(value))
        raise ValueError(f"{place}: {reprlib.repr(wrong)} is not a number") from None
    if not vector.isfinite().all():
        raise ValueError(f"{place}: a number that is not finite")
    return vector
