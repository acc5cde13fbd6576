"""The compiled library, csrc/recurrence.c, by ctypes: loading it, and why it may not be there.

``setup.py`` compiles it when the package is installed. A call releases the interpreter lock.
"""

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("librecurrence.so")
SOURCES = ("recurrence.c", "recurrence_kernel.h")
DTYPES = (torch.float32, torch.float64)

_logger = logging.getLogger(__name__)
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # the OpenMP runtime's threads are not there; waiting for them would not end


os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a call may use."""
    return 1 if _forked else torch.get_num_threads()


def source_digest(folder: Path) -> str:
    """What tells whether a library was compiled from the sources in ``folder``."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return None, "it was not compiled when the package was installed (no C compiler?)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.rnndrop_digest.restype = library.rnndrop_instructions.restype = ctypes.c_char_p
        library.rnndrop_padded_batch.restype = ctypes.c_int64
        library.rnndrop_padded_batch.argtypes = [ctypes.c_int64]
        library.rnndrop_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        library.rnndrop_loss.argtypes = [ctypes.c_void_p, ctypes.c_int]
        digest = library.rnndrop_digest().decode()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY} cannot be used: {error}"
    if digest != source_digest(LIBRARY.parent / "csrc"):
        return None, f"{LIBRARY} was compiled from other sources than those beside it"
    try:
        # The OpenMP runtime that torch loaded, whatever its name, so that there is no second one.
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.rnndrop_set_threading(runtime.GOMP_parallel, runtime.omp_get_num_threads, runtime.omp_get_thread_num)
    except (OSError, AttributeError):
        _logger.warning("torch's OpenMP runtime was not found: the compiled recurrence runs on one thread")
    return library, None


def unavailable() -> str | None:
    """Why the compiled recurrences cannot run, None if they can."""
    return load()[1]


def instructions() -> str:
    """The instruction set that the compiled recurrences use here: avx512, avx2 or plain."""
    return load()[0].rnndrop_instructions().decode()


@functools.cache
def warn_unavailable() -> None:
    """Log once that the slower torch operations serve instead, and what to do about it."""
    _logger.warning(
        f"the compiled recurrence is not available ({unavailable()}): torch operations serve instead, slower. "
        "To compile it, install a C compiler (gcc or clang) and rnndrop-plugin again with pip."
    )
