"""Backpropagation through an attentional recurrence by hand, in torch operations.

The cells' steps are those of :mod:`rnndrop_plugin.ops.recurrence.bptt`. The products with the input of all steps are
one product, and so are the gradients of each weight and of the keys and the values.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnndrop_plugin.ops.gradients import need_reference, reference_gradients
from rnndrop_plugin.ops.input_feeding import reference
from rnndrop_plugin.ops.input_feeding.reference import Attention
from rnndrop_plugin.ops.masks import Mask, Masks
from rnndrop_plugin.ops.recurrence.autograd import Options
from rnndrop_plugin.ops.recurrence.bptt import CELLS, Cell, Steps, recurrent_gradients
from rnndrop_plugin.ops.recurrence.reference import State, Weights


class Settings(NamedTuple):
    """The arguments of ``input_feeding`` that have no gradient, named as in the reference."""

    cell: str
    padding: Tensor | None
    masks: Sequence[Masks]
    dropout_between: Sequence[Mask]
    dropout_out: Mask
    nonlinearity: str

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors among them."""
        single = (*self.dropout_between, self.dropout_out)
        keeps = [mask.keep for masks in self.masks for mask in masks] + [mask.keep for mask in single]
        return self.padding, *keeps

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "Settings":
        """The same settings with other tensors, in the order of :meth:`tensors`."""
        padding, *keeps = tensors
        rest = iter(keeps)
        masks = [Masks(*(Mask(next(rest), mask.scale) for mask in masks)) for masks in self.masks]
        between = [Mask(next(rest), mask.scale) for mask in self.dropout_between]
        out = Mask(next(rest), self.dropout_out.scale)
        return self._replace(padding=padding, masks=masks, dropout_between=between, dropout_out=out)

    def cells(self, time: int, weights: Sequence[Weights]) -> tuple[Steps, list[Cell]]:
        """The order of the steps, and a cell for each layer."""
        options = [Options(self.cell, masks, self.nonlinearity, None, False) for masks in self.masks]
        steps = Steps(options[0], time)
        return steps, [CELLS[self.cell](o, steps, w) for o, w in zip(options, weights, strict=True)]


def forward(
    settings: Settings,
    input: Tensor,
    feed: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    attention: Attention,
) -> tuple[Tensor, Tensor, list[State], list[Cell], Tensor]:
    """The results of the reference, then the cells and the attention's output before its dropout."""
    time, batch, features = input.shape
    _, cells = settings.cells(time, weights)
    products = [F.linear(input, weights[0].ih[:, :features], cells[0].input_bias(weights[0]))]
    for cell, w in zip(cells[1:], weights[1:], strict=True):
        bias = cell.input_bias(w)
        product = input.new_zeros(time, batch, w.ih.size(0))
        products.append(product if bias is None else product + bias)
    for cell, product, state in zip(cells, products, states, strict=True):
        cell.start(product, state)

    by_feed = weights[0].ih[:, features:].t()
    upper = [w.ih.t() for w in weights[1:]]
    by_state = attention.weight.t()
    keys, values = attention.keys.transpose(1, 2), attention.values
    offset = input.new_zeros(batch, 1, keys.size(2))
    if settings.padding is not None:
        offset.masked_fill_(settings.padding.unsqueeze(1), -torch.inf)
    outputs = feed.new_empty(time, *feed.shape)
    fed = outputs if settings.dropout_out.is_identity else torch.empty_like(outputs)
    scores = input.new_empty(time, *offset.shape)
    for t in range(time):
        products[0][t].addmm_(feed, by_feed)
        for k, cell in enumerate(cells):
            if k > 0:
                x = settings.dropout_between[k - 1].at(t)(cells[k - 1].hs[t + 1])
                products[k][t].addmm_(x, upper[k - 1])
            cell.step(t)
        h = cells[-1].hs[t + 1]
        torch.softmax(torch.baddbmm(offset, h.unsqueeze(1), keys), dim=2, out=scores[t])
        torch.mm(h, by_state, out=outputs[t])
        outputs[t].unsqueeze(1).baddbmm_(scores[t], values).tanh_()
        if fed is not outputs:
            fed[t] = settings.dropout_out.at(t)(outputs[t])
        feed = fed[t]
    final = [tuple(s[time].to(input.dtype, copy=True) for s in cell.states()) for cell in cells]
    return fed, scores.squeeze(2), final, cells, outputs


def per_layer(tensors: Sequence[Tensor | None], layers: int) -> list[tuple[Tensor | None, ...]]:
    """The tensors of each layer, from those of all layers in a row; each layer has as many."""
    size = len(tensors) // layers
    return [tuple(tensors[k * size : (k + 1) * size]) for k in range(layers)]


class InputFeeding(torch.autograd.Function):
    """:func:`forward` with its gradient.

    ``apply`` takes the settings and the other arguments of :func:`forward` as a flat sequence of tensors: input, feed,
    keys, values, the attention's weight, all states, all weights. It returns the output, the attention's weights (which
    have no gradient) and all final states.
    """

    @staticmethod
    def forward(ctx, settings: Settings, *tensors: Tensor | None):
        """See the class."""
        input, feed, states, weights, attention = _unflatten(settings, tensors)
        output, scores, final, cells, outputs = forward(settings, input, feed, states, weights, attention)
        saved = [cell.saved() for cell in cells]
        ours = settings.tensors()
        ctx.settings, ctx.sizes = settings.with_tensors((None,) * len(ours)), [len(s) for s in saved]
        ctx.save_for_backward(*ours, *tensors, output, outputs, scores, *(x for s in saved for x in s))
        ctx.mark_non_differentiable(scores)
        return output, scores, *(s for state in final for s in state)

    @staticmethod
    def backward(ctx, grad_output: Tensor, _, *grad_final: Tensor):
        """The gradients of what ``apply`` takes."""
        tensors = ctx.saved_tensors  # read once, since activation checkpointing gives them only once
        ours, layers = len(ctx.settings.tensors()), len(ctx.sizes)
        settings, tensors = ctx.settings.with_tensors(tensors[:ours]), tensors[ours:]
        given = tensors[: -3 - sum(ctx.sizes)]
        incoming = grad_output, *grad_final
        if need_reference(incoming):
            function = functools.partial(_by_reference, settings)
            return None, *reference_gradients(function, given, ctx.needs_input_grad[1:], incoming)
        output, outputs, scores, *saved = tensors[-3 - sum(ctx.sizes) :]
        input, feed, _, weights, attention = _unflatten(settings, given)
        (time, _, features), h_size = input.shape, feed.size(1)
        steps, cells = settings.cells(time, weights)
        dh: list[Tensor] = []
        for cell, size, (h, *others) in zip(cells, ctx.sizes, per_layer(grad_final, layers), strict=True):
            dh.append(h)
            cell.start_backward(tuple(saved[:size]), tuple(others))
            saved = saved[size:]

        by_feed = weights[0].ih[:, features:]
        d_logits = torch.empty_like(scores)
        d_sums = torch.empty_like(outputs)  # the gradient of tanh's argument
        torch.mul(outputs, outputs, out=d_sums).neg_().add_(1)
        if not settings.dropout_out.is_identity:
            d_sums = settings.dropout_out(d_sums)
        keys, values = attention.keys, attention.values.transpose(1, 2)
        d_feed = torch.zeros_like(feed)
        for t in reversed(range(time)):
            d_sum = d_sums[t].mul_(grad_output[t] + d_feed)
            d_scores = torch.bmm(d_sum.unsqueeze(1), values).squeeze(1).mul_(scores[t])
            torch.addcmul(d_scores, scores[t], d_scores.sum(1, keepdim=True), value=-1, out=d_logits[t])
            d_below = torch.mm(d_sum, attention.weight)
            d_below.unsqueeze(1).baddbmm_(d_logits[t].unsqueeze(1), keys)
            for k in reversed(range(layers)):
                dh[k] = cells[k].step_backward(t, dh[k] + d_below)
                if k > 0:
                    d_below = settings.dropout_between[k - 1].at(t)(cells[k].d_ih[t] @ weights[k].ih)
            d_feed = cells[0].d_ih[t] @ by_feed

        h = steps.written(cells[-1].hs)
        d_keys = torch.bmm(d_logits.permute(1, 2, 0), h.transpose(0, 1))
        d_values = torch.bmm(scores.permute(1, 2, 0), d_sums.transpose(0, 1))
        d_weight = d_sums.flatten(0, 1).t() @ h.flatten(0, 1)
        grad_states, grad_weights = [], []
        for k, cell in enumerate(cells):
            flat = cell.d_ih.flatten(0, 1)
            if k == 0:
                fed = torch.cat([feed.unsqueeze(0), output[:-1]])
                d_input = (flat @ weights[0].ih[:, :features]).view_as(input)
                d_ih = torch.cat([flat.t() @ input.flatten(0, 1), flat.t() @ fed.view(-1, h_size)], dim=1)
            else:
                below = settings.dropout_between[k - 1](steps.written(cells[k - 1].hs))
                d_ih = flat.t() @ below.flatten(0, 1)
            d_bias_ih, d_hh, d_bias_hh = recurrent_gradients(cell)
            grad_weights += [d_ih, d_hh, d_bias_ih, d_bias_hh]
            grad_states += cell.grad_state(dh[k])
        return None, d_input, d_feed, d_keys, d_values, d_weight, *grad_states, *grad_weights


def _by_reference(settings: Settings, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """What ``apply`` returns, without the attention's weights."""
    output, _, states = reference.input_feeding(
        settings.cell,
        *_unflatten(settings, tensors),
        settings.masks,
        settings.dropout_between,
        settings.dropout_out,
        nonlinearity=settings.nonlinearity,
    )
    return output, *(s for state in states for s in state)


def _unflatten(settings: Settings, tensors: Sequence[Tensor | None]):
    """The arguments of :func:`forward` from the flat sequence that ``apply`` takes."""
    input, feed, keys, values, weight, *others = tensors
    layers = len(settings.masks)
    first = len(others) - layers * len(Weights._fields)
    states, weights = per_layer(others[:first], layers), [Weights(*w) for w in per_layer(others[first:], layers)]
    return input, feed, states, weights, Attention(keys, values, settings.padding, weight)
