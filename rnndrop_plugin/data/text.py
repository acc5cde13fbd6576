"""Reading text files."""

import gzip
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

STDIN = Path("<stdin>")  # where read_lines is to read standard input


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
