"""The norm of the gradients. On a GPU fairseq needs dozens of kernels per update to compute, check and log it."""

import functools

import torch
from fairseq.trainer import Trainer
from torch import Tensor

upstream_clip_grad_norm = Trainer.clip_grad_norm


def multi_tensor_total_norm(grads: list[Tensor], chunk_size: int | None = None) -> Tensor:
    """fairseq/utils.py, multi_tensor_total_norm, needs apex to compute the norms of all parameters at once. Without it
    clip_grad_norm_ computes them one after the other. By now torch itself can compute them at once."""
    norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


@functools.wraps(upstream_clip_grad_norm)
def clip_grad_norm(trainer: Trainer, clip_norm: float) -> Tensor:
    """fairseq/trainer.py, Trainer.train_step, waits for the GPU to check that the norm is finite, and still computes
    with it on the GPU for each of the meters. Here the norm itself is copied to the host."""
    return upstream_clip_grad_norm(trainer, clip_norm).cpu()
