"""What the commands that use a trained model share: their flags, and how they write results."""

import argparse
import signal
import sys
from pathlib import Path

from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.data.text import STDIN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that ``tag`` and ``classify`` share."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        default=[STDIN],
        metavar="FILE",
        help="files to read, which may be .gz (default: standard input)",
    )
    parser.add_argument(
        "--path", type=Path, required=True, metavar="CHECKPOINT", help="the model, trained by fairseq-train"
    )
    parser.add_argument(
        "--user-dir",
        metavar="DIR",
        help="the folder with your own task that fairseq-train was given (not needed for the tasks of rnndrop)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder that the model was trained on, for its dictionaries (default: where it was in training)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="how many sequences to read at a time, fewer if they are long; this changes only the speed (default: "
        "%(default)s)",
    )


def import_user_dir(folder: str | None) -> None:
    """Import the --user-dir, so that its tasks are known."""
    if folder is not None:
        from fairseq import utils  # takes seconds

        if not Path(folder).is_dir():
            raise FileNotFoundError(f"--user-dir {folder}: no such folder")
        utils.import_user_module(argparse.Namespace(user_dir=folder))


def write(text: str) -> None:
    """Write to standard output, in UTF-8 whatever the locale. If its reader stops early (head), the process ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
