"""Errors in the user's input, and errors of processes that failed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from hydra.errors import CompactHydraException as _OneLine  # hydra prints these without a traceback
except ImportError:

    class _OneLine(Exception):
        pass


TRACEBACK = "RNNDROP_TRACEBACK"


class InputError(_OneLine, ValueError):
    """A flag, file or checkpoint that cannot be used, reported in one line.

    Under fairseq's commands only this line is printed, and the exit status is 2 (see compat/errors.py).
    """


def failure(name: str, status: int, output: str) -> ValueError:
    """The error for a process that failed: its exit status and the last line that it printed."""
    lines = output.strip().splitlines() or ["it printed nothing"]
    return ValueError(f"{name}: exit status {status}: {lines[-1]}")


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put ``place`` in front of the message of a ValueError that the block raises."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` is what Python or torch raises when memory runs out."""
    told = ("out of memory", "allocate memory", "enough memory", "size calculation overflowed")
    return (
        isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(text in str(error) for text in told)
    )


def flag_of(setting: str) -> str:
    """The flag that sets a field of a configuration: ``--update-dropout`` for ``update_dropout``."""
    return f"--{setting.replace('_', '-')}"


def traceback_is_wanted() -> bool:
    """Whether the environment asks for tracebacks of errors that are reported in one line (RNNDROP_TRACEBACK=1)."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")
