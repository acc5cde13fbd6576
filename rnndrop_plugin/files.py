"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        if error.filename != str(new):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as new:
        new.write_text(text, encoding="utf-8")
