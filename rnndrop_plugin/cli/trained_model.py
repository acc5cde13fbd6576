"""What the commands that use a trained model share: their flags, and how they write."""

import argparse
import signal
import sys
from pathlib import Path

from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.data.text import STDIN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``tag`` and ``classify``."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        default=[STDIN],
        metavar="FILE",
        help="what to read, files as they are or .gz (default: standard input)",
    )
    parser.add_argument(
        "--path", type=Path, required=True, metavar="CHECKPOINT", help="the model, made by fairseq-train"
    )
    parser.add_argument(
        "--user-dir",
        metavar="DIR",
        help="a folder with a task of one's own, such as fairseq-train was given (rnndrop's tasks are always there)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder that the model was trained on, for its dictionaries (default: where it was then)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="sequences at a time, fewer where they are long; it changes the speed alone (default: %(default)s)",
    )


def import_user_dir(folder: str | None) -> None:
    """Import the --user-dir, so that its tasks are known."""
    if folder is not None:
        from fairseq import utils  # takes seconds

        if not Path(folder).is_dir():
            raise FileNotFoundError(f"--user-dir {folder}: no such folder")
        utils.import_user_module(argparse.Namespace(user_dir=folder))


def write(text: str) -> None:
    """Write to standard output, in UTF-8 whatever the locale; a reader that stops early (head) ends the process."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
