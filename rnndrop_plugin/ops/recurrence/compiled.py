"""The recurrences in C (backend ``"cpu"``), in float32 and float64."""

import ctypes

import torch
from torch import Tensor

from rnndrop_plugin.ops import c_library
from rnndrop_plugin.ops.masks import Mask
from rnndrop_plugin.ops.recurrence.autograd import Gradients, Options, Problem, Saved
from rnndrop_plugin.ops.recurrence.reference import GATES, State, Weights

BLOCK = 16  # the kernel computes units in blocks of this size, and divides these among threads
WORTH_A_THREAD = 700_000  # operations of a step per thread; with fewer, threads spend longer waiting than computing
STREAMED = 3  # rows: up to this many, a step takes as long as reading the weights

_CELLS = {"lstm": 0, "gru": 1, "gru_reset_after": 2, "rnn": 3}
_FORWARD, _BACKWARD = 0, 1


class _Mask(ctypes.Structure):
    _fields_ = [("keep", ctypes.c_void_p), ("step", ctypes.c_int64), ("scale", ctypes.c_double)]


class _Arguments(ctypes.Structure):
    """``struct arguments`` of interface.h."""

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


def threads(cell: str, batch: int, hidden: int) -> int:
    """How many threads a call uses, in proportion to what a step computes."""
    operations = 2 * max(batch, STREAMED) * GATES[cell] * hidden * hidden
    return max(1, min(c_library.threads(), operations // WORTH_A_THREAD, -(-hidden // BLOCK)))


def _arguments(options: Options, input: Tensor, state: State, weights: Weights, keep_alive: list) -> _Arguments:
    def pointer(x: Tensor | None) -> int | None:
        return None if x is None else c_library.address(x, keep_alive)

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
        threads(options.cell, batch, hidden),
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
    if c_library.load()[0].rnndrop_run(ctypes.byref(arguments), direction, dtype == torch.float64):
        raise MemoryError("not enough memory for the working storage of a recurrence")


def forward(problem: Problem, save: bool) -> tuple[Tensor, State, Saved]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    keep_alive: list[Tensor] = []
    arguments = _arguments(options, input, state, weights, keep_alive)
    (time, batch, _), hidden = input.shape, weights.hh.size(1)
    output = input.new_empty(time, batch, hidden)
    final_state = tuple(input.new_empty(batch, hidden) for _ in state)
    arguments.output = output.data_ptr()
    arguments.h_n = final_state[0].data_ptr()
    arguments.c_n = final_state[-1].data_ptr()
    saved = saved_like(options, input, hidden) if save else []
    for k, x in enumerate(saved):
        arguments.saved[k] = x.data_ptr()
    _run(arguments, _FORWARD, input.dtype)
    return output, final_state, (output, *saved) if save else ()


def saved_like(options: Options, input: Tensor, hidden: int) -> list[Tensor]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`; the matrices are laid out as in csrc/layout.h."""
    time, batch, _ = input.shape
    rows, units = time * batch, (hidden + BLOCK - 1) // BLOCK * BLOCK
    shapes = {
        "lstm": [(rows, 4 * units), (rows + batch, units)],
        "gru": [(rows, 2 * units), (rows, units)],
        "gru_reset_after": [(rows, 2 * units), (rows, units), (rows, units)],
        "rnn": [],
    }
    # an odd number of rows, as stride_of in layout.h has it
    return [input.new_empty((rows // 2 * 2 + 1) * features) for rows, features in shapes[options.cell]]


def backward(
    problem: Problem, saved: Saved, gradients: Gradients, input_needs_grad: bool, last: bool = False
) -> tuple[Tensor | None, State, Weights]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    grad_output, *grad_state = gradients
    keep_alive: list[Tensor] = []
    arguments = _arguments(options, input, state, weights, keep_alive)
    output, *saved = saved
    arguments.output = c_library.address(output, keep_alive)
    for k, x in enumerate(saved):
        arguments.saved[k] = c_library.address(x, keep_alive)
    incoming = [c_library.address(x, keep_alive) for x in (grad_output, *grad_state)]
    arguments.d_output, arguments.d_h_n, arguments.d_c_n = (*incoming, incoming[-1])[:3]
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
