"""The recurrences on Triton's kernels: this module prepares their arguments and launches them.

A persistent kernel (``loops``) runs where ``tiles`` has tiles for it. Otherwise products of torch and a kernel for each
step take turns (``steps``). Nothing here waits for the device, and all memory is torch's, so that a call can be
captured in a CUDA graph.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor

from rnndrop_plugin.ops.masks import Masks
from rnndrop_plugin.ops.recurrence.autograd import Gradients, Options, Problem, Saved
from rnndrop_plugin.ops.recurrence.reference import GATES, State, Weights
from rnndrop_plugin.ops.recurrence.triton import loops, steps
from rnndrop_plugin.ops.recurrence.triton.product import SPACING
from rnndrop_plugin.ops.recurrence.triton.tiles import STAGES, WARPS, Tiles, chosen, precision, refuse
from rnndrop_plugin.ops.sums import sum_of_rows

POLLS = 1 << 22  # how often a barrier polls before it gives up: for seconds, though a step takes microseconds
BLOCK = 256  # elements of a block in a pointwise kernel
PADDING = 8  # rows of h are padded to a multiple of this, so that they are read in vectors
ALIGNMENT = 16  # bytes, of tensors that are read in vectors
#: How a persistent kernel is compiled. Its cooperative launch is refused unless all blocks are resident.
COMPILATION = {"num_warps": WARPS, "num_stages": 1, "launch_cooperative_grid": True, "enable_fp_fusion": True}

_launchers: dict[tuple, Callable] = {}


def padded(hidden: int) -> int:
    """The length of a padded row of h."""
    return -(-hidden // PADDING) * PADDING


@functools.cache
def _failure_flag(device: torch.device) -> Tensor:
    """Where a kernel on ``device`` notes that a barrier failed: host memory, which can be read without waiting."""
    return torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")


def raise_if_failed(device: torch.device) -> None:
    """Raise RuntimeError if a kernel that has run on ``device`` waited in vain at a barrier."""
    flag = _failure_flag(device).numpy()
    if flag[0]:
        flag[0] = 0
        raise RuntimeError(
            "a recurrence on the GPU gave up waiting for its other blocks, and its results were NaN: is the GPU "
            "shared with a debugger or profiler? backend='torch' does not wait"
        )


def launch(kernel, grid: tuple[int, int, int], arguments: dict, constants: dict, like: Tensor, **settings) -> None:
    """Launch a kernel. Triton's own launch binds all arguments anew each time; here only the first launch does.

    Args:
        arguments, constants: the kernel's, by name.
        like: a tensor with the dtype and device of the others.
        settings: the settings of the compilation.
    """
    key = (kernel.__name__, grid, like.dtype, like.device, *constants.values(), *settings.values())
    launcher = _launchers.get(key)
    aligned = all(arguments[name].data_ptr() % ALIGNMENT == 0 for name in _aligned(kernel))
    if launcher is not None and aligned:
        arguments = arguments | constants
        launcher(*[arguments[name] for name in kernel.arg_names])
        return
    compiled = kernel[grid](**arguments, **constants, **settings)
    if compiled is not None and aligned:  # the interpreter returns none
        _launchers[key] = compiled[grid]


@functools.cache
def _aligned(kernel) -> list[str]:
    """The names of a kernel's tensors that compiled code assumes to be aligned if they were at its first launch."""
    outside = {*loops.OUTSIDE, *loops.NUMBERS, *steps.NUMBERS}
    return [name for name in kernel.arg_names if name.islower() and name not in outside]


def _mask_arguments(masks: Masks, dummy: Tensor) -> tuple[dict, dict[str, int]]:
    """The kernels' arguments for the masks, and their modes (see :func:`.product.drop`)."""
    arguments, modes = {}, {}
    for name, (keep, scale) in zip("uhc", masks, strict=True):
        step, mode = 0, int(scale != 1)
        if keep is not None:
            keep = keep.contiguous().view(torch.uint8)
            step, mode = keep.stride(0) if keep.dim() == 3 else 0, 2
        arguments[f"keep_{name}"] = dummy if keep is None else keep
        arguments[f"step_{name}"] = step
        arguments[f"scale_{name}"] = float(scale)
        modes[f"M{name.upper()}"] = mode
    return arguments, modes


class _Call:
    """What the kernels of one call have in common."""

    def __init__(self, options: Options, gates: Tensor, weights: Weights):
        self.options = options
        self.time, self.batch = gates.shape[:2]
        self.hidden = weights.hh.size(1)
        self.like = gates
        self.u = weights.hh.contiguous()
        if self.u.data_ptr() % ALIGNMENT:  # in the flat buffer that nn.RNNBase makes of the weights on a GPU
            self.u = self.u.clone()
        self.lengths = None if options.lengths is None else options.lengths.contiguous()
        self.masks, modes = _mask_arguments(options.masks, gates)
        self.before, self.after = (1, 0) if options.reverse else (0, 1)
        self.constants = {
            "CELL": options.cell,
            "RELU": options.nonlinearity == "relu",
            "REVERSE": options.reverse,
            "BIAS": weights.bias_hh is not None,
            "LENGTHS": self.lengths is not None,
            **modes,
            "H": self.hidden,
            "LD": padded(self.hidden),
        }

    def pointer(self, x: Tensor | None) -> Tensor:
        """``x`` for a kernel. For None it is any tensor, which the kernel does not read."""
        return self.like if x is None else x.contiguous()

    def loop(self, kernel, direction: str, arguments: dict, constants: dict) -> bool:
        """Launch a persistent kernel; False if its blocks cannot all be on the device at once."""
        products = precision(self.like.dtype)
        key = (direction, self.options.cell, self.batch, self.hidden, products, self.like.device)
        tiles = chosen(*key)
        if tiles is None:
            return False
        grid = tiles.grid(self.batch, self.hidden)
        barrier = {
            "counters": torch.zeros(SPACING.value * grid[1], dtype=torch.int32, device=self.like.device),
            "failed": _failure_flag(self.like.device),
            "polls": POLLS,
        }
        arguments = arguments | self.masks | barrier | {"T": self.time, "B": self.batch}
        constants = constants | tile_constants(tiles, products)
        try:
            launch(kernel, grid, arguments, constants, self.like, **COMPILATION)
        except (triton.runtime.errors.OutOfResources, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "cooperative" not in str(error):
                raise
            refuse(*key)
            return False
        return True

    def step(self, kernel, t: int, arguments: dict, constants: dict) -> None:
        """Launch a pointwise kernel."""
        grid = (-(-self.batch * self.hidden // BLOCK), 1, 1)
        arguments = arguments | self.masks | {"t": t, "T": self.time, "B": self.batch}
        launch(kernel, grid, arguments, constants, self.like, num_warps=4, enable_fp_fusion=True)


def tile_constants(tiles: Tiles, precision: str) -> dict:
    """The constants of a persistent kernel that say how it is cut into blocks."""
    return {
        "BB": tiles.batch,
        "BH": tiles.units,
        "SPLIT": tiles.split,
        "KC": tiles.depth,
        "GROUP": tiles.group,
        "KEEP": tiles.keep,
        "STAGES": STAGES,
        "PRECISION": "ieee" if precision == "half" else precision,
        "BARRIER": True,
    }


def forward(problem: Problem, save: bool) -> tuple[Tensor, State, Saved]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    raise_if_failed(input.device)
    hidden = weights.hh.size(1)
    gates, *rest = saved = saved_like(options, input, hidden)
    call = _Call(options, gates, weights)
    hs, hx, cs, extra = _named(options, rest)
    begins_inside = options.reverse and options.lengths is not None
    out = torch.empty_like(hs[1:]) if begins_inside else hs[call.after : call.after + call.time]
    final = tuple(torch.empty_like(s, memory_format=torch.contiguous_format) for s in state)
    buffers = {"gates": gates, "hs": hs, "hx": hx, "out": out, "cs": call.pointer(cs), "extra": call.pointer(extra)}
    buffers |= {"bias": call.pointer(weights.bias_hh), "lengths": call.pointer(call.lengths)}
    ends = {"h0": call.pointer(state[0]), "c0": call.pointer(state[-1]), "h_n": final[0], "c_n": final[-1]}
    with torch.cuda.device_of(input):
        if weights.bias_ih is None:
            torch.mm(input.flatten(0, 1), weights.ih.t(), out=gates.flatten(0, 1))
        else:
            torch.addmm(weights.bias_ih, input.flatten(0, 1), weights.ih.t(), out=gates.flatten(0, 1))
        if not call.loop(loops.forward, "forward", buffers | ends | {"u": call.u}, call.constants):
            final = _forward_steps(call, buffers, state)
    output = out[:, :, :hidden]
    return output, final, (output, *saved) if save else ()


def saved_like(options: Options, input: Tensor, hidden: int) -> list[Tensor]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`; :func:`_named` has the names."""
    time, batch, _ = input.shape
    row = padded(hidden)
    saved = [input.new_empty(time, batch, GATES[options.cell] * hidden), input.new_empty(time + 1, batch, row)]
    if not options.masks.hidden.is_identity:
        saved.append(torch.empty_like(saved[1]))
    if options.cell == "lstm":
        saved.append(input.new_empty(time + 1, batch, hidden))
    elif options.cell != "rnn":
        saved.append(input.new_empty(time, batch, row if options.cell == "gru" else hidden))
    return saved


def _named(options: Options, rest: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """hs, hx, cs and extra of the kernels, from what :func:`saved_like` returns after the gates."""
    hs, *rest = rest
    hx = hs if options.masks.hidden.is_identity else rest.pop(0)
    last = rest[0] if rest else None
    return (hs, hx, last, None) if options.cell == "lstm" else (hs, hx, None, last)


_switching = threading.Lock()
_calls, _before = 0, ""  # how many calls are running, and the setting before the first of them


@contextlib.contextmanager
def products_as_in_the_loops(dtype: torch.dtype) -> Iterator[None]:
    """Compute torch's products of float32 in the precision that :func:`.tiles.precision` gives for the recurrence.

    By default they follow another switch of torch, which all threads share. Of several calls at the same time the first
    one sets it, and the last one sets it back.
    """
    global _calls, _before
    switch = torch.backends.cuda.matmul
    if dtype != torch.float32 or not hasattr(switch, "fp32_precision"):  # which torch has since 2.9
        yield
        return
    with _switching:
        if _calls == 0:
            wanted = "tf32" if precision(dtype) == "tf32" else "ieee"
            _before = switch.fp32_precision
            if _before != wanted:  # an inherited setting stays inherited
                switch.fp32_precision = wanted
        _calls += 1
    try:
        yield
    finally:
        with _switching:
            _calls -= 1
            if _calls == 0 and switch.fp32_precision != _before:
                switch.fp32_precision = _before


def _forward_steps(call: _Call, buffers: dict[str, Tensor], state: State) -> State:
    gates, hs, hx, cs, extra = (buffers[name] for name in ("gates", "hs", "hx", "cs", "extra"))
    cell, hidden = call.options.cell, call.hidden
    order = range(call.time - 1, -1, -1) if call.options.reverse else range(call.time)
    first = order[0]
    hs[first + call.before, :, :hidden] = state[0]
    if hx is not hs:
        hx[first + call.before, :, :hidden] = call.options.masks.at(first).hidden(state[0])
    carried = [s.to(torch.float32, copy=True).contiguous() for s in state]
    if cell == "lstm":
        cs[first + call.before] = state[1]
    u = call.u.t()
    lefts = hx[call.before : call.before + call.time, :, :hidden]
    parts = [(lefts, u, False)]
    if cell == "gru":
        parts = [(lefts, u[:, : 2 * hidden], True), (extra[:, :, :hidden], u[:, 2 * hidden :], False)]
    products = [gates.new_empty(call.batch, part.size(1)) for _, part, _ in parts]
    constants = {reset: call.constants | {"RESET": reset, "BLOCK": BLOCK} for _, _, reset in parts}
    arguments = buffers | {"h": carried[0], "c": carried[-1]}
    with products_as_in_the_loops(call.like.dtype):
        for t in order:
            for (left, part, reset), product in zip(parts, products, strict=True):
                torch.mm(left[t], part, out=product)
                call.step(steps.forward_step, t, arguments | {"product": product}, constants[reset])
    return tuple(s.to(call.like.dtype) for s in carried)


def backward(
    problem: Problem, saved: Saved, gradients: Gradients, input_needs_grad: bool, last: bool = False
) -> tuple[Tensor | None, State, Weights]:
    """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
    options, input, state, weights = problem
    grad_output, *grad_state = gradients
    raise_if_failed(input.device)
    gates, *rest = (x.contiguous() for x in saved[1:])  # a hook may have changed their layout
    call = _Call(options, gates, weights)
    hs, hx, cs, extra = _named(options, rest)
    # A block has read its gates of a step before it writes their gradients, and no other block reads them.
    d_gates = gates if last else torch.empty_like(gates)
    d_hn = torch.empty_like(extra) if options.cell == "gru_reset_after" else None
    read = {"gates": gates, "hs": hs, "cs": call.pointer(cs), "extra": call.pointer(extra)}
    read |= {"grad": grad_output.contiguous(), "lengths": call.pointer(call.lengths)}
    grad_state = tuple(g.contiguous() for g in grad_state)
    grad_initial = tuple(torch.empty_like(s, memory_format=torch.contiguous_format) for s in state)
    written = {"d_gates": d_gates, "d_hn": call.pointer(d_hn)}
    constants = {name: value for name, value in call.constants.items() if name != "BIAS"}
    with torch.cuda.device_of(input):
        ends = {"dh_n": grad_state[0], "dc_n": grad_state[-1], "dh0": grad_initial[0], "dc0": grad_initial[-1]}
        if not call.loop(loops.backward, "backward", read | written | ends | {"u": call.u}, constants):
            grad_initial = _backward_steps(call, read | written, grad_state, constants)

    flat = d_gates.flatten(0, 1)
    hidden = hx[call.before : call.before + call.time].flatten(0, 1)[:, : call.hidden]
    d_bias = d_bias_hh = None
    if weights.bias_ih is not None:
        d_bias = sum_of_rows(flat)
        d_bias_hh = d_bias.clone()
    if options.cell.startswith("gru"):
        d_hh = torch.empty_like(call.u)
        rz = 2 * call.hidden
        torch.mm(flat[:, :rz].t(), hidden, out=d_hh[:rz])
        if d_hn is None:
            torch.mm(flat[:, rz:].t(), extra.flatten(0, 1)[:, : call.hidden], out=d_hh[rz:])
        else:
            torch.mm(d_hn.flatten(0, 1).t(), hidden, out=d_hh[rz:])
            if d_bias_hh is not None:
                d_bias_hh[rz:] = sum_of_rows(d_hn.flatten(0, 1))
    else:
        d_hh = flat.t() @ hidden
    d_ih = flat.t() @ input.flatten(0, 1)
    d_input = (flat @ weights.ih).view(input.shape) if input_needs_grad else None
    return d_input, grad_initial, Weights(d_ih, d_hh, d_bias, d_bias_hh)


def _backward_steps(call: _Call, buffers: dict[str, Tensor], grad_state: State, constants: dict) -> State:
    cell, hidden = call.options.cell, call.hidden
    d_gates, d_hn = buffers["d_gates"], buffers["d_hn"]
    order = range(call.time) if call.options.reverse else range(call.time - 1, -1, -1)
    carried = [g.to(torch.float32, copy=True) for g in grad_state]
    rest = torch.zeros_like(carried[0])
    product = d_gates.new_zeros(call.batch, hidden)
    arguments = buffers | {"product": product, "dh": carried[0], "dc": carried[-1], "carried": rest}
    rz = d_gates.size(2) if not cell.startswith("gru") else 2 * hidden
    constants = constants | {"RESET": False, "BLOCK": BLOCK}
    with products_as_in_the_loops(call.like.dtype):
        for t in order:
            call.step(steps.backward_step, t, arguments, constants)
            if cell == "gru":
                torch.mm(d_gates[t, :, rz:], call.u[rz:], out=product)
                call.step(steps.backward_step, t, arguments, constants | {"RESET": True})
            torch.mm(d_gates[t, :, :rz], call.u[:rz], out=product)
            if cell == "gru_reset_after":
                product.addmm_(d_hn[t], call.u[rz:])
    end = order[-1] + (1 if call.options.reverse else -1)
    call.step(steps.backward_step, end, arguments, constants)
    return tuple(g.to(call.like.dtype) for g in carried)
