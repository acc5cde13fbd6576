"""The only place that chooses which backend runs a recurrence."""

import torch
from torch import Tensor

from rnndrop_plugin.ops import availability, c_library
from rnndrop_plugin.ops.checks import ArgumentError, check_choice
from rnndrop_plugin.ops.context import (
    computed_dtype,
    in_autocast,
    intercepted,
    is_plain,
    tracing,
    transformation,
    without_autocast,
)
from rnndrop_plugin.ops.gradients import gradient_is_wanted
from rnndrop_plugin.ops.masks import NO_MASKS, Masks
from rnndrop_plugin.ops.recurrence import operators, torch_nn
from rnndrop_plugin.ops.recurrence.autograd import Options, Problem, by_reference, run
from rnndrop_plugin.ops.recurrence.checks import check_recurrence
from rnndrop_plugin.ops.recurrence.operators import KERNELS
from rnndrop_plugin.ops.recurrence.reference import NONLINEARITIES, STEPS, State, Weights
from rnndrop_plugin.ops.recurrence.triton import tiles

#: auto: the fastest of the others that can run the call;
#: reference: the paper's equations, step by step;
#: torch: backpropagation through time by hand in torch operations, on any device;
#: cpu: the same in compiled C;
#: triton: Triton's kernels on an NVIDIA GPU;
#: vendor: torch's own fused kernel (cuDNN on a GPU), where it computes the same function.
BACKENDS = ("auto", "reference", "torch", "cpu", "triton", "vendor")

#: The device type of each backend that runs on only one.
ONLY_ON = {"cpu": "cpu", "triton": "cuda"}


def choose_backend(
    cell: str,
    masks: Masks = NO_MASKS,
    *,
    nonlinearity: str = "tanh",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    time: int | None = None,
    batch: int | None = None,
    hidden: int | None = None,
    lengths: bool = False,
    training: bool = False,
) -> str:
    """The name of the backend that :func:`recurrence` and the modules run for these arguments.

    Args:
        cell, nonlinearity, backend: as in :func:`recurrence`.
        masks: what is dropped; of each mask only the scale is read, and whether its ``keep`` is None.
        device: the input's device.
        dtype: the dtype of the computation: the input's, or autocast's.
        time, batch, hidden: the sizes, if they are known; otherwise those of a large problem are assumed.
        lengths: whether the sequences have lengths of their own, as in a packed batch.
        training: whether a gradient is wanted.

    Raises:
        ValueError: a cell, nonlinearity or backend that is unknown, or a backend that cannot run the recurrence.
    """
    check_choice("cell", cell, STEPS)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_choice("backend", backend, BACKENDS)
    device = torch.device(device)
    if backend != "auto":
        obstacle = _obstacle(backend, cell, masks, nonlinearity, device, dtype)
        if obstacle:
            raise ArgumentError("backend", f"{backend!r} cannot run this recurrence: {obstacle}")
        return backend
    if transformation():
        return "reference"
    # torch.compile would unroll torch's kernels.
    vendor = torch_nn.obstacle(cell, masks, nonlinearity) is None and not intercepted()
    nothing_dropped = all(mask.keep is None for mask in masks)
    if tracing():
        return "vendor" if vendor and nothing_dropped else "reference"
    if device.type != "cpu":
        obstacle = availability.obstacle(device, dtype)
        if vendor and nothing_dropped and (obstacle or not _faster_than_vendor(cell, batch, hidden, device, dtype)):
            return "vendor"
        if obstacle is None:
            return "triton"
        if device.type == "cuda":
            availability.warn_once(obstacle)
        return "vendor" if vendor else "torch"
    vendor = vendor and not (dtype == torch.float16 and in_autocast("cpu"))  # oneDNN has no float16 under autocast
    if vendor and nothing_dropped and not _compiled_is_faster(cell, dtype, time, lengths, training):
        return "vendor"
    if c_library.unavailable():
        c_library.warn_unavailable()
        return "torch"
    if time == 1 and batch is not None and batch < 16:
        return "reference"  # packing the weights for the compiled recurrence takes longer than the step
    return "cpu"


def _faster_than_vendor(
    cell: str, batch: int | None, hidden: int | None, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether Triton's kernels take less time than cuDNN's where nothing is dropped.

    Measured on an H200 for float32 in TF32 and for bfloat16, at sizes for which one kernel runs through all steps.
    cuDNN also has such kernels, for float16 and, with few units, for float32.
    """
    precision = tiles.precision(dtype)
    if not all(isinstance(size, int) and size > 0 for size in (batch, hidden)):  # torch.compile may have symbols
        return False
    few = dtype == torch.float32 and hidden <= (384 if cell == "rnn" else 192)
    if few or dtype == torch.float16 or precision == "tf32x3":
        return False
    return tiles.is_persistent(cell, batch, hidden, precision, device)


def _compiled_is_faster(cell: str, dtype: torch.dtype, time: int | None, lengths: bool, training: bool) -> bool:
    """Whether the compiled recurrence takes less time than torch's own kernel where nothing is dropped.

    Measured with AVX2 and AVX-512 for 1 to 64 rows. For an LSTM in float32 whose sequences have the same length, torch
    has oneDNN's kernel. In evaluation this takes as long, except for few rows, and it is kept so that the numbers are
    exactly torch's. torch's other kernels are loops over the steps. They take up to three times as long, except for a
    few steps, for which rearranging the weights for the compiled recurrence does not pay off.
    """
    if dtype not in c_library.DTYPES or in_autocast("cpu"):
        return False
    if c_library.unavailable() or c_library.instructions() == "plain":
        return False
    if cell == "lstm" and dtype == torch.float32 and not lengths:
        return training
    return time is None or time >= 5


def _obstacle(
    backend: str, cell: str, masks: Masks, nonlinearity: str, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why the backend cannot run this here, None if it can."""
    if backend == "reference":
        return None
    if around := transformation() or (backend in KERNELS and tracing()):
        return f'it is under {around}, which needs backend="reference" (or "auto")'
    if backend == "vendor":
        return torch_nn.obstacle(cell, masks, nonlinearity)
    if backend == "triton":
        return availability.obstacle(device, dtype)
    if backend == "cpu":
        return c_library.unavailable() if device.type == "cpu" else f"its tensors are on {device.type}"
    return None


def recurrence(
    cell: str,
    input: Tensor,
    state: State,
    weights: Weights,
    masks: Masks = NO_MASKS,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Run one layer in one direction over a batch of sequences (``reference.py`` has the equations).

    Under autocast the result has autocast's dtype (float64 stays), as with torch's own recurrent kernels. On a CPU
    half types are computed in float32.

    Args:
        cell: ``"lstm"``, ``"gru"`` (the paper's), ``"gru_reset_after"`` (torch.nn's) or ``"rnn"``.
        input: ``(time, batch, input)``.
        state: the state before the first step, each tensor ``(batch, hidden)``.
        weights: the parameters.
        masks: the dropout masks, indexed by real time even if ``reverse`` is set; with a dtype other than bool they
            must hold only 0 and 1.
        nonlinearity: ``"tanh"`` or ``"relu"``, of the candidate and, in an LSTM, of the cell's output.
        lengths: ``(batch,)``, the number of steps of each sequence, 0 to time; None if each has all. They are on the
            input's device or on the CPU. The input past a sequence's end changes nothing, but has to be finite if
            gradients are wanted.
        reverse: run from each sequence's end to its beginning.
        backend: one of ``BACKENDS``.

    Returns:
        The output ``(time, batch, hidden)``, zero past a sequence's end, and the state after each
        sequence's last step.

    Raises:
        ValueError: an argument whose shape, dtype, device or value does not fit, or a backend that cannot run the
            recurrence. Every backend refuses the same arguments.
        TypeError: an argument of the wrong type (not a tensor, Weights or Masks).
    """
    problem = Problem(Options(cell, masks, nonlinearity, lengths, reverse), input, state, weights)
    # Under torch.func's transformations the reference runs, which torch.compile can follow.
    as_operator = torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    return (operators.call if as_operator else _recurrence)(problem, backend)


def _recurrence(problem: Problem, backend: str) -> tuple[Tensor, State]:
    (cell, masks, nonlinearity, given, reverse), input, state, weights = problem
    state, masks, lengths = check_recurrence(cell, input, state, weights, masks, nonlinearity, given)
    problem = Problem(Options(cell, masks, nonlinearity, lengths, bool(reverse)), input, state, weights)
    device = input.device.type
    time, batch, _ = input.shape
    dtype = computed_dtype(input)
    by_name = backend == "reference"
    backend = choose_backend(
        cell,
        masks,
        nonlinearity=nonlinearity,
        device=input.device,
        dtype=dtype,
        backend=backend,
        time=time,
        batch=batch,
        hidden=weights.hh.size(1),
        lengths=lengths is not None,
        training=gradient_is_wanted(problem.differentiable()),
    )
    autocast = in_autocast(device)
    half_on_cpu = device == "cpu" and dtype.itemsize < 4 and not by_name
    if autocast or half_on_cpu:  # otherwise the checks have made sure that all have one dtype
        problem = _cast(problem, torch.float32 if half_on_cpu else dtype)
    with without_autocast(device):
        if backend == "reference" or 0 in input.shape:
            output, state = by_reference(problem)
        elif backend == "vendor":
            lengths = given if given is None else given.long()  # on the caller's device
            output, state = torch_nn.forward(problem._replace(options=problem.options._replace(lengths=lengths)))
        else:
            kernel = KERNELS[backend] if is_plain(problem.differentiable()) else operators.Operator(backend)
            output, state = run(kernel, problem)
    return output.to(dtype), tuple(s.to(dtype) for s in state)


operators.register(_recurrence)


def _cast(problem: Problem, dtype: torch.dtype) -> Problem:
    tensors = (x if x is None else x.to(dtype) for x in problem.differentiable())
    return Problem.of(problem.options, *tensors)
