"""The recurrence as operators of torch (torch.library), for torch.compile, torch.export and fake tensors.

A compiled function calls ``rnndrop::recurrence``. It consists of ``rnndrop::recurrence_forward`` and
``rnndrop::recurrence_backward``, which run a kernel. A plain call in eager mode calls the kernels directly, because
calling an operator that is written in Python costs torch as much as several steps of a small recurrence.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_lengths
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence import bptt, compiled, triton
from rnndrop_plugin.ops.recurrence.autograd import Gradients, Kernel, Options, Problem, Saved
from rnndrop_plugin.ops.recurrence.reference import State, Weights
from rnndrop_plugin.ops.version import VERSION

LIBRARY = torch.library.Library("rnndrop", "FRAGMENT")
LIBRARY.define(
    "recurrence(str version, str cell, str nonlinearity, bool reverse, Tensor? lengths, Tensor?[] keeps, "
    "float[] scales, Tensor input, Tensor[] state, Tensor?[] weights, str backend) -> Tensor[]"
)
#: The kernels with a backward pass of their own, by the backend's name.
KERNELS: dict[str, Kernel] = {"torch": bptt, "cpu": compiled, "triton": triton}


class Operator(NamedTuple):
    """The kernel of a backend, called through torch's dispatcher."""

    backend: str

    def forward(self, problem: Problem, save: bool) -> tuple[Tensor, State, Saved]:
        """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
        options, input, state, weights = problem
        found = torch.ops.rnndrop.recurrence_forward(
            self.backend, VERSION, *_flat(options), input, list(state), list(weights), save
        )
        output, final_state, saved = found[0], found[1 : 1 + len(state)], found[1 + len(state) :]
        return output, tuple(final_state), (output, *saved) if save else ()

    def backward(
        self, problem: Problem, saved: Saved, gradients: Gradients, input_needs_grad: bool, last: bool = False
    ) -> tuple[Tensor | None, State, Weights]:
        """See :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel`."""
        options, input, state, weights = problem
        grad_output, *grad_state = gradients
        found = torch.ops.rnndrop.recurrence_backward(
            self.backend,
            *_flat(options),
            input,
            list(state),
            list(weights),
            list(saved),
            grad_output,
            list(grad_state),
            input_needs_grad,
        )
        gradients = iter(found)
        grad_input = next(gradients) if input_needs_grad else None
        grad_initial = tuple(next(gradients) for _ in state)
        return grad_input, grad_initial, Weights(*(w if w is None else next(gradients) for w in weights))


@torch.library.custom_op("rnndrop::recurrence_forward", mutates_args=())
def _forward(
    backend: str,
    version: str,
    cell: str,
    nonlinearity: str,
    reverse: bool,
    lengths: Tensor | None,
    keeps: Sequence[Tensor | None],
    scales: Sequence[float],
    input: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    save: bool,
) -> list[Tensor]:
    if lengths is not None:  # torch.compile did not know the values
        check_lengths(lengths, input.size(1), input.size(0), 0, input.device)
    options = _options(cell, nonlinearity, reverse, lengths, keeps, scales)
    output, final_state, saved = KERNELS[backend].forward(
        Problem(options, input, tuple(state), Weights(*weights)), save
    )
    shared = any(x.untyped_storage().data_ptr() == output.untyped_storage().data_ptr() for x in saved[1:])
    if shared or not output.is_contiguous():  # an operator must not return views of one another
        output = output.clone(memory_format=torch.contiguous_format)
    return [output, *final_state, *saved[1:]]


@_forward.register_fake
def _(backend, version, cell, nonlinearity, reverse, lengths, keeps, scales, input, state, weights, save):
    hidden = weights[1].size(1)
    options = _options(cell, nonlinearity, reverse, lengths, keeps, scales)
    return [
        input.new_empty(*input.shape[:2], hidden),
        *(input.new_empty(s.shape) for s in state),
        *(KERNELS[backend].saved_like(options, input, hidden) if save else ()),
    ]


@torch.library.custom_op("rnndrop::recurrence_backward", mutates_args=())
def _backward(
    backend: str,
    cell: str,
    nonlinearity: str,
    reverse: bool,
    lengths: Tensor | None,
    keeps: Sequence[Tensor | None],
    scales: Sequence[float],
    input: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grad_output: Tensor,
    grad_state: Sequence[Tensor],
    input_needs_grad: bool,
) -> list[Tensor]:
    options = _options(cell, nonlinearity, reverse, lengths, keeps, scales)
    grad_input, grad_initial, grad_weights = KERNELS[backend].backward(
        Problem(options, input, tuple(state), Weights(*weights)),
        tuple(saved),
        (grad_output, *grad_state),
        input_needs_grad,
    )
    return [x.contiguous() for x in (grad_input, *grad_initial, *grad_weights) if x is not None]


@_backward.register_fake
def _(
    backend,
    cell,
    nonlinearity,
    reverse,
    lengths,
    keeps,
    scales,
    input,
    state,
    weights,
    saved,
    grad_output,
    grad_state,
    input_needs_grad,
):
    inputs = (input if input_needs_grad else None, *state, *weights)
    return [x.new_empty(x.shape) for x in inputs if x is not None]


def _flat(options: Options) -> tuple:
    """The options as an operator takes them; :func:`_options` is the reverse."""
    masks = options.masks
    keeps, scales = [mask.keep for mask in masks], [float(mask.scale) for mask in masks]
    return options.cell, options.nonlinearity, options.reverse, options.lengths, keeps, scales


def _options(cell, nonlinearity, reverse, lengths, keeps, scales) -> Options:
    masks = Masks(*(Mask(keep, scale) for keep, scale in zip(keeps, scales, strict=True)))
    return Options(cell, masks, nonlinearity, lengths, reverse)


def register(recurrence: Callable[..., tuple[Tensor, State]]) -> None:
    """Register the function ``recurrence`` as ``rnndrop::recurrence``, for :func:`call`."""

    def whole(version, cell, nonlinearity, reverse, lengths, keeps, scales, input, state, weights, backend):
        options = _options(cell, nonlinearity, reverse, lengths, keeps, scales)
        output, final_state = recurrence(Problem(options, input, tuple(state), Weights(*weights)), backend)
        return [output, *final_state]

    LIBRARY.impl("recurrence", whole, "CompositeImplicitAutograd")


def call(problem: Problem, backend: str) -> tuple[Tensor, State]:
    """Call ``rnndrop::recurrence``."""
    options, input, state, weights = problem
    found = torch.ops.rnndrop.recurrence(VERSION, *_flat(options), input, list(state), list(weights), backend)
    return found[0], tuple(found[1:])
