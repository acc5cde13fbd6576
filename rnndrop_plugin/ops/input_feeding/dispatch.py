"""The only place that chooses which implementation of input feeding runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndrop_plugin.ops.checks import check_choice
from rnndrop_plugin.ops.context import computed_dtype, in_autocast, values_are_known, without_autocast
from rnndrop_plugin.ops.input_feeding import bptt, reference
from rnndrop_plugin.ops.input_feeding.checks import check_input_feeding
from rnndrop_plugin.ops.input_feeding.reference import Attention
from rnndrop_plugin.ops.masks import IDENTITY, Mask, Masks
from rnndrop_plugin.ops.recurrence.dispatch import BACKENDS
from rnndrop_plugin.ops.recurrence.reference import State, Weights


def input_feeding(
    cell: str,
    input: Tensor,
    feed: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    attention: Attention,
    masks: Sequence[Masks],
    dropout_between: Sequence[Mask] = (),
    dropout_out: Mask = IDENTITY,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
) -> tuple[Tensor, Tensor, list[State]]:
    """Run recurrent layers under an attention whose output the first layer reads at the next step (Luong et al. 2015).

    ``reference.py`` has the equations. The attention's weights have no gradient, except with the backend
    ``"reference"``. Under autocast the result has autocast's dtype (float64 stays).

    Args:
        cell: as in :func:`rnndrop_plugin.ops.recurrence`.
        input: ``(time, batch, input)``.
        feed: the output before the first step, ``(batch, hidden)``.
        states: the states before the first step, one for each layer.
        weights: the parameters, one for each layer; the first layer's ``ih`` is ``(gates * hidden, input + hidden)``
            and reads the step's input and the output of the step before.
        masks: the dropout masks, one for each layer.
        dropout_between: the masks of forward dropout on the output of each layer but the last.
        dropout_out: the mask of forward dropout on the attention's output, which is fed back with this dropout.
        nonlinearity: ``"tanh"`` or ``"relu"``, of the cell.
        backend: ``"reference"`` for the equations, step by step; all others mean the faster form.

    Returns:
        The output ``(time, batch, hidden)``, the attention's weights ``(time, batch, source)`` and the final states.

    Raises:
        ValueError: an argument whose shape, dtype, device or value does not fit.
        TypeError: an argument of the wrong type (not a tensor, Weights or a mask).
    """
    check_choice("backend", backend, BACKENDS)
    masks, dropout_between, dropout_out = check_input_feeding(
        cell, input, feed, states, weights, attention, masks, dropout_between, dropout_out, nonlinearity
    )
    device = input.device.type
    if in_autocast(device):
        dtype = computed_dtype(input)

        def cast(tensors):
            return type(tensors)(*(x if x is None or not x.is_floating_point() else x.to(dtype) for x in tensors))

        input, feed, attention = input.to(dtype), feed.to(dtype), cast(attention)
        states, weights = [tuple(s.to(dtype) for s in state) for state in states], [cast(w) for w in weights]
    with without_autocast(device):
        if backend == "reference" or not values_are_known():  # a recorder has to see torch operations
            return reference.input_feeding(
                cell,
                input,
                feed,
                states,
                weights,
                attention,
                masks,
                dropout_between,
                dropout_out,
                nonlinearity=nonlinearity,
            )
        settings = bptt.Settings(cell, attention.padding, masks, dropout_between, dropout_out, nonlinearity)
        if not torch.is_grad_enabled():
            return bptt.forward(settings, input, feed, states, weights, attention)[:3]
        output, scores, *final = bptt.InputFeeding.apply(
            settings,
            input,
            feed,
            attention.keys,
            attention.values,
            attention.weight,
            *(s for state in states for s in state),
            *(w for layer in weights for w in layer),
        )
    return output, scores, bptt.per_layer(final, len(states))
