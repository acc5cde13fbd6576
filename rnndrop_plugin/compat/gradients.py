"""The norm of the gradients: on a GPU fairseq finds, checks and logs it by dozens of kernels at each update."""

import functools

import torch
from fairseq.trainer import Trainer
from torch import Tensor

upstream_clip_grad_norm = Trainer.clip_grad_norm


def multi_tensor_total_norm(grads: list[Tensor], chunk_size: int | None = None) -> Tensor:
    """fairseq/utils.py, multi_tensor_total_norm, needs apex to find the norms of all parameters at once: without it,
    clip_grad_norm_ does so for one after the other. torch has learnt it since."""
    norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


@functools.wraps(upstream_clip_grad_norm)
def clip_grad_norm(trainer: Trainer, clip_norm: float) -> Tensor:
    """fairseq/trainer.py, Trainer.train_step, asks whether the norm is finite, which waits for the GPU, and goes on to
    compute there with it for each of the meters. Here the norm itself is copied to the host."""
    return upstream_clip_grad_norm(trainer, clip_norm).cpu()
