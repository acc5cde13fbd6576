import pytest
import torch

from rnndrop_plugin.ops.masks import Mask, Masks, draw_mask
from rnndrop_plugin.ops.recurrence import autograd
from rnndrop_plugin.ops.recurrence.reference import GATES, Weights


class Problem:
    """A random recurrence of ``size`` (time, batch, input, hidden), and what a kernel makes of it."""

    retain_graph = False

    def __init__(
        self,
        cell,
        size,
        kinds=(),
        *,
        sampling="step",
        bias=True,
        relu=False,
        lengths=None,
        reverse=False,
        dtype=torch.float32,
        device="cpu",
        seed=3,
    ):
        torch.manual_seed(seed)
        time, batch, features, hidden = size
        rows = GATES[cell] * hidden

        def leaf(*shape, scale=1.0):
            return (torch.randn(*shape) * scale).to(device, dtype).requires_grad_()

        masks = {
            kind: draw_mask(0.4, time, batch, hidden, sampling=sampling)
            for kind in kinds
            if cell != "rnn" or kind == "hidden"
        }
        masks = Masks(**{kind: Mask(mask.keep.to(device), mask.scale) for kind, mask in masks.items()})
        lengths = None if lengths is None else torch.tensor(lengths, device=device)
        self.options = autograd.Options(cell, masks, "relu" if relu else "tanh", lengths, reverse)
        self.input = leaf(time, batch, features)
        self.state = tuple(leaf(batch, hidden) for _ in range(2 if cell == "lstm" else 1))
        biases = (leaf(rows), leaf(rows)) if bias else ()
        self.weights = Weights(leaf(rows, features, scale=0.5), leaf(rows, hidden, scale=hidden**-0.5), *biases)
        shapes = [(time, batch, hidden), *((batch, hidden) for _ in self.state)]
        self.factors = [torch.randn(*shape).to(device, dtype) for shape in shapes]  # of the results in the loss

    @property
    def whole(self) -> autograd.Problem:
        """What a kernel takes."""
        return autograd.Problem(self.options, self.input, self.state, self.weights)

    def results(self, kernel):
        """The output, the final state and all gradients of a loss that weighs each number differently."""
        return self._results(
            lambda *tensors: autograd.run(kernel, autograd.Problem(self.options, *tensors)), lambda x: x
        )

    def expected(self):
        """The same of the reference, in float64 on the CPU."""

        def convert(x):
            return x if x is None else x.detach().cpu().double().requires_grad_()

        options = self.options.with_tensors(tuple(x if x is None else x.cpu() for x in self.options.tensors()))
        return self._results(lambda *tensors: autograd.by_reference(autograd.Problem(options, *tensors)), convert)

    def _results(self, run, convert):
        tensors = convert(self.input), tuple(map(convert, self.state)), Weights(*map(convert, self.weights))
        output, final = run(*tensors)
        loss = sum((x * convert(factor)).sum() for x, factor in zip((output, *final), self.factors, strict=True))
        leaves = [x for x in (tensors[0], *tensors[1], *tensors[2]) if x is not None]
        return [output, *final, *torch.autograd.grad(loss, leaves, retain_graph=self.retain_graph)]

    def check(self, kernel, tolerance=1e-5):
        """Compare with the reference, each tensor relative to its largest entry."""
        for x, y in zip(self.results(kernel), self.expected(), strict=True):
            x, y = x.detach().cpu().double(), y.detach()
            assert x.shape == y.shape
            assert float((x - y).abs().max()) < tolerance * float(y.abs().max()), (x, y)


@pytest.fixture(scope="session")
def problem():
    """Makes a :class:`Problem`."""
    return Problem
