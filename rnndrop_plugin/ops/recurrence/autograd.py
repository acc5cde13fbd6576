"""What the backends with a backward pass of their own share: one autograd function around them."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnndrop_plugin.ops.masks import Masks
from rnndrop_plugin.ops.recurrence import reference
from rnndrop_plugin.ops.recurrence.reference import State, Weights


class Options(NamedTuple):
    """The arguments of a recurrence that have no gradient, named as those of the reference."""

    cell: str
    masks: Masks
    nonlinearity: str
    lengths: Tensor | None
    reverse: bool


class Kernel(Protocol):
    """A recurrence and its gradient; the modules ``bptt`` and ``compiled`` are such kernels."""

    def forward(
        self, options: Options, input: Tensor, state: State, weights: Weights, save: bool
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """The output and final state, and what ``backward`` needs of the steps (nothing unless ``save``)."""

    def backward(
        self,
        options: Options,
        input: Tensor,
        state: State,
        weights: Weights,
        saved: tuple[Tensor, ...],
        grad_output: Tensor,
        grad_state: State,
        input_needs_grad: bool,
    ) -> tuple[Tensor | None, State, Weights]:
        """The gradients of the input (None unless needed), of the initial state and of the weights."""


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel: Kernel, options: Options, input: Tensor, *tensors: Tensor | None):
        weights, state = Weights(*tensors[:4]), tensors[4:]
        output, final_state, saved = kernel.forward(options, input, state, weights, save=True)
        ctx.kernel, ctx.options = kernel, options
        ctx.save_for_backward(input, *tensors, *saved)
        return output, *final_state

    @staticmethod
    def backward(ctx, grad_output: Tensor, *grad_state: Tensor):
        input, *tensors = ctx.saved_tensors
        weights, tensors = Weights(*tensors[:4]), tensors[4:]
        state, saved = tuple(tensors[: len(grad_state)]), tuple(tensors[len(grad_state) :])
        if torch.is_grad_enabled():  # create_graph: only the reference can be differentiated again
            inputs = (input, *weights, *state)
            return None, None, *_reference_gradients(ctx, inputs, (grad_output, *grad_state))
        with torch.autocast(input.device.type, enabled=False):
            grad_input, grad_state, grad_weights = ctx.kernel.backward(
                ctx.options, input, state, weights, saved, grad_output, grad_state, ctx.needs_input_grad[2]
            )
        return None, None, grad_input, *grad_weights, *grad_state


def _reference_gradients(ctx, inputs, grad_outputs) -> list[Tensor | None]:
    # Views, so that a tensor that was given twice gets each gradient once.
    inputs = [x if x is None else x.view_as(x) for x in inputs]
    weights, state = Weights(*inputs[1:5]), tuple(inputs[5:])
    options = ctx.options._asdict()
    output, final_state = reference.recurrence(options.pop("cell"), inputs[0], state, weights, **options)
    wanted = [k for k in range(len(inputs)) if ctx.needs_input_grad[2 + k]]
    found = torch.autograd.grad(
        (output, *final_state),
        [inputs[k] for k in wanted],
        grad_outputs,
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    gradients: list[Tensor | None] = [None] * len(inputs)
    for k, gradient in zip(wanted, found, strict=True):
        gradients[k] = gradient
    return gradients


def run(kernel: Kernel, options: Options, input: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Run ``kernel``, recording its gradient (which can itself be differentiated) where one is needed."""
    tensors = (*weights, *state)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, *tensors)):
        output, *final_state = _Recurrence.apply(kernel, options, input, *tensors)
        return output, tuple(final_state)
    output, final_state, _ = kernel.forward(options, input, state, weights, save=False)
    return output, final_state
