"""What the backends with a backward pass of their own share: one autograd function around them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnndrop_plugin.ops.context import captured, without_autocast
from rnndrop_plugin.ops.gradients import need_reference, reference_gradients
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence import reference
from rnndrop_plugin.ops.recurrence.reference import State, Weights

#: Whether the graph stays after the backward pass that runs (``retain_graph``).
keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Options(NamedTuple):
    """The arguments of a recurrence that have no gradient, named as those of the reference."""

    cell: str
    masks: Masks
    nonlinearity: str
    lengths: Tensor | None
    reverse: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors among them: the masks and the lengths."""
        return (*(mask.keep for mask in self.masks), self.lengths)

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> "Options":
        """The same options with other tensors, in the order of :meth:`tensors`."""
        *keeps, lengths = tensors
        masks = Masks(*(Mask(keep, mask.scale) for keep, mask in zip(keeps, self.masks, strict=True)))
        return self._replace(masks=masks, lengths=lengths)


class Kernel(Protocol):
    """A recurrence and its gradient; ``bptt``, ``compiled`` and ``triton`` are such kernels."""

    def forward(
        self, options: Options, input: Tensor, state: State, weights: Weights, save: bool
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """The output and final state, and what ``backward`` needs of the steps, the output first.

        Nothing is saved unless ``save``.
        """

    def saved_like(self, options: Options, input: Tensor, hidden: int) -> list[Tensor]:
        """Uninitialised tensors of the shapes and dtypes of what ``forward`` saves after the output.

        Under torch.compile the sizes of ``input`` may be symbols instead of numbers.
        """

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
        last: bool = False,
    ) -> tuple[Tensor | None, State, Weights]:
        """The gradients of the input (None unless needed), of the initial state and of the weights.

        Where it is the ``last`` backward pass that reads ``saved``, all but the output may be overwritten.
        """


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel: Kernel, options: Options, input: Tensor, *tensors: Tensor | None):
        weights, state = Weights(*tensors[:4]), tensors[4:]
        output, final_state, saved = kernel.forward(options, input, state, weights, save=True)
        ctx.kernel, ctx.options, ctx.states = kernel, options.with_tensors((None,) * len(options.tensors())), len(state)
        ctx.set_materialize_grads(False)  # zeros for each gradient that is missing are a launch each
        # Masks and lengths are among them, so that autograd sees when they are changed in place, and lets go of them.
        ctx.save_for_backward(*options.tensors(), input, *tensors, *saved)
        return output, *final_state

    @staticmethod
    def backward(ctx, grad_output: Tensor | None, *grad_state: Tensor | None):
        saved = ctx.saved_tensors
        options, inputs, saved = ctx.options.with_tensors(saved[:4]), saved[4 : 9 + ctx.states], saved[9 + ctx.states :]
        grad_output, *grad_state = with_zeros((grad_output, *grad_state), saved[0], inputs[5:])
        if need_reference(grad_outputs := (grad_output, *grad_state)):

            def function(input: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
                output, final_state = by_reference(options, input, tensors[4:], Weights(*tensors[:4]))
                return output, *final_state

            return None, None, *reference_gradients(function, inputs, ctx.needs_input_grad[2:], grad_outputs)
        input, weights, state = inputs[0], Weights(*inputs[1:5]), inputs[5:]
        with without_autocast(input.device.type):
            # A CUDA graph can be replayed for the same forward pass again.
            last = not captured(input.device) and not keeps_graph()
            grad_input, grad_state, grad_weights = ctx.kernel.backward(
                options, input, state, weights, saved, grad_output, tuple(grad_state), ctx.needs_input_grad[2], last
            )
        return None, None, grad_input, *grad_weights, *grad_state


def with_zeros(gradients: Sequence[Tensor | None], output: Tensor, state: State) -> list[Tensor]:
    """The gradients of the output and of the final state, zeros for those that are None."""
    first, *rest = gradients
    zeros = state[0].new_zeros(len(state), *state[0].shape) if any(gradient is None for gradient in rest) else None
    return [
        torch.zeros_like(output) if first is None else first,
        *(zeros[i] if gradient is None else gradient for i, gradient in enumerate(rest)),
    ]


def by_reference(options: Options, input: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Run the reference with these options."""
    keywords = options._asdict()
    return reference.recurrence(keywords.pop("cell"), input, state, weights, **keywords)


def run(kernel: Kernel, options: Options, input: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Run ``kernel``, recording its gradient (which can itself be differentiated) where one is needed."""
    if gradient_is_wanted(input, state, weights):
        output, *final_state = _Recurrence.apply(kernel, options, input, *weights, *state)
        return output, tuple(final_state)
    output, final_state, _ = kernel.forward(options, input, state, weights, save=False)
    return output, final_state


def gradient_is_wanted(input: Tensor, state: State, weights: Weights) -> bool:
    """Whether autograd is to record a gradient of any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, *state, *weights))
