"""The CRF's kernels, in Triton's interpreter (in a process of its own)."""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")

if os.environ.get("TRITON_INTERPRET") != "1":
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rnndrop_plugin.ops.crf import dispatch, fused

    def test_in_the_interpreter(passes_in_the_interpreter):
        passes_in_the_interpreter(__file__)

    @pytest.mark.parametrize(
        "kernel, tags, capability",
        [("backward", 64, 80), ("backward", 9, 90), ("forward", 64, 90), ("best_path", 64, 80)],
    )
    def test_compiles(kernel, tags, capability):
        kernel = getattr(fused, kernel)
        types = {"T": "i32", "lengths": "*i64", "tags": "*i64", "came_from": "*i32", "path": "*i64"}
        constants = {"TAGS": tags, "K": triton.next_power_of_2(tags)}
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert code.metadata.shared <= 48 * 1024

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_on_a_gpu():
        """Against torch operations on the CPU."""
        shapes = ((20, 30, 9), (9, 9), (9,), (9,))
        leaves = [torch.randn(*shape, requires_grad=True) for shape in shapes]
        paths, lengths = torch.randint(9, (20, 30)), torch.randint(1, 31, (20,))
        found = []
        for device in ("cpu", "cuda"):
            scores = [x.detach().to(device).requires_grad_() for x in leaves]
            loss = dispatch.crf_nll(*scores, paths.to(device), lengths)
            path = dispatch.crf_decode(*(x.detach() for x in scores), lengths)
            path = path * (torch.arange(30, device=device) < lengths.to(device).unsqueeze(1))
            found.append([x.cpu() for x in (loss.detach(), path, *torch.autograd.grad(loss.sum(), scores))])
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_the_best_path_of_nan_is_of_tags():
        emissions = torch.full((4, 9, 9), torch.nan, device="cuda")
        path = dispatch.crf_decode(
            emissions, emissions[0], emissions[0, 0], emissions[0, 0], torch.tensor([9, 5, 1, 2])
        )
        assert path.min() >= 0 and path.max() < 9

else:
    from rnndrop_plugin.ops.crf import dispatch, fused

    def scores(batch, time, tags):
        shapes = ((batch, time, tags), (tags, tags), (tags,), (tags,))
        return [torch.randn(*shape).requires_grad_() for shape in shapes]

    @pytest.fixture(autouse=True)
    def kernels(monkeypatch):
        """crf_nll and crf_decode take the kernels on a CPU, too."""
        monkeypatch.setattr(dispatch.availability, "obstacle", lambda device, dtype: None)

    def by_steps(monkeypatch, function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(dispatch.availability, "obstacle", lambda device, dtype: "it is not to be")
            return function(*arguments)

    @pytest.mark.parametrize("time, tags", [(1, 1), (5, 5), (4, 16)])
    def test_likelihood_and_gradients(monkeypatch, time, tags):
        leaves = scores(3, time, tags)
        lengths = torch.tensor([time, 1, max(1, time - 2)])
        paths = torch.randint(tags, (3, time))
        found, expected = [], []
        for result, call in (
            (found, dispatch.crf_nll),
            (expected, lambda *a: by_steps(monkeypatch, dispatch.crf_nll, *a)),
        ):
            loss = call(*leaves, paths, lengths)
            result += [loss, *torch.autograd.grad((loss * torch.tensor([1.0, -2.0, 0.5])).sum(), leaves)]
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)

    def test_forbidden_transitions(monkeypatch):
        leaves = scores(2, 4, 3)
        with torch.no_grad():
            leaves[1][0, 1] = leaves[2][1] = -torch.inf
            leaves[1][:, 2] = leaves[2][2] = -torch.inf  # a tag that no path has
            leaves[0][1, 2:] = torch.nan  # past the end
        lengths, paths = torch.tensor([4, 2]), torch.zeros(2, 4, dtype=torch.long)
        loss = dispatch.crf_nll(*leaves, paths, lengths)
        expected = by_steps(monkeypatch, dispatch.crf_nll, *leaves, paths, lengths)
        torch.testing.assert_close(loss, expected)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), leaves))
        assert all(x.isfinite().all() for x in gradients) and gradients[1][0, 1] == 0
        path = dispatch.crf_decode(*leaves, lengths)
        assert torch.equal(path, by_steps(monkeypatch, dispatch.crf_decode, *leaves, lengths))

    def test_a_sentence_without_a_possible_path(monkeypatch):
        leaves = scores(2, 3, 3)
        with torch.no_grad():
            leaves[0][0, 1] = -torch.inf
        lengths, paths = torch.tensor([3, 2]), torch.zeros(2, 3, dtype=torch.long)
        loss = dispatch.crf_nll(*leaves, paths, lengths)
        assert loss[0] == torch.inf
        torch.testing.assert_close(loss, by_steps(monkeypatch, dispatch.crf_nll, *leaves, paths, lengths))
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss.sum(), leaves))

    @pytest.mark.parametrize("lengths", [torch.tensor([[2, 9], [4, 9], [1, 9]])[:, 0], torch.tensor([3]).expand(3)])
    def test_lengths_with_strides(monkeypatch, lengths):
        leaves, paths = scores(3, 4, 5), torch.randint(5, (3, 4))
        loss = dispatch.crf_nll(*leaves, paths, lengths)
        torch.testing.assert_close(loss, by_steps(monkeypatch, dispatch.crf_nll, *leaves, paths, lengths))
        path = dispatch.crf_decode(*leaves, lengths)
        assert torch.equal(path, by_steps(monkeypatch, dispatch.crf_decode, *leaves, lengths))

    @pytest.mark.parametrize("transposed", [False, True])
    def test_the_gradient_can_be_differentiated(monkeypatch, transposed):
        leaves = scores(2, 3, 4)
        if transposed:  # in memory
            leaves[:2] = [x.detach().mT.contiguous().mT.requires_grad_() for x in leaves[:2]]
        lengths, paths = torch.tensor([3, 2]), torch.zeros(2, 3, dtype=torch.long)

        def penalty():
            loss = dispatch.crf_nll(*leaves, paths, lengths).sum()
            gradient = torch.autograd.grad(loss, leaves, create_graph=True)
            return torch.autograd.grad(sum(x.square().sum() for x in gradient), leaves)

        for x, y in zip(penalty(), by_steps(monkeypatch, penalty), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)

    def test_best_path(monkeypatch):
        arguments = (*scores(4, 6, 5), torch.tensor([6, 1, 3, 2]))
        assert torch.equal(dispatch.crf_decode(*arguments), by_steps(monkeypatch, dispatch.crf_decode, *arguments))
