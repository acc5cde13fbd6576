"""The folder that a command writes: it appears only when it is whole."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARKER = "prepared.json"


def add_destination_argument(parser: argparse.ArgumentParser) -> None:
    """The flag --dest."""
    parser.add_argument(
        "--dest",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; appears only when it is whole. One that exists is replaced if it is empty or holds "
        "nothing but what such a script wrote, and refused otherwise",
    )


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
