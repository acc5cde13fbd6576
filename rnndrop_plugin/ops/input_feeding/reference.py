"""Attention and input feeding (Luong et al. 2015) as equations: the specification of the faster implementation.

It takes any device and dtype, is differentiable any number of times, and is slow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.masks import IDENTITY, Mask, Masks
from rnndrop_plugin.ops.recurrence.reference import NONLINEARITIES, STEPS, State, Weights


class Attention(NamedTuple):
    """What a decoder attends to, and how.

    The keys are the source's outputs times W_a of Luong's "general" score, and the values are the source's outputs
    times the context's part of W_c. Both are the same at all steps.

    Attributes:
        keys, values: ``(batch, source, hidden)``.
        padding: bool, ``(batch, source)``, True where a source has no word; None if all sources have the same length.
        weight: ``(hidden, hidden)``, the state's part of W_c.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor | None
    weight: Tensor


def attend(h: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
    """The attentional output tanh(W_c [context; h]) (Eq. 5, 7 and 8).

    Args:
        h: ``(batch, steps, hidden)``.

    Returns:
        The output ``(batch, steps, hidden)`` and the weights of the source's words ``(batch, steps, source)``.
    """
    scores = torch.bmm(h, attention.keys.transpose(1, 2))
    if attention.padding is not None:
        scores = scores.masked_fill(attention.padding.unsqueeze(1), -torch.inf)
    weights = torch.softmax(scores, dim=2)
    return torch.tanh(torch.bmm(weights, attention.values) + F.linear(h, attention.weight)), weights


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
) -> tuple[Tensor, Tensor, list[State]]:
    """See :func:`rnndrop_plugin.ops.input_feeding`; the arguments are not checked."""
    step, f = STEPS[cell], NONLINEARITIES[nonlinearity]
    states = list(states)
    outputs, scores = [], []
    for t in range(input.size(0)):
        x = torch.cat([input[t], feed], dim=1)
        for k, w in enumerate(weights):
            states[k] = step(x, states[k], w, masks[k].at(t), f)
            x = states[k][0]
            if k < len(weights) - 1:
                x = dropout_between[k].at(t)(x)
        output, score = attend(x.unsqueeze(1), attention)
        feed = dropout_out.at(t)(output.squeeze(1))
        outputs.append(feed)
        scores.append(score.squeeze(1))
    return torch.stack(outputs), torch.stack(scores), states
