"""An update's forward and backward pass as a CUDA graph (--cuda-graph), which is launched at once, without Python.

An update of a small recurrent model launches some hundred kernels, and the host takes longer to launch them than the
GPU to run them. A graph holds all of them, for one batch size. Each replay draws new masks: torch's generator gives it
the same numbers that it would give the operations themselves.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops import availability
from rnndrop_plugin.ops.recurrence import triton

logger = logging.getLogger(__name__)

MOST = 64  # the largest number of graphs; the windows of --variable-bptt have some 30 sizes


class _Graph(NamedTuple):
    """A captured pass.

    Attributes:
        replay: runs the graph, which reads ``tokens`` and ``expected`` and writes ``figures`` and ``gradients``.
        expected: the other entries of a batch that the loss reads, by name.
        figures: the loss, followed by the logged values that are tensors.
        gradients: those of the parameters, or None; all graphs write to the same memory.
        sample_size, logging_output: what the criterion returned, which is the same for all batches of this size. None
            stands for a tensor, whose value is in ``figures``.
    """

    replay: Callable[[], None]
    tokens: Tensor
    expected: dict[str, Tensor]
    figures: Tensor
    gradients: tuple[Tensor | None, ...]
    sample_size: int
    logging_output: dict[str, Any]


class GraphedCriterion:
    """A criterion whose forward and backward passes over the batches of a stream are CUDA graphs.

    The first batch of each size runs without a graph. This also compiles and loads the kernels that the graph launches.

    Args:
        model: a :class:`rnndrop_plugin.models.language_model.RecurrentLanguageModel`. The state that its decoder
            carries from batch to batch is kept in separate memory, which all graphs read and write.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module):
        self.model, self.criterion, self.decoder = model, criterion, model.decoder
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.state: tuple[Tensor, ...] | None = None
        self.gradients = [torch.empty_like(p) for p in self.parameters]
        # All graphs share this memory, because they run one after the other.
        self.pool = torch.cuda.graph_pool_handle() if next(model.parameters()).is_cuda else None
        self.seen: set[tuple] = set()  # the sizes of batches that were computed without a graph
        self.graphs: dict[tuple, _Graph] = {}
        self.most = MOST

    def __call__(self, model: nn.Module, sample: dict) -> tuple[Tensor, int, dict]:
        """What the criterion returns for a batch of the stream."""
        inputs = sample["net_input"]
        size = (*sample["target"].shape, sample["ntokens"])
        graphed = size in self.graphs or (size in self.seen and len(self.graphs) < self.most)
        watched = len(model._forward_hooks) > 0  # fairseq adds hooks to find out where a NaN comes from
        if not graphed or watched or self.decoder.carried[True] is None:
            results = self.criterion(model, sample)
            self.seen.add(size)
            return results
        self._copy_state_in(inputs["starts_stream"])
        if size not in self.graphs:
            try:
                self.graphs[size] = self._capture(sample)
            except torch.OutOfMemoryError:
                self.most = len(self.graphs)
                logger.warning(f"there is not enough memory for more than {self.most} CUDA graphs")
                return self.criterion(model, sample)
        graph = self.graphs[size]
        if availability.obstacle(graph.tokens.device, torch.float32) is None:
            triton.raise_if_failed(graph.tokens.device)
        graph.tokens.copy_(inputs["src_tokens"])
        for name, own in graph.expected.items():
            own.copy_(sample[name])
        loss, figures = _Replay.apply(graph, *self.parameters)
        logged = iter(figures.unbind())
        log = {name: next(logged) if value is None else value for name, value in graph.logging_output.items()}
        return loss, graph.sample_size, log

    def _copy_state_in(self, starts_stream: bool) -> None:
        """Copy the decoder's state, or the zero state if the stream begins, to where the graphs read it."""
        carried = self.decoder.carried[True]
        if self.state is None:
            self.state = tuple(torch.empty_like(s, memory_format=torch.contiguous_format) for s in carried)
        for own, s in zip(self.state, carried, strict=True):
            if starts_stream:
                own.zero_()
            elif own is not s:
                own.copy_(s)
        self.decoder.carried[True] = self.state

    def _capture(self, sample: dict) -> _Graph:
        """Capture the passes over batches of the size of ``sample``.

        Raises:
            InputError: something cannot be captured, such as an operation of the criterion that waits for the GPU.
            torch.OutOfMemoryError: there is no memory for another graph.
        """
        tokens = sample["net_input"]["src_tokens"].clone()
        expected = {name: sample[name].clone() for name in ("target", "teacher_words") if name in sample}
        batch = sample | expected
        batch["net_input"] = sample["net_input"] | {"src_tokens": tokens, "starts_stream": False}
        try:
            replay, results = capture(lambda: self._pass(batch), self.pool)
        except (RuntimeError, ValueError) as error:
            self.decoder.carried[True] = self.state  # for a checkpoint, as the capture's own state was never computed
            cause = error.__context__ or error  # the end of a capture raises an error of its own, which says less
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            line = str(cause).strip().splitlines()[0]
            raise InputError(f"--cuda-graph: the training cannot be captured ({line}); train without it") from error
        return _Graph(replay, tokens, expected, *results)

    def _pass(self, sample: dict) -> tuple[Tensor, tuple[Tensor | None, ...], int, dict[str, Any]]:
        loss, sample_size, log = self.criterion(self.model, sample)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradients = tuple(own if g is not None else None for own, g in zip(self.gradients, found, strict=True))
        torch._foreach_copy_([g for g in gradients if g is not None], [g for g in found if g is not None])
        for own, s in zip(self.state, self.decoder.carried[True], strict=True):
            own.copy_(s)
        self.decoder.carried[True] = self.state
        logged = [value.detach().to(loss.dtype) for value in log.values() if isinstance(value, Tensor)]
        constant = {name: None if isinstance(value, Tensor) else value for name, value in log.items()}
        return torch.stack([loss.detach(), *logged]), gradients, sample_size, constant


def capture(work: Callable[[], tuple], pool: tuple[int, int] | None) -> tuple[Callable[[], None], tuple]:
    """Capture ``work`` in a CUDA graph.

    Returns:
        A function that replays it, and the result of ``work``, which each replay overwrites.
    """
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # collecting the graph of an earlier training would end the capture
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails does not restore the stream itself
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = work()
    finally:
        if collects:
            gc.enable()
    return graph.replay, results


class _Replay(torch.autograd.Function):
    """Replays a graph and returns its loss. The graph has computed the gradients by then, so backward scales them."""

    @staticmethod
    def forward(ctx, graph: _Graph, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        graph.replay()
        ctx.gradients = graph.gradients
        figures = graph.figures[1:].clone()
        ctx.mark_non_differentiable(figures)
        return graph.figures[0].clone(), figures

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor, _) -> tuple[Tensor | None, ...]:
        # Return new tensors, because torch sums gradients up and the next replay overwrites those of the graph.
        given = [g for g in ctx.gradients if g is not None]
        found = iter(torch._foreach_mul(given, grad_loss.to(given[0].dtype)))
        return None, *(g if g is None else next(found) for g in ctx.gradients)
