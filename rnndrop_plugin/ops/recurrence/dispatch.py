"""The one place that chooses which backend runs a recurrence."""

from contextlib import nullcontext

import torch
from torch import Tensor

from rnndrop_plugin.ops import c_library
from rnndrop_plugin.ops.masks import NO_MASKS, ArgumentError, Masks
from rnndrop_plugin.ops.recurrence import autograd, bptt, compiled, reference, torch_nn
from rnndrop_plugin.ops.recurrence.reference import State, Weights

#: auto: the fastest of the others that can do what is asked;
#: reference: the paper's equations, step by step;
#: torch: backpropagation through time by hand in torch operations, on any device;
#: cpu: the same in compiled C;
#: vendor: torch's own fused kernel (cuDNN on a GPU), where it computes the same function.
BACKENDS = ("auto", "reference", "torch", "cpu", "vendor")


def choose_backend(
    cell: str,
    masks: Masks = NO_MASKS,
    *,
    nonlinearity: str = "tanh",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> str:
    """The name of the backend that :func:`recurrence` runs for these arguments.

    Args:
        masks: what is dropped; of the masks only the scale and whether there is one are read.
        device, dtype: those of the input.

    Raises:
        ValueError: ``backend`` is unknown or cannot do what is asked.
    """
    if backend not in BACKENDS:
        raise ArgumentError("backend", f"must be one of {', '.join(BACKENDS)}, got {backend!r}")
    device = torch.device(device).type
    obstacle = torch_nn.obstacle(cell, masks, nonlinearity)
    if backend == "vendor" and obstacle:
        raise ArgumentError("backend", f"'vendor' cannot run this recurrence: {obstacle}")
    if backend == "cpu" and device != "cpu":
        raise ArgumentError("backend", f"'cpu' cannot run this recurrence: its tensors are on {device}")
    if backend == "cpu" and c_library.unavailable():
        raise ArgumentError("backend", f"'cpu' cannot run this recurrence: {c_library.unavailable()}")
    if backend != "auto":
        return backend
    if device != "cpu":
        return "torch" if obstacle else "vendor"
    if c_library.unavailable():
        c_library.warn_unavailable()
        return "torch"
    return "cpu"


def compiled_trains_faster(batch: int, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether a layer that drops nothing trains faster on the compiled recurrence than on torch's own kernel.

    Measured: on a CPU whose batch fills the kernel's vectors it does, but for an LSTM on AVX2, 2 % slower. A smaller
    batch costs the compiled recurrence as much as a full one.
    """
    full = batch > 0 and batch % compiled.LANES == 0 and dtype in c_library.DTYPES
    if not full or torch.device(device).type != "cpu" or in_autocast("cpu"):
        return False
    return c_library.unavailable() is None and c_library.instructions() != "plain"


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
    """:func:`rnndrop_plugin.ops.recurrence.reference.recurrence` on the backend asked for.

    Under autocast the result has autocast's dtype, as that of torch's own recurrent kernels has. On a
    CPU half types are computed in float32.

    Raises:
        ValueError: a mask whose shape does not fit or that the cell does not have, or a backend that cannot do what
            is asked.
    """
    if cell not in reference.STEPS:
        raise ValueError(f"cell must be one of {', '.join(reference.STEPS)}, got {cell!r}")
    time, batch, _ = input.shape
    hidden = weights.hh.size(1)
    for name, mask in masks._asdict().items():
        if cell == "rnn" and name != "hidden" and (mask.keep is not None or mask.scale != 1):
            raise ValueError(f"an RNN has no {name} to drop: it takes only a hidden mask (Eq. 2)")
        if mask.keep is not None and tuple(mask.keep.shape) not in ((batch, hidden), (time, batch, hidden)):
            raise ValueError(
                f"the {name} mask must be ({batch}, {hidden}) or ({time}, {batch}, {hidden}), "
                f"got {tuple(mask.keep.shape)}"
            )
    device = input.device.type
    backend = choose_backend(cell, masks, nonlinearity=nonlinearity, device=device, dtype=input.dtype, backend=backend)
    autocast = in_autocast(device)
    dtype = torch.get_autocast_dtype(device) if autocast and input.dtype != torch.float64 else input.dtype
    half_on_cpu = device == "cpu" and dtype.itemsize < 4 and backend != "reference"
    input, state, weights = _cast(input, state, weights, torch.float32 if half_on_cpu else dtype)
    options = autograd.Options(cell, masks, nonlinearity, lengths, reverse)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        if backend == "reference":
            arguments = options._asdict()
            del arguments["cell"]
            output, state = reference.recurrence(cell, input, state, weights, **arguments)
        elif backend == "vendor":
            output, state = torch_nn.forward(options, input, state, weights)
        else:
            kernel = compiled if backend == "cpu" and batch > 0 else bptt
            output, state = autograd.run(kernel, options, input, state, weights)
    return output.to(dtype), tuple(s.to(dtype) for s in state)


def in_autocast(device: str) -> bool:
    """Whether autocast is on for ``device``; some (meta) have none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _cast(input: Tensor, state: State, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, State, Weights]:
    weights = Weights(*(w if w is None else w.to(dtype) for w in weights))
    return input.to(dtype), tuple(s.to(dtype) for s in state), weights
