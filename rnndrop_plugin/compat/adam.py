"""A faster step of fairseq's Adam, whose nine operations per parameter are a third of all kernels of an update."""

import functools
import math

import torch
from fairseq.optim.adam import Adam

upstream_step = Adam.step


@functools.wraps(upstream_step)
def step(adam: Adam, closure=None):
    """fairseq/optim/adam.py, Adam.step, updates one parameter after the other. In float32 this step updates all of them
    at once by torch's operations on lists. The state is the same, and so are the numbers (on a GPU up to rounding)."""
    loss = None if closure is None else closure()
    used = [[p for p in group["params"] if p.grad is not None] for group in adam.param_groups]
    plain = all(p.dtype == p.grad.dtype == torch.float32 and not p.grad.is_sparse for some in used for p in some)
    if not plain or any(group.get("amsgrad", False) for group in adam.param_groups):
        upstream_step(adam)
        return loss
    for group, parameters in zip(adam.param_groups, used, strict=True):
        if parameters:
            _update(adam, group, parameters)
    return loss


@torch.no_grad()
def _update(adam: Adam, group: dict, parameters: list[torch.nn.Parameter]) -> None:
    states = [adam.state[p] for p in parameters]
    for state, p in zip(states, parameters, strict=True):
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(p)
    gradients = [p.grad for p in parameters]
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    rate, eps, decay, (beta1, beta2) = (group[name] for name in ("lr", "eps", "weight_decay", "betas"))
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, gradients, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, eps)
    if decay != 0:
        torch._foreach_add_(parameters, parameters, alpha=-decay * rate)
    steps = [state["step"] for state in states]
    sizes = [-(rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)) for step in steps]
    torch._foreach_addcdiv_(parameters, means, denominators, sizes)
