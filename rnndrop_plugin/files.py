"""Names of files, and writing a file so that it is never incomplete."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnndrop_plugin.errors import InputError


@contextmanager
def atomic_write(path: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to. It replaces ``path`` if the block succeeds, and is removed otherwise.

    Args:
        unfinished: the temporary path, in the same folder. By default each process has its own. With a fixed one,
            processes that are killed do not each leave a file behind.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
    """
    new = unfinished or path.with_name(f".{os.getpid()}.{path.name}")
    outside = sys.exception()  # the one that is being handled where the block begins
    try:
        yield new
        new.replace(path)
    except Exception as error:
        cause: BaseException | None = error  # torch's writer wraps an OSError in a RuntimeError
        while cause not in (None, outside) and not isinstance(cause, OSError):
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        if cause in (None, outside):
            raise
        if cause.filename is not None and str(new) not in (cause.filename, cause.filename2):  # another file's
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            new.unlink()


def split_paths(paths: str) -> list[str]:
    """The paths between the colons of ``paths``, as in fairseq's flags; an existing file or a URL is one path.

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
