"""What the backends with their own backward pass share: one autograd function around them."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnndrop_plugin.ops.context import captured, without_autocast
from rnndrop_plugin.ops.gradients import gradient_is_wanted, need_reference, reference_gradients
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence import reference
from rnndrop_plugin.ops.recurrence.reference import State, Weights

#: Whether the graph stays after the current backward pass (``retain_graph``).
keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Options(NamedTuple):
    """The arguments of a recurrence that have no gradient, named as in the reference."""

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


class Problem(NamedTuple):
    """All arguments of a recurrence, named as in the reference."""

    options: Options
    input: Tensor
    state: State
    weights: Weights

    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The tensors that can have a gradient: the input, the four weights, the state."""
        return self.input, *self.weights, *self.state

    @classmethod
    def of(cls, options: Options, input: Tensor, *tensors: Tensor | None) -> "Problem":
        """The problem with these options and the tensors that :meth:`differentiable` gives."""
        return cls(options, input, tensors[4:], Weights(*tensors[:4]))


Saved = tuple[Tensor, ...]  # what a backward pass needs from the steps, the output first
Gradients = tuple[Tensor, ...]  # of the output and the final state


class Kernel(Protocol):
    """A recurrence and its gradient; ``bptt``, ``compiled`` and ``triton`` are such kernels."""

    def forward(self, problem: Problem, save: bool) -> tuple[Tensor, State, Saved]:
        """The output and final state, and what ``backward`` needs from the steps, the output first.

        Nothing is saved unless ``save`` is set.
        """

    def saved_like(self, options: Options, input: Tensor, hidden: int) -> list[Tensor]:
        """Uninitialised tensors with the shapes and dtypes of what ``forward`` saves after the output.

        Under torch.compile the sizes of ``input`` may be symbols instead of numbers.
        """

    def backward(
        self, problem: Problem, saved: Saved, gradients: Gradients, input_needs_grad: bool, last: bool = False
    ) -> tuple[Tensor | None, State, Weights]:
        """The gradients of the input (None unless needed), of the initial state and of the weights.

        If this is the ``last`` backward pass that reads ``saved``, it may overwrite all of it but the output.
        """


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel: Kernel, options: Options, *tensors: Tensor | None):
        output, final_state, saved = kernel.forward(Problem.of(options, *tensors), save=True)
        ctx.kernel, ctx.options = kernel, options.with_tensors((None,) * len(options.tensors()))
        ctx.set_materialize_grads(False)  # zeros for a missing gradient would cost a launch each
        # Masks and lengths, too: autograd then notices in-place changes to them, and frees them with the graph.
        ctx.counts = len(options.tensors()), len(tensors)
        ctx.save_for_backward(*options.tensors(), *tensors, *saved)
        return output, *final_state

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):
        rest = iter(ctx.saved_tensors)
        of_options, tensors = (tuple(islice(rest, count)) for count in ctx.counts)
        saved = tuple(rest)
        problem = Problem.of(ctx.options.with_tensors(of_options), *tensors)
        gradients = with_zeros(gradients, saved[0], problem.state)
        if need_reference(gradients):

            def function(*tensors: Tensor | None) -> tuple[Tensor, ...]:
                output, final_state = by_reference(Problem.of(problem.options, *tensors))
                return output, *final_state

            return None, None, *reference_gradients(function, tensors, ctx.needs_input_grad[2:], gradients)
        device = problem.input.device
        with without_autocast(device.type):
            # A captured backward pass may be replayed several times after one forward pass: it must not overwrite.
            last = not captured(device) and not keeps_graph()
            needed = ctx.needs_input_grad[2]
            grad_input, grad_state, grad_weights = ctx.kernel.backward(problem, saved, gradients, needed, last)
        return None, None, grad_input, *grad_weights, *grad_state


def with_zeros(gradients: Sequence[Tensor | None], output: Tensor, state: State) -> Gradients:
    """The gradients of the output and of the final state, zeros for those that are None."""
    first, *rest = gradients
    zeros = state[0].new_zeros(len(state), *state[0].shape) if any(gradient is None for gradient in rest) else None
    return (
        torch.zeros_like(output) if first is None else first,
        *(zeros[i] if gradient is None else gradient for i, gradient in enumerate(rest)),
    )


def by_reference(problem: Problem) -> tuple[Tensor, State]:
    """Compute the recurrence with the reference."""
    keywords = problem.options._asdict()
    return reference.recurrence(keywords.pop("cell"), *problem[1:], **keywords)


def run(kernel: Kernel, problem: Problem) -> tuple[Tensor, State]:
    """Run ``kernel``, recording its gradient (which can itself be differentiated) where one is needed."""
    tensors = problem.differentiable()
    if gradient_is_wanted(tensors):
        output, *final_state = _Recurrence.apply(kernel, problem.options, *tensors)
        return output, tuple(final_state)
    output, final_state, _ = kernel.forward(problem, save=False)
    return output, final_state
