"""Errors of the user's input: one line and exit status 2, where fairseq's commands end with a traceback."""

import sys
import typing

from rnndrop_plugin.errors import InputError


def run(main, cfg, **kwargs):
    """Run a command's ``main``; an error of the input ends the process with its line."""
    try:
        return main(cfg, **kwargs)
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        end(line)


def end(line: str) -> typing.NoReturn:
    """Print an error's line and end the process."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def describe(error: Exception) -> str | None:
    """What ``error`` says about the user's input in one line; None for any other error."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        reasons.append(str(cause).rstrip("."))
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        reasons.append(str(cause))
    elif isinstance(error, OSError) and error.filename:
        reasons = [f"{error.filename}: {error.strerror}"]
    elif isinstance(error, UnicodeDecodeError):  # fairseq-interactive names no file
        reasons = [f"a text is not {error.encoding} (byte 0x{error.object[error.start]:02x})"]
    elif isinstance(error, OSError) or type(error) in (AssertionError, Exception) and str(error):
        reasons = [str(error)]  # fairseq's own words for flags and files that it cannot use
    else:
        return None
    return " ".join(": ".join(reasons).split())
