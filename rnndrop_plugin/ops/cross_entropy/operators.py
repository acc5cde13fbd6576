"""The output layer and its loss as operators of torch (torch.library), for torch.compile and torch.export."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rnndrop_plugin.ops.cross_entropy.checks import check_classes

LIBRARY = torch.library.Library("rnndrop", "FRAGMENT")
LIBRARY.define(
    "linear_cross_entropy(str version, Tensor features, Tensor weight, Tensor? bias, Tensor target, int ignore_index, "
    "float label_smoothing) -> (Tensor, Tensor)"
)
Kernel = Callable[..., tuple[Tensor, Tensor, list[Tensor | None]]]


def register(whole: Callable[..., tuple[Tensor, Tensor]], kernel: Kernel) -> Kernel:
    """Make operators of the whole function and of its kernel. Return a function that calls the kernel's operator."""
    LIBRARY.impl("linear_cross_entropy", lambda version, *inputs: whole(*inputs), "CompositeImplicitAutograd")

    @torch.library.custom_op("rnndrop::linear_cross_entropy_forward", mutates_args=())
    def forward(
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float,
        wanted: Sequence[bool],
    ) -> list[Tensor]:
        check_classes(target, weight.size(0), ignore_index)  # torch.compile could not see the values
        loss, nll, gradients = kernel(features, weight, bias, target, ignore_index, label_smoothing, wanted)
        return [loss, nll, *(g.contiguous() for g in gradients if g is not None)]

    @forward.register_fake
    def _(features, weight, bias, target, ignore_index, label_smoothing, wanted):
        inputs = zip((features, weight, bias), wanted, strict=True)
        loss = features.new_empty(())
        return [loss, torch.empty_like(loss), *(x.new_empty(x.shape) for x, want in inputs if want)]

    def call(features, weight, bias, target, ignore_index, label_smoothing, wanted):
        loss, nll, *gradients = forward(features, weight, bias, target, ignore_index, label_smoothing, list(wanted))
        remaining = iter(gradients)
        return loss, nll, [next(remaining) if want else None for want in wanted]

    return call
