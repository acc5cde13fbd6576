"""Whether a gradient is wanted, and gradients by a reference where compiled code cannot give them."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rnndrop_plugin.ops.context import transformation, without_autocast


def gradient_is_wanted(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records a gradient of any of these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def need_reference(grad_outputs: Sequence[Tensor]) -> bool:
    """Whether a backward pass is itself differentiated (``create_graph``) or vectorised (``is_grads_batched``)."""
    batched = any(torch._C._functorch.is_legacy_batchedtensor(g) for g in grad_outputs)
    return torch.is_grad_enabled() or batched or transformation() is not None


def reference_gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad_outputs: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients that are wanted of ``function(*inputs)``, None for the others."""
    create_graph = torch.is_grad_enabled()
    device = next(x.device.type for x in inputs if x is not None)
    with torch.enable_grad(), without_autocast(device):
        # Views, so that a tensor that was given twice gets each gradient once.
        views = [x if x is None else x.view_as(x) for x in inputs]
        leaves = [x for x, want in zip(views, wanted, strict=True) if want]
        found = torch.autograd.grad(
            function(*views), leaves, grad_outputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    gradients = iter(found)
    return [next(gradients) if want else None for want in wanted]
