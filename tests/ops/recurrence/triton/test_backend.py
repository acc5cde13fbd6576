"""The mathematics of the kernels, in Triton's interpreter: it runs a kernel's blocks on a CPU, one after the other.

The interpreter has to be chosen before Triton is imported, so this file runs itself in a process of its own.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", __file__]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        assert " passed" in run.stdout

    @pytest.mark.slow
    def test_every_variant_in_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", __file__]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr

else:
    from rnndrop_plugin.ops.masks import Masks, draw_mask
    from rnndrop_plugin.ops.recurrence import autograd, reference
    from rnndrop_plugin.ops.recurrence.reference import Weights
    from rnndrop_plugin.ops.recurrence.triton import backend
    from rnndrop_plugin.ops.recurrence.triton.tiles import GATES, Tiles

    ALL = ("update", "hidden", "cell")
    ONE_BLOCK = Tiles(batch=16, units=16, split=2, depth=16, group=1, keep=True, warps=4)  # of the units
    TWO_BLOCKS = Tiles(batch=16, units=16, split=1, depth=16, group=1, keep=False, warps=4)
    EXCHANGED = {"forward": ("hs", "hx", "out", "extra"), "backward": ("d_gates", "d_hn")}  # among the blocks

    def make(cell, size, kinds, *, sampling="step", bias=True, dtype=torch.float32):
        """A random problem of ``size`` (time, batch, input, hidden): input, state, weights and masks."""
        time, batch, features, hidden = size
        rows = GATES[cell] * hidden

        def leaf(*shape, scale=1.0):
            return (torch.randn(*shape) * scale).to(dtype).requires_grad_()

        masks = {
            kind: draw_mask(0.4, time, batch, hidden, sampling=sampling)
            for kind in kinds
            if cell != "rnn" or kind == "hidden"
        }
        biases = (leaf(rows), leaf(rows)) if bias else ()
        state = tuple(leaf(batch, hidden) for _ in range(2 if cell == "lstm" else 1))
        weights = Weights(leaf(rows, features, scale=0.5), leaf(rows, hidden, scale=hidden**-0.5), *biases)
        return leaf(time, batch, features), state, weights, Masks(**masks)

    def results(run, input, state, weights):
        """The output, the final state and all gradients of a loss that weighs each number differently."""
        output, final = run(input, state, weights)
        generator = torch.Generator().manual_seed(1)
        loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (output, *final))
        leaves = [x for x in (input, *state, *weights) if x is not None]
        return [output, *final, *torch.autograd.grad(loss, leaves)]

    def check(cell, size, kinds, tolerance=1e-5, *, relu=False, lengths=None, reverse=False, **problem):
        input, state, weights, masks = make(cell, size, kinds, **problem)
        lengths = None if lengths is None else torch.tensor(lengths)
        options = autograd.Options(cell, masks, "relu" if relu else "tanh", lengths, reverse)
        found = results(lambda *arguments: autograd.run(backend, options, *arguments), input, state, weights)

        def double(x):
            return x if x is None else x.detach().double().requires_grad_()

        arguments = options._asdict()
        del arguments["cell"]
        expected = results(
            lambda *tensors: reference.recurrence(cell, *tensors, **arguments),
            double(input),
            tuple(map(double, state)),
            Weights(*map(double, weights)),
        )
        for x, y in zip(found, expected, strict=True):
            x, y = x.detach().double(), y.detach()
            assert x.shape == y.shape
            assert float((x - y).abs().max()) < tolerance * float(y.abs().max()), (x, y)

    def use(monkeypatch, tiles):
        """Cut persistent kernels by ``tiles``; None for the steps one by one."""
        backend._tiles.clear()
        monkeypatch.setattr(backend, "device_limits", lambda device: (1, 1))
        monkeypatch.setattr(backend, "choose", lambda *arguments: tiles)

    def launch_again_and_again(kernel, grid, arguments, constants, like, **settings):
        """Launch a persistent kernel without its barrier until all that its blocks exchange has arrived.

        Blocks run one after the other here, so at first they find nothing of those that come later. But a place of the
        memory between them is written once, from earlier places: each further launch gets one step further.
        """
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        exchanged = [x for name in EXCHANGED[kernel.__name__] if (x := named.get(name)) is not like]
        own = [x for x in arguments if isinstance(x, torch.Tensor) and not any(x is y for y in exchanged)]
        inputs = [x.clone() for x in own]
        for x in exchanged:
            x.fill_(torch.nan)  # nothing is read that was not written
        exchanges = 2 if constants["CELL"] == "gru" else 1
        for _ in range(exchanges * named["T"] + 1):
            for x, value in zip(own, inputs, strict=True):
                x.copy_(value)
            kernel[grid](*arguments, **constants | {"BARRIER": False})

    @pytest.fixture(autouse=True)
    def seed():
        torch.manual_seed(3)

    @pytest.mark.parametrize("cell", GATES)
    def test_one_block(monkeypatch, cell):
        use(monkeypatch, ONE_BLOCK)
        check(cell, (3, 2, 3, 11), ALL, lengths=[1, 3], relu=cell == "gru")

    @pytest.mark.parametrize("cell", GATES)
    def test_several_blocks(monkeypatch, cell):
        use(monkeypatch, TWO_BLOCKS)
        monkeypatch.setattr(backend, "launch", launch_again_and_again)
        options = {"reverse": True, "lengths": [2, 0, 1]} if cell in ("lstm", "gru") else {"bias": False}
        check(cell, (2, 3, 4, 21), ALL, sampling="sequence", **options)

    @pytest.mark.parametrize("cell", GATES)
    def test_step_by_step(monkeypatch, cell):
        use(monkeypatch, None)
        check(cell, (3, 2, 3, 5), ALL, reverse=True, lengths=[3, 1])
        check(cell, (2, 2, 3, 5), (), relu=True, bias=False)

    def test_half(monkeypatch):
        use(monkeypatch, ONE_BLOCK)
        check("lstm", (3, 2, 3, 8), ("update",), 4e-3, dtype=torch.float16)

    def test_a_barrier_that_fails_ends_in_words(monkeypatch):
        """Without its neighbour, which comes later in the interpreter, a block waits in vain."""
        use(monkeypatch, TWO_BLOCKS)
        monkeypatch.setattr(backend, "POLLS", 3)
        input, state, weights, masks = make("rnn", (2, 1, 3, 21), ())
        options = autograd.Options("rnn", masks, "tanh", None, False)
        with torch.no_grad():
            output, _ = autograd.run(backend, options, input, state, weights)
            assert output[:, :, :16].isnan().all()
            with pytest.raises(RuntimeError, match="gave up waiting for its other blocks"):
                autograd.run(backend, options, input, state, weights)
            backend.raise_if_failed(input.device)  # it is said once

    @pytest.mark.slow
    @pytest.mark.parametrize("cut", [ONE_BLOCK, ONE_BLOCK._replace(split=1, keep=False), TWO_BLOCKS, None])
    @pytest.mark.parametrize("cell", GATES)
    def test_every_variant(monkeypatch, cell, cut):
        use(monkeypatch, cut)
        if cut is TWO_BLOCKS:
            monkeypatch.setattr(backend, "launch", launch_again_and_again)
        hidden = 21 if cut is TWO_BLOCKS else 11
        for kinds, sampling in ((), "step"), (("hidden",), "step"), (("update", "cell"), "sequence"), (ALL, "step"):
            for relu, bias, reverse, padded in itertools.product((False, True), repeat=4):
                lengths = [2, 0, 3] if padded else None
                size = (3, 3, 4, hidden)
                check(cell, size, kinds, sampling=sampling, relu=relu, bias=bias, reverse=reverse, lengths=lengths)
