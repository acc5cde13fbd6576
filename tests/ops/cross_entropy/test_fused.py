"""The kernels of the output layer's loss, in Triton's interpreter (in a process of its own)."""

import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")

if os.environ.get("TRITON_INTERPRET") != "1":
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rnndrop_plugin.ops import linear_cross_entropy
    from rnndrop_plugin.ops.cross_entropy import fused

    gpu = pytest.mark.gpu
    needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

    def test_in_the_interpreter(passes_in_the_interpreter):
        passes_in_the_interpreter(__file__)

    def compile(kernel, capability, **constants):
        """With tensors that begin at multiples of 16, and rows of as many numbers."""
        types = dict.fromkeys(("rows", "first", "classes", "stride", "ignore_index"), "i32")
        types |= {"target": "*i64", "smoothing": "fp32", "share": "fp32"}
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
        aligned = [k for k, name in enumerate(kernel.arg_names) if signature[name].startswith("*") or name == "stride"]
        attributes = {(k,): [["tt.divisibility", 16]] for k in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        options = {"num_warps": 8, "debug": True, "sanitize_overflow": False, "enable_fp_fusion": True}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    @pytest.mark.parametrize("capability, bias, smooth", [(80, False, True), (90, True, False), (90, True, True)])
    def test_compiles(capability, bias, smooth):
        constants = {"BLOCK": fused.BLOCK, "SMOOTH": smooth, "GRADIENT": True, **({} if bias else {"bias": None})}
        code = compile(fused.softmax_loss, capability, **constants)
        assert code.metadata.shared <= 1024  # what the sums over a row need
        assert code.asm["ttir"].count("tt.assert") == 1
        # The logits are read twice and written once, four at a time, eight to a thread; the rows of padding are, too.
        assert code.asm["ptx"].count("ld.global.v4.b32") == 4 and code.asm["ptx"].count("st.global.v4.b32") == 4
        compile(fused.sums, capability, BLOCK=1024)

    @gpu
    @needs_gpu
    def test_in_a_graph():
        """A captured update computes the loss of what its inputs hold when it is replayed."""
        features, weight = torch.randn(50, 8, device="cuda"), torch.randn(3000, 8, device="cuda", requires_grad=True)
        target = torch.randint(3000, (50,), device="cuda")

        def update():
            loss, _ = linear_cross_entropy(features, weight, None, target, 1)
            return loss.detach(), *torch.autograd.grad(loss, weight)

        update()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = update()
        features.normal_()
        target.random_(3000)
        target[::2] = 1
        graph.replay()
        for x, y in zip(found, update(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)

    @gpu
    @needs_gpu
    def test_a_captured_backward_pass_is_the_same_at_each_replay():
        features, weight = torch.randn(50, 8, device="cuda"), torch.randn(300, 8, device="cuda", requires_grad=True)
        target, factor = torch.randint(300, (50,), device="cuda"), torch.full((), 0.5, device="cuda")

        def loss():
            return linear_cross_entropy(features, weight, None, target)[0]

        (expected,) = torch.autograd.grad(loss(), weight, factor)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.autograd.set_multithreading_enabled(False):
            found_loss = loss()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                (found,) = torch.autograd.grad(found_loss, weight, factor)
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
        torch.testing.assert_close(found, expected)

    @gpu
    @needs_gpu
    @pytest.mark.parametrize("impossible", [13, -1])
    def test_impossible_target_on_a_gpu(impossible):
        program = f"""
import torch
from rnndrop_plugin.ops import linear_cross_entropy
x = torch.ones(6, 7, device="cuda")
linear_cross_entropy(x, torch.ones(13, 7, device="cuda"), None, torch.full((6,), {impossible}, device="cuda"))
torch.cuda.synchronize()
"""
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert run.returncode != 0 and "device-side assert" in run.stderr, run.stderr

else:
    from rnndrop_plugin.ops import linear_cross_entropy, linear_cross_entropy_ref
    from rnndrop_plugin.ops.cross_entropy import chunked, dispatch, fused

    PAD = 1

    @pytest.fixture(autouse=True)
    def kernel(monkeypatch):
        """The kernel runs on a CPU, too, some classes at a time, and is counted."""
        monkeypatch.setattr(dispatch.availability, "obstacle", lambda device, dtype: None)
        monkeypatch.setattr(fused, "BLOCK", 8)
        calls = []
        function = fused.linear_cross_entropy
        monkeypatch.setattr(fused, "linear_cross_entropy", lambda *inputs: calls.append(1) or function(*inputs))
        yield
        assert calls

    def problem(rows=20, size=7, vocabulary=21, bias=True):
        features, weight = torch.randn(rows, size, requires_grad=True), torch.randn(vocabulary, size)
        bias = torch.randn(vocabulary, requires_grad=True) if bias else None
        target = torch.randint(vocabulary, (rows,))
        target[[2, 5, rows - 1]] = PAD
        return features, weight.requires_grad_(), bias, target

    def gradients(function, features, weight, bias, target, smoothing=0.0):
        loss, nll = function(features, weight, bias, target, PAD, smoothing)
        wanted = [x for x in (features, weight, bias) if x is not None and x.requires_grad]
        return loss.detach(), nll, *torch.autograd.grad(0.7 * loss, wanted)

    def check(*inputs, smoothing=0.0):
        """Against the plain operations in float64."""
        *leaves, target = inputs
        exact = (x if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in leaves)
        expected = gradients(linear_cross_entropy_ref, *exact, target, smoothing)
        for x, y in zip(gradients(linear_cross_entropy, *inputs, smoothing), expected, strict=True):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=2e-6 * float(y.abs().max()))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("chunk", [2**22, 50])
    def test_equals_plain(chunk, bias, smoothing, monkeypatch):
        """In one chunk, and in chunks of two rows."""
        monkeypatch.setattr(chunked, "ROWS", 1)
        monkeypatch.setattr(chunked, "CHUNK", chunk)
        check(*problem(bias=bias), smoothing=smoothing)

    @pytest.mark.parametrize("block, vocabulary", [(2048, 5000), (8, 16), (8, 8), (8, 2)])
    def test_sizes(block, vocabulary, monkeypatch):
        monkeypatch.setattr(fused, "BLOCK", block)
        check(*problem(vocabulary=vocabulary), smoothing=0.2)

    @pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2)])
    def test_what_needs_no_gradient(frozen):
        inputs = problem()
        for k in frozen:
            inputs[k].requires_grad_(False)
        check(*inputs)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_without_gradients(smoothing):
        inputs = problem()
        with torch.no_grad():
            found = linear_cross_entropy(*inputs, PAD, smoothing)
            expected = linear_cross_entropy_ref(*inputs, PAD, smoothing)
        torch.testing.assert_close(found, expected)

    def test_only_padding():
        features, weight, bias, target = problem()
        found = gradients(linear_cross_entropy, features, weight, bias, torch.full_like(target, PAD), 0.1)
        assert all((x == 0).all() for x in found)

    def test_an_index_that_is_no_class():
        *inputs, target = problem()
        target = target.where(target != PAD, -100)
        expected = linear_cross_entropy_ref(*inputs, target, -100, 0.1)
        torch.testing.assert_close(linear_cross_entropy(*inputs, target, -100, 0.1), expected)

    def test_non_contiguous():
        features, weight, bias, target = problem()
        inputs = features.t().contiguous().t()[::2], weight.t().contiguous().t(), bias.expand(2, -1).t()[:, 1]
        found, expected = (
            torch.autograd.grad(function(*inputs, target[::2], PAD)[0], (features, weight, bias))
            for function in (linear_cross_entropy, linear_cross_entropy_ref)
        )
        torch.testing.assert_close(found, expected)

    def test_the_logits_of_one_chunk_are_kept_at_a_time(monkeypatch):
        monkeypatch.setattr(chunked, "ROWS", 1)
        monkeypatch.setattr(chunked, "CHUNK", 50)
        made, alive, product = [], [], torch.mm

        def watched(x, y, out):
            alive.append(sum(logits() is not None for logits in made))
            made.append(weakref.ref(out))
            return product(x, y, out=out)

        monkeypatch.setattr(torch, "mm", watched)
        linear_cross_entropy(*problem(), PAD)
        assert len(alive) > 1 and not any(alive)

    def test_memory_that_was_not_a_number(monkeypatch):
        """Rows of logits are padded, with what has been in that memory before."""
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.empty(3).isnan().all()
            check(*problem(), smoothing=0.1)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_a_number_of_numpy():
        check(*problem(), smoothing=np.float32(0.1))

    def test_large_logits():
        """Beyond what exp can hold, and targets whose probability is zero in float32."""
        features, weight, bias, target = problem()
        check(features, (weight.detach() * 300).requires_grad_(), bias, target)

    def test_classes_that_cannot_be():
        """More than a block of them."""
        features, weight, bias, target = problem()
        bias = torch.where(torch.arange(len(bias)) < 10, -torch.inf, bias.detach()).requires_grad_()
        check(features, weight, bias, target.where(target == PAD, target.clamp(min=10)))

    def test_the_loss_is_changed_in_place_and_differentiated_twice():
        features, weight, bias, target = problem()
        loss, nll = linear_cross_entropy(features, weight, bias, target, PAD)
        before = nll.clone()
        loss *= 0
        loss.backward(retain_graph=True)
        assert loss == 0 and nll == before and (weight.grad == 0).all()
        loss, _ = linear_cross_entropy(features, weight, bias, target, PAD)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (found,) = torch.autograd.grad(gradient.square().sum(), weight)
        loss, _ = linear_cross_entropy_ref(features, weight, bias, target, PAD)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (expected,) = torch.autograd.grad(gradient.square().sum(), weight)
        torch.testing.assert_close(found, expected)

    def test_compiled():
        torch._dynamo.reset()
        inputs = problem()
        function = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
        found = gradients(function, *inputs, 0.1)
        torch.testing.assert_close(found, gradients(linear_cross_entropy_ref, *inputs, 0.1))
