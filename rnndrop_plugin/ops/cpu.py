"""The compiled recurrences (backend ``"cpu"``) and output layer, in float32 and float64: ``recurrence.c`` by ctypes.

``setup.py`` compiles them when the package is installed. The call releases the interpreter lock.
"""

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from rnndrop_plugin.ops.autograd import Options
from rnndrop_plugin.ops.masks import Mask
from rnndrop_plugin.ops.reference import State, Weights

LIBRARY = Path(__file__).with_name("librecurrence.so")
SOURCES = ("recurrence.c", "recurrence_kernel.h")
DTYPES = (torch.float32, torch.float64)
LANES = 16  # the kernel computes a batch in multiples of this
WORTH_A_THREAD = 1_000_000  # operations a step; with fewer, threads wait for each other longer than they compute

_CELLS = {"lstm": 0, "gru": 1, "gru_reset_after": 2, "rnn": 3}
_FORWARD, _BACKWARD = 0, 1
_logger = logging.getLogger(__name__)
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # the OpenMP runtime's threads are not there; waiting for them would not end


os.register_at_fork(after_in_child=_after_fork)


class _Mask(ctypes.Structure):
    _fields_ = [("keep", ctypes.c_void_p), ("step", ctypes.c_int64), ("scale", ctypes.c_double)]


class _Arguments(ctypes.Structure):
    """``struct arguments`` of recurrence.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("cell", "relu", "reverse", "threads")),
        *((name, ctypes.c_int64) for name in ("time", "batch", "input", "hidden")),
        *((name, ctypes.c_void_p) for name in ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")),
        *((name, _Mask) for name in ("update", "hidden_mask", "cell_mask")),
        *((name, ctypes.c_void_p) for name in ("lengths", "output", "h_n", "c_n")),
        ("saved", ctypes.c_void_p * 3),
        *((name, ctypes.c_void_p) for name in ("d_output", "d_h_n", "d_c_n")),
        *((name, ctypes.c_void_p) for name in ("d_x", "d_h0", "d_c0", "d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh")),
    ]


class _LossArguments(ctypes.Structure):
    """``struct loss_arguments`` of recurrence.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "rows", "features", "classes")),
        *((name, ctypes.c_void_p) for name in ("x", "w", "b", "target")),
        *((name, ctypes.c_double) for name in ("share", "target_share")),
        *((name, ctypes.c_void_p) for name in ("largest", "sum_of_exp", "sum_of_logits", "of_target")),
        *((name, ctypes.c_void_p) for name in ("d_x", "d_w", "d_b")),
    ]


def source_digest(folder: Path) -> str:
    """What tells whether a library was compiled from the sources in ``folder``."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return None, "it was not compiled when the package was installed (no C compiler?)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.rnndrop_digest.restype = library.rnndrop_instructions.restype = ctypes.c_char_p
        library.rnndrop_padded_batch.restype = ctypes.c_int64
        library.rnndrop_padded_batch.argtypes = [ctypes.c_int64]
        library.rnndrop_run.argtypes = [ctypes.POINTER(_Arguments), ctypes.c_int, ctypes.c_int]
        library.rnndrop_loss.argtypes = [ctypes.POINTER(_LossArguments), ctypes.c_int]
        digest = library.rnndrop_digest().decode()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY} cannot be used: {error}"
    if digest != source_digest(LIBRARY.parent):
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
    return _load()[1]


def instructions() -> str:
    """The instruction set that the compiled recurrences use here: avx512, avx2 or plain."""
    return _load()[0].rnndrop_instructions().decode()


@functools.cache
def warn_unavailable() -> None:
    """Log once that the slower torch operations serve instead, and what to do about it."""
    _logger.warning(
        f"the compiled recurrence is not available ({unavailable()}): torch operations serve instead, slower. "
        "To compile it, install a C compiler (gcc or clang) and rnndrop-plugin again with pip."
    )


def _threads(cell: str, batch: int, hidden: int) -> int:
    gates = {"lstm": 4, "rnn": 1}.get(cell, 3)
    if _forked or 2 * batch * gates * hidden * hidden < WORTH_A_THREAD:
        return 1
    return torch.get_num_threads()


def _arguments(options: Options, input: Tensor, state: State, weights: Weights, keep_alive: list) -> _Arguments:
    def pointer(x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.contiguous()
        keep_alive.append(x)
        return x.data_ptr()

    def mask(m: Mask) -> _Mask:
        step = m.keep[0].numel() if m.keep is not None and m.keep.dim() == 3 else 0
        return _Mask(pointer(m.keep), step, m.scale)

    time, batch, features = input.shape
    hidden = weights.hh.size(1)
    lengths = options.lengths
    return _Arguments(
        _CELLS[options.cell],
        options.nonlinearity == "relu",
        options.reverse,
        _threads(options.cell, batch, hidden),
        time,
        batch,
        features,
        hidden,
        pointer(input),
        pointer(state[0]),
        pointer(state[1]) if len(state) > 1 else None,
        *(pointer(w) for w in weights),
        *(mask(m) for m in options.masks),
        pointer(lengths if lengths is None else lengths.to("cpu", torch.int64)),
    )


def _run(arguments: _Arguments, direction: int, dtype: torch.dtype) -> None:
    library, _ = _load()
    if library.rnndrop_run(arguments, direction, dtype == torch.float64):
        raise MemoryError("not enough memory for the working storage of a recurrence")


def forward(
    options: Options, input: Tensor, state: State, weights: Weights, save: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """See :class:`rnndrop_plugin.ops.autograd.Kernel`."""
    keep_alive: list[Tensor] = []
    arguments = _arguments(options, input, state, weights, keep_alive)
    (time, batch, _), hidden = input.shape, weights.hh.size(1)
    output = input.new_empty(time, batch, hidden)
    final_state = tuple(input.new_empty(batch, hidden) for _ in state)
    arguments.output = output.data_ptr()
    arguments.h_n = final_state[0].data_ptr()
    arguments.c_n = final_state[-1].data_ptr()
    saved = []
    if save:
        row = hidden * _load()[0].rnndrop_padded_batch(batch)
        sizes = {
            "lstm": [time * 4 * row, (time + 1) * row],
            "gru": [time * 2 * row, time * row],
            "gru_reset_after": [time * 2 * row, time * row, time * row],
            "rnn": [],
        }
        saved = [input.new_empty(size) for size in sizes[options.cell]]
        for k, x in enumerate(saved):
            arguments.saved[k] = x.data_ptr()
    _run(arguments, _FORWARD, input.dtype)
    return output, final_state, (output, *saved) if save else ()


def backward(
    options: Options,
    input: Tensor,
    state: State,
    weights: Weights,
    saved: tuple[Tensor, ...],
    grad_output: Tensor,
    grad_state: State,
    input_needs_grad: bool,
) -> tuple[Tensor | None, State, Weights]:
    """See :class:`rnndrop_plugin.ops.autograd.Kernel`."""
    keep_alive: list[Tensor] = []
    arguments = _arguments(options, input, state, weights, keep_alive)
    output, *saved = saved
    arguments.output = output.data_ptr()
    for k, x in enumerate(saved):
        arguments.saved[k] = x.data_ptr()
    incoming = [x.contiguous() for x in (grad_output, *grad_state)]
    arguments.d_output, arguments.d_h_n, arguments.d_c_n = (x.data_ptr() for x in (*incoming, incoming[-1])[:3])
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if input_needs_grad else None
    grad_initial = tuple(x.new_empty(x.shape) for x in state)
    grad_weights = Weights(*(x if x is None else x.new_empty(x.shape) for x in weights))
    arguments.d_x = None if grad_input is None else grad_input.data_ptr()
    arguments.d_h0, arguments.d_c0 = grad_initial[0].data_ptr(), grad_initial[-1].data_ptr()
    names = ("d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh")
    for name, x in zip(names, grad_weights, strict=True):
        setattr(arguments, name, None if x is None else x.data_ptr())
    _run(arguments, _BACKWARD, input.dtype)
    return grad_input, grad_initial, grad_weights


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments.

    See :func:`rnndrop_plugin.ops.linear_cross_entropy`; here ``features`` is ``(rows, features)``. The working
    storage is twice the weight, reordered, and up to 512 rows of logits.

    Raises:
        IndexError: a target that is no class.
        MemoryError: no room for the working storage.
    """
    (rows, size), classes = features.shape, weight.size(0)
    for extreme in map(int, target.aminmax()):
        if not 0 <= extreme < classes:
            raise IndexError(f"target {extreme} is out of bounds: there are {classes} classes")
    share = label_smoothing / (classes - 1)
    inputs = [x if x is None else x.contiguous() for x in (features, weight, bias, target)]
    gradients = [x.new_empty(x.shape) if want else None for x, want in zip(inputs, wanted, strict=False)]
    largest, sum_of_exp, sum_of_logits, of_target = rows_of = features.new_empty(4, rows)
    arguments = _LossArguments(
        1 if _forked else torch.get_num_threads(),
        rows,
        size,
        classes,
        *(x if x is None else x.data_ptr() for x in inputs),
        share,
        1 - label_smoothing - share,
        *(x.data_ptr() for x in rows_of),
        *(x if x is None else x.data_ptr() for x in gradients),
    )
    library, _ = _load()
    if library.rnndrop_loss(arguments, features.dtype == torch.float64):
        raise MemoryError("not enough memory for the working storage of an output layer")
    normaliser = largest + sum_of_exp.log()
    nll = (normaliser - of_target).sum()
    loss = (1 - label_smoothing - share) * nll + share * (classes * normaliser - sum_of_logits).sum()
    return loss, nll, gradients
