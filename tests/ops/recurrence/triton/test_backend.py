"""The mathematics of the kernels, in Triton's interpreter: it runs a kernel's blocks on a CPU, one after the other.

This file runs itself in a process of its own, in which Triton interprets kernels.
"""

import itertools
import os
import threading

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter(passes_in_the_interpreter):
        passes_in_the_interpreter(__file__)

    @pytest.mark.slow
    def test_every_variant_in_the_interpreter(passes_in_the_interpreter):
        passes_in_the_interpreter(__file__, "-m", "slow")

else:
    from rnndrop_plugin.ops.recurrence import autograd, operators
    from rnndrop_plugin.ops.recurrence.triton import backend
    from rnndrop_plugin.ops.recurrence.triton.tiles import GATES, Tiles

    ALL = ("update", "hidden", "cell")
    ONE_BLOCK = Tiles(batch=16, units=16, split=2, depth=16, group=1, keep=True)  # of the units
    TWO_BLOCKS = Tiles(batch=16, units=16, split=1, depth=16, group=1, keep=False)
    EXCHANGED = {"forward": ("hs", "hx", "out", "extra"), "backward": ("d_gates", "d_hn")}  # among the blocks

    def use(monkeypatch, tiles):
        """Cut persistent kernels by ``tiles``; None for the steps one by one."""
        monkeypatch.setattr(backend, "chosen", lambda *key: tiles)

    def launch_again_and_again(kernel, grid, arguments, constants, like, **settings):
        """Launch a persistent kernel without its barrier until all that its blocks exchange has arrived.

        Blocks run one after the other here, so at first they find nothing of those that come later. But a place of the
        memory between them is written once, from earlier places: each further launch gets one step further.
        """
        exchanged = [x for name in EXCHANGED[kernel.__name__] if (x := arguments.get(name)) is not like]
        own = [x for x in arguments.values() if isinstance(x, torch.Tensor) and not any(x is y for y in exchanged)]
        inputs = [x.clone() for x in own]
        for x in exchanged:
            x.fill_(torch.nan)  # nothing is read that was not written
        exchanges = 2 if constants["CELL"] == "gru" else 1
        for _ in range(exchanges * arguments["T"] + 1):
            for x, value in zip(own, inputs, strict=True):
                x.copy_(value)
            kernel[grid](**arguments, **constants | {"BARRIER": False})

    @pytest.mark.parametrize("cell", GATES)
    def test_one_block(monkeypatch, problem, cell):
        use(monkeypatch, ONE_BLOCK)
        problem(cell, (3, 2, 3, 11), ALL, lengths=[1, 3], relu=cell == "gru").check(backend)

    @pytest.mark.parametrize("cell", GATES)
    def test_several_blocks(monkeypatch, problem, cell):
        use(monkeypatch, TWO_BLOCKS)
        monkeypatch.setattr(backend, "launch", launch_again_and_again)
        options = {"reverse": True, "lengths": [2, 0, 1]} if cell in ("lstm", "gru") else {"bias": False}
        p = problem(cell, (2, 3, 2, 18), ALL, sampling="sequence", **options)
        p.retain_graph = True  # else gradients overwrite the gates, which each launch of these has to find again
        p.check(backend)

    @pytest.mark.parametrize("cell, tiles", [("lstm", ONE_BLOCK), ("gru", None)])
    def test_a_second_backward_pass_finds_what_was_saved(monkeypatch, problem, cell, tiles):
        use(monkeypatch, tiles)
        p = problem(cell, (3, 2, 3, 5), ("update",))
        output, final = autograd.run(backend, p.whole)
        loss = output.square().sum() + sum(s.sum() for s in final)
        leaves = [p.input, *p.state, *p.weights]
        first, second = (torch.autograd.grad(loss, leaves, retain_graph=again) for again in (True, False))
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))

    def test_what_was_saved_comes_back_in_other_strides_and_on_another_default_device(monkeypatch, problem):
        def transpose_twice(x):
            return x if x.dim() < 2 else x.transpose(0, 1).contiguous().transpose(0, 1)

        use(monkeypatch, ONE_BLOCK)
        backend._failure_flag.cache_clear()
        p = problem("gru", (3, 2, 3, 5), ("hidden",))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, transpose_twice), torch.device("meta"):
            p.check(backend)

    @pytest.mark.parametrize("cell", GATES)
    def test_step_by_step(monkeypatch, problem, cell):
        use(monkeypatch, None)
        problem(cell, (3, 2, 3, 5), ALL, reverse=True, lengths=[3, 1]).check(backend)
        problem(cell, (2, 2, 3, 5), (), relu=True, bias=False).check(backend)

    @pytest.fixture
    def switches():
        """torch's for products and for recurrent layers, as they are after the test."""
        switches = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
        before = [switch.fp32_precision for switch in switches]
        yield switches
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value

    @pytest.mark.parametrize("recurrent, other", [("tf32", "ieee"), ("ieee", "tf32")])
    def test_the_products_of_steps_follow_the_switch_of_recurrent_layers(
        monkeypatch, problem, switches, recurrent, other
    ):
        matmul, rnn = switches
        matmul.fp32_precision, rnn.fp32_precision = other, recurrent
        taken = []
        mm = torch.mm
        monkeypatch.setattr(torch, "mm", lambda *x, **out: taken.append(matmul.fp32_precision) or mm(*x, **out))
        use(monkeypatch, None)
        p = problem("gru", (3, 2, 3, 5), bias=False)
        p.check(backend)
        at_steps = 3 * 2 * 2  # the paper's GRU has two products a step, forward and backward
        assert taken.count(recurrent) == at_steps and taken.count(other) == len(taken) - at_steps > 0
        assert matmul.fp32_precision == other

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_switch_is_as_before_when_calls_of_two_threads_overlap(switches, dtype):
        matmul, rnn = switches
        matmul.fp32_precision, rnn.fp32_precision = "ieee", "tf32"
        seen, entered, left = [], threading.Event(), threading.Event()

        def second():
            with backend.products_as_in_the_loops(dtype):
                entered.set()
                assert left.wait(10)
                seen.append(matmul.fp32_precision)

        thread = threading.Thread(target=second)
        with backend.products_as_in_the_loops(dtype):
            thread.start()
            assert entered.wait(10)
        left.set()
        thread.join()
        assert seen == ["tf32" if dtype == torch.float32 else "ieee"]
        assert matmul.fp32_precision == "ieee"

    def test_recurrent_weights_that_are_not_aligned(monkeypatch, problem):
        """As those of a layer are, whose weights are in one piece."""
        use(monkeypatch, ONE_BLOCK)
        p = problem("rnn", (3, 2, 3, 5))
        piece = torch.zeros(1 + p.weights.hh.numel())
        hh = piece[1:].view_as(p.weights.hh).copy_(p.weights.hh.detach()).requires_grad_()
        assert hh.data_ptr() % 16
        p.weights = p.weights._replace(hh=hh)
        aligned = []
        launch = backend.launch
        monkeypatch.setattr(
            backend, "launch", lambda *x, **more: aligned.append(x[2]["u"].data_ptr() % 16 == 0) or launch(*x, **more)
        )
        p.check(backend)
        assert aligned == [True, True]

    def test_as_an_operator_of_torch(monkeypatch, problem):
        """As torch.compile calls it."""
        use(monkeypatch, ONE_BLOCK)
        problem("gru", (2, 2, 3, 5), ("hidden",), lengths=[1, 2], reverse=True).check(operators.Operator("triton"))

    def test_half(monkeypatch, problem):
        use(monkeypatch, ONE_BLOCK)
        problem("lstm", (3, 2, 3, 8), ("update",), dtype=torch.float16).check(backend, 4e-3)

    def test_a_barrier_that_fails_ends_in_words(monkeypatch, problem):
        """Without its neighbour, which comes later in the interpreter, a block waits in vain."""
        use(monkeypatch, TWO_BLOCKS)
        monkeypatch.setattr(backend, "POLLS", 3)
        p = problem("rnn", (2, 1, 3, 21))
        arguments = (backend, p.whole)
        with torch.no_grad():
            output, _ = autograd.run(*arguments)
            assert output[:, :, :16].isnan().all()
            with pytest.raises(RuntimeError, match="gave up waiting for its other blocks"):
                autograd.run(*arguments)
            backend.raise_if_failed(p.input.device)  # it is said once

    @pytest.mark.slow
    @pytest.mark.parametrize("cut", [ONE_BLOCK, ONE_BLOCK._replace(split=1, keep=False), TWO_BLOCKS, None])
    @pytest.mark.parametrize("cell", GATES)
    def test_every_variant(monkeypatch, problem, cell, cut):
        use(monkeypatch, cut)
        if cut is TWO_BLOCKS:
            monkeypatch.setattr(backend, "launch", launch_again_and_again)
        size = (2, 3, 4, 21 if cut is TWO_BLOCKS else 11)
        for kinds, sampling in ((), "step"), (("hidden",), "step"), (("update", "cell"), "sequence"), (ALL, "step"):
            for relu, bias, reverse, padded in itertools.product((False, True), repeat=4):
                options = {"relu": relu, "bias": bias, "reverse": reverse, "lengths": [2, 0, 1] if padded else None}
                p = problem(cell, size, kinds, sampling=sampling, **options)
                p.retain_graph = cut is TWO_BLOCKS
                p.check(backend)
