"""Errors of the user's input and of processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from hydra.errors import CompactHydraException as _OneLine  # which hydra prints without a traceback
except ImportError:

    class _OneLine(Exception):
        pass


TRACEBACK = "RNNDROP_TRACEBACK"


class InputError(_OneLine, ValueError):
    """A flag, file or checkpoint that cannot be used, said in one line.

    Under fairseq's commands the line is all that is printed, and the exit status is 2 (see compat/errors.py).
    """


def failure(name: str, status: int, output: str) -> ValueError:
    """The error of a process that has failed, by the last line that it printed."""
    lines = output.strip().splitlines() or ["it printed nothing"]
    return ValueError(f"{name}: exit status {status}: {lines[-1]}")


@contextmanager
def at(place: str) -> Iterator[None]:
    """Say in a ValueError of the block that it is of ``place``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` is Python's or torch's for want of memory."""
    told = ("out of memory", "allocate memory", "enough memory")
    return (
        isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(text in str(error) for text in told)
    )


def flag_of(setting: str) -> str:
    """The flag that sets a field of a configuration: ``--update-dropout`` of ``update_dropout``."""
    return f"--{setting.replace('_', '-')}"


def traceback_is_wanted() -> bool:
    """Whether the environment asks for the traceback of an error that is said in one line (RNNDROP_TRACEBACK=1)."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")
