"""The folder that a command writes, which appears only when it is complete."""

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
    """Add the flag --dest."""
    parser.add_argument(
        "--dest",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write, which appears only when it is complete. An existing folder is replaced if it is empty "
        "or holds only what a rnndrop prepare command wrote, and refused otherwise",
    )


@contextmanager
def destination(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``folder`` if the block ends without an error.

    An existing ``folder`` is replaced if it is empty or if one of these commands wrote everything in it. If the folder
    itself must stay (it is the current folder or a mount point, or its parent cannot be written), only its content is
    replaced.

    Raises:
        OSError: ``folder`` cannot be written.
        ValueError: ``folder`` holds something else.
    """
    try:
        folder = folder.resolve()
    except RuntimeError:
        raise ValueError(f"{folder}: a symbolic link that leads to itself") from None
    check_destination(folder)
    stays = folder.exists() and _must_stay(folder)
    parents = [parent for parent in folder.parents if not parent.exists()]
    beside = folder if stays else folder.parent
    new, old = (beside / f".{folder.name}.{os.getpid()}.{name}" for name in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    try:
        yield new
        files = sorted([*(path.relative_to(new).as_posix() for path in new.rglob("*")), MARKER])
        (new / MARKER).write_text(json.dumps({"script": Path(sys.argv[0]).name, "files": files}, indent=2) + "\n")
        check_destination(folder, except_for=new)
        if stays:
            old.mkdir()
            _exchange(folder, new, old)
        else:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    finally:
        if not stays and old.exists() and not folder.exists():
            old.rename(folder)
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        if not folder.exists():
            with suppress(OSError):  # another program may have put something there
                for parent in parents:
                    parent.rmdir()


def _must_stay(folder: Path) -> bool:
    """Whether ``folder`` cannot be replaced by another folder, or the user would not see the new one."""
    mounts = Path("/proc/self/mountinfo")  # os.path.ismount does not find a mounted folder of the same disk
    mounted = {line.split()[4] for line in mounts.read_text().splitlines()} if mounts.exists() else set()
    is_mount = os.path.ismount(folder) or str(folder).replace(" ", r"\040") in mounted
    return is_mount or Path.cwd() == folder or not os.access(folder.parent, os.W_OK)


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Move the content of ``folder`` to ``old`` and that of ``new`` to ``folder``; ``old`` and ``new`` are in it."""

    def move(source: Path, target: Path) -> None:
        for path in [*source.iterdir()]:
            if path not in (new, old):
                path.rename(target / path.name)

    try:
        move(folder, old)
        move(new, folder)
    except BaseException:
        move(folder, new)
        move(old, folder)
        raise


def check_destination(folder: Path, except_for: Path | None = None) -> None:
    """Raise ValueError if :func:`destination` would have to remove something that these commands did not write."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: exists and is not a folder")
    try:
        ours = set(json.loads((folder / MARKER).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    paths = (path for path in folder.rglob("*") if except_for is None or not path.is_relative_to(except_for))
    foreign = next((name for path in paths if (name := path.relative_to(folder).as_posix()) not in ours), None)
    if foreign is not None:
        raise ValueError(f"{folder}: exists and has files that this command did not write ({foreign}); left as it is")
