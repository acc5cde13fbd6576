"""Names of files, and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnndrop_plugin.errors import InputError


@contextmanager
def atomic_write(path: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends well and is removed otherwise.

    Args:
        unfinished: that path, in the same folder. The default is another one for every process; one that stays the
            same does not leave a file behind for each process that is killed.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    new = unfinished or path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield new
        new.replace(path)
    except Exception as error:
        cause: BaseException | None = error  # torch's writer raises a RuntimeError because of what happened
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        if cause.filename is not None and str(new) not in (cause.filename, cause.filename2):  # it is of another file
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            new.unlink()


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
