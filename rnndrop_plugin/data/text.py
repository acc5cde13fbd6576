"""Reading text. All text for training and for prediction is read here."""

import gzip
import re
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

STDIN = Path("<stdin>")  # where read_lines is to read standard input

# soft hyphen, zero-width space, marks of direction, word joiner, byte order mark; the joiners of emoji and of Persian
# and Indian scripts are not among them, because they distinguish words
_INVISIBLE = "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
# Old Mac OS ended lines with a lone \r; some conversions leave \r\r\n. Unicode's other line ends count as blanks.
_LINE_END = re.compile(r"\r*\n|\r")


def characters(text: str) -> str:
    """The characters of a text as character-level models read them, with ``_`` for each blank."""
    return re.sub(r"\s", "_", text)


def lower_case(text: str) -> str:
    """Normalised text in lower case. It is normalised again, because lower-casing may split characters of NFC."""
    return normalize(text.lower())


def normalize(text: str, *, keep_lone: bool = False) -> str:
    """Text in NFC (an accent and its letter are one character), without characters that have no width.

    Args:
        keep_lone: keep such characters if nothing else stands between two blanks: in a file of columns they are a token
            with a tag.
    """
    if not text.isascii():
        pattern, kept = (rf"((?<!\S){_INVISIBLE}+(?!\S))|{_INVISIBLE}", r"\1") if keep_lone else (_INVISIBLE, "")
        text = unicodedata.normalize("NFC", re.sub(pattern, kept, text))
    return text


def zero_digits(word: str) -> str:
    """The word with 0 for each digit, as in Lample et al. (2016): all dates like ``1996-08-22`` become one word."""
    return re.sub(r"\d", "0", word)


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that is in ``folder``, as it is or with .gz.

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


def read_lines(path: Path, encoding: str = "UTF-8", *, keep_lone: bool = False) -> list[str]:
    r"""The normalised lines of a text file (gzip-compressed if its name ends in .gz) or of ``STDIN``.

    A line ends with ``\n``, ``\r\n`` or ``\r``; see :func:`normalize` for the rest.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, empty, not in this encoding or not text.
    """
    data = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file ({error})") from None
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = _line_at(error.object.decode("latin-1"), error.start)
        raise ValueError(f"{path}, line {line}: not {encoding} (byte 0x{error.object[error.start]:02x})") from None
    if "\0" in text:
        line = _line_at(text, text.index("\0"))
        raise ValueError(f"{path}, line {line}: a NUL character, which no text has; the encoding may not be {encoding}")
    text = normalize(text, keep_lone=keep_lone)
    if not text.strip():
        raise ValueError(f"{path}: has no text")
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def _line_at(text: str, position: int) -> int:
    return len(_LINE_END.findall(text, 0, position)) + 1
