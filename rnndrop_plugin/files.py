"""Names of files, and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnndrop_plugin.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends well and is removed otherwise.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    new = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield new
        new.replace(path)
    except OSError as error:
        if error.filename not in (None, str(new)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def split_paths(paths: str) -> list[str]:
    """The files that ``paths`` names with colons between them, as fairseq's flags do, or one whose name has colons.

    Raises:
        InputError: a name is empty.
    """
    if os.path.exists(paths) or "://" in paths:
        return [paths]
    names = paths.split(":")
    if "" in names:
        raise InputError(f"{paths or 'an empty path'}: there is no file before or after a colon")
    return names


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as new:
        new.write_text(text, encoding="utf-8")
