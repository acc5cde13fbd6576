"""Types of command-line arguments, and the flags that several commands share."""

import argparse


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fraction(text: str) -> float:
    """An argparse type: a number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return number


def language(code: str) -> str:
    """An argparse type: a language that sacremoses has, which takes any other for English without a word."""
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
    """An argparse type: what stands between two columns."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text separates nothing")
    return text.replace("\\t", "\t")


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how files of columns are read."""
    parser.add_argument(
        "--word-column",
        type=int,
        default=0,
        metavar="N",
        help="which column has the words: from 0, or from -1 backwards for the last ones (default: %(default)s)",
    )
    parser.add_argument(
        "--tag-column", type=int, default=-1, metavar="N", help="which has the tags (default: %(default)s, the last)"
    )
    parser.add_argument(
        "--separator",
        type=separator,
        metavar="TEXT",
        help="what is between two columns, \\t for a tab (default: any number of blanks and tabs)",
    )
    parser.add_argument(
        "--encoding",
        type=encoding,
        default="utf-8",
        metavar="NAME",
        help="of the files, such as latin-1, which CoNLL-2002 has (default: %(default)s)",
    )
