"""Loading the compiled library of csrc/ with ctypes, and the reasons why it may be missing.

``setup.py`` compiles it when the package is installed. A call releases the interpreter lock.
"""

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("librecurrence.so")
FAILURE = "librecurrence.failure.txt"  # beside it: why it could not be compiled, written by setup.py
DTYPES = (torch.float32, torch.float64)

_logger = logging.getLogger(__name__)
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # the threads of the OpenMP runtime do not survive a fork: waiting for them would never end


os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a call may use."""
    return 1 if _forked else torch.get_num_threads()


def address(x: Tensor, keep_alive: list[Tensor]) -> int:
    """The address of the elements of ``x``, contiguous and each aligned to its own size; of a copy if necessary.

    Hooks of autograd may return saved tensors with other strides and at any address. The tensor at the address is
    appended to ``keep_alive``, which must live until the library is done with it.

    Raises:
        RuntimeError: there are no elements: the tensor has only a shape, or its memory was freed.
    """
    x = x.contiguous().resolve_neg()  # the imaginary part of a conjugate is stored unnegated
    address = x.data_ptr()
    if address % x.element_size() or (not address and x._is_zerotensor()):  # zeros that have no memory yet
        x = x.clone()
        address = x.data_ptr()
    if not address and x.numel() > 0:
        raise RuntimeError(f"a tensor of the shape {tuple(x.shape)} has no memory, or it was freed")
    keep_alive.append(x)
    return address


def source_digest(folder: Path) -> str:
    """A hash of the sources in ``folder``, which shows whether a library was compiled from them."""
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(folder.glob("*.[ch]")))).hexdigest()[:16]


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        failure = LIBRARY.with_name(FAILURE)
        reason = f": {failure.read_text().strip()}" if failure.exists() else ""
        return None, f"it was not compiled when the package was installed{reason}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.rnndrop_digest.restype = library.rnndrop_instructions.restype = ctypes.c_char_p
        library.rnndrop_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        library.rnndrop_loss.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.rnndrop_set_instructions(None)
        digest = library.rnndrop_digest().decode()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY} cannot be used: {error}"
    if digest != source_digest(LIBRARY.parent / "csrc"):
        return None, f"{LIBRARY} was compiled from other sources than those beside it"
    try:
        # Take the OpenMP runtime that torch loaded, whatever its name, so that there is no second one.
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
    """Log once that slower torch operations run instead, and what to do about it."""
    _logger.warning(
        f"the compiled recurrence is not available ({unavailable()}): slower torch operations run instead. "
        "To compile it, install rnndrop-plugin again with pip where there is a C compiler (gcc 11 or later, or clang)."
    )
