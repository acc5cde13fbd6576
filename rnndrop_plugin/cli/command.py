"""How a command runs: bad input ends it with one line."""

import logging
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# The packages that rnndrop-plugin[fairseq] installs.
EXTRA = ("fairseq", "hydra", "omegaconf", "nltk", "sacremoses", "sentencepiece", "tqdm")

OURS = ("rnndrop_plugin", "experiments", "benchmarks")


def run(main: Callable[[], None]) -> None:
    """Run a command's ``main``; bad input or a missing package ends it with one line on stderr and exit status 2."""
    for name in ("fairseq", "rnndrop_plugin"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # so that half-written folders are removed
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except (OSError, ValueError) as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail_for_package(error)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(reason: object) -> NoReturn:
    """End with one line on stderr and exit status 2. RNNDROP_TRACEBACK=1 prints the traceback before the line."""
    hint = ""
    if isinstance(reason, Exception):
        from rnndrop_plugin.errors import TRACEBACK, traceback_is_wanted  # this imports hydra, which takes time

        if traceback_is_wanted():
            traceback.print_exception(reason)
        if isinstance(reason, ValueError) and not _is_raised_by_us(reason):
            hint = f" ({TRACEBACK}=1 shows where)"
    if isinstance(reason, OSError) and reason.filename:
        reason = f"{reason.filename}: {reason.strerror}"
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(reason).split())}{hint}", file=sys.stderr)
    sys.exit(2)


def _is_raised_by_us(error: Exception) -> bool:
    """Whether the repository's own code has raised ``error``. If a package has, it may be a bug of our code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith(OURS)


def fail_for_package(error: ModuleNotFoundError) -> NoReturn:
    """End as :func:`fail` does if another package is not installed; a missing module of ours is a bug and raised."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "rnndrop_plugin"):
        raise error
    package = '"rnndrop-plugin[fairseq]"' if name in EXTRA else name
    fail(f"{name} is not installed, and this command needs it: pip install {package}")
