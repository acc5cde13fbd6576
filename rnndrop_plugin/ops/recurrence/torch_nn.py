"""torch's own fused kernels (backend ``"vendor"``): oneDNN or ATen on a CPU, cuDNN on a GPU.

They have no recurrent dropout, so they run what drops nothing. They also run two other cases exactly:

- a hidden state that is only scaled (Eq. 3 in evaluation), by scaling the matrix that reads it;
- an LSTM with only update dropout and unscaled masks (Eq. 3 in training). Dropping i * g means closing the input gate.
  So the mask is given as additional inputs, which add a large negative number to the gate's pre-activation.
"""

import torch
from torch import _VF, Tensor

from rnndrop_plugin.ops.masks import IDENTITY, Masks
from rnndrop_plugin.ops.packing import pack, pad
from rnndrop_plugin.ops.recurrence.autograd import Options, Problem
from rnndrop_plugin.ops.recurrence.reference import State

CLOSED = -1e4  # the sigmoid and its derivative are exactly 0 here, in half precision, too


def obstacle(cell: str, masks: Masks, nonlinearity: str) -> str | None:
    """Why torch has no kernel for this, None if it has one."""
    if cell == "gru":
        return "torch has no kernel for the paper's GRU, only for gru_reset_after"
    if nonlinearity != "tanh" and cell != "rnn":
        return f"torch has no {cell} kernel with {nonlinearity}"
    if masks.hidden.keep is None:
        masks = masks._replace(hidden=IDENTITY)
    if all(mask.is_identity for mask in masks):
        return None
    if cell != "lstm" or not (masks.hidden.is_identity and masks.cell.is_identity) or masks.update.scale != 1:
        return (
            "torch's kernels have no recurrent dropout, except with expected scaling: an LSTM's update dropout in "
            "training, and hidden dropout in evaluation"
        )
    return None


def forward(problem: Problem) -> tuple[Tensor, State]:
    """Run torch's kernel, differentiable once (on a CPU twice). The host reads the lengths: best on the CPU."""
    options, input, state, weights = problem
    time, batch, _ = input.shape
    lengths = None if options.lengths is None else options.lengths.to(input.device, non_blocking=True)
    keep = options.masks.update.keep
    if keep is not None:
        offset = torch.where(keep, 0.0, CLOSED).to(input.dtype).expand(time, batch, -1)
        input = torch.cat([input, offset], dim=2)
        size = weights.hh.size(1)
        to_input_gate = torch.eye(4 * size, size, dtype=input.dtype, device=input.device)
        weights = weights._replace(ih=torch.cat([weights.ih, to_input_gate], dim=1))
    if options.masks.hidden.scale != 1:
        weights = weights._replace(hh=weights.hh * options.masks.hidden.scale)
    index = None
    if options.reverse:
        index = _reversal(time, batch, lengths, input.device)
        input = _take(input, index)

    flat = [w for w in weights if w is not None]
    if input.device.type == "cuda":
        flat = _in_one_piece(flat)
    settings = (weights.bias_ih is not None, 1, 0.0, True, False)  # bias, layers, dropout, train, bidirectional
    initial = tuple(s.unsqueeze(0).contiguous() for s in state)
    if lengths is None:
        output, *final = _function(options)(input, _hx(initial), flat, *settings, False)
    else:
        # A packed batch cannot hold a sequence of length 0: it gets one step here, and its results are replaced below.
        packed = pack(input, options.lengths.clamp(min=1))
        sort, unsort = packed.sorted_indices, packed.unsorted_indices
        initial = tuple(s.index_select(1, sort) for s in initial)
        data, *final = _function(options)(packed.data, packed.batch_sizes, _hx(initial), flat, *settings)
        output = pad(packed._replace(data=data), total_length=time)
        final = [s.index_select(1, unsort) for s in final]
        started = (lengths > 0).unsqueeze(1)
        output = output.masked_fill(~started, 0)
        final = [torch.where(started, s, old) for s, old in zip(final, state, strict=True)]
    if index is not None:
        output = _take(output, index)
    return output, tuple(s.reshape(batch, -1) for s in final)


def _in_one_piece(weights: list[Tensor]) -> list[Tensor]:
    """The weights as views of one buffer, as cuDNN wants them, with room for both biases even where there are none."""
    parts = [w.flatten() for w in weights]
    if len(weights) == 2:
        parts.append(weights[1].new_zeros(2 * len(weights[1])))
    pieces = torch.cat(parts).split([len(part) for part in parts])
    return [piece.view(w.shape) for piece, w in zip(pieces, weights, strict=False)]


def _function(options: Options):
    names = {"lstm": "lstm", "gru_reset_after": "gru", "rnn": f"rnn_{options.nonlinearity}"}
    return getattr(_VF, names[options.cell])


def _hx(state: State):
    return state if len(state) > 1 else state[0]


def _reversal(time: int, batch: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """``(time, batch)``: the place of each step of each reversed sequence; padding stays where it is."""
    steps = torch.arange(time, device=device).unsqueeze(1)
    if lengths is None:
        return (time - 1 - steps).expand(time, batch)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(0, index.unsqueeze(2).expand(-1, -1, x.size(2)))
