import importlib.util
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from fairseq import trainer, utils
from torch.overrides import TorchFunctionMode


class Calls(TorchFunctionMode):
    """Counts the calls of torch's functions by their names."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        self.names[function.__name__] += 1
        return function(*arguments, **(keywords or {}))


def unpatched(module):
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_unpatched", module.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("limit", [0.0, 0.5, 1000.0])
@pytest.mark.parametrize("parameters", [1, 5])
def test_fairseq_finds_the_norm_of_each_parameter_by_itself(dtype, limit, parameters):
    torch.manual_seed(1)
    gradients = [torch.randn(7, i + 1).to(dtype) for i in range(parameters)]
    found = []
    for clip in (unpatched(utils).clip_grad_norm_, utils.clip_grad_norm_):
        leaves = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.clone()
        with Calls() as calls:
            norm = clip(leaves, limit)
        found.append([norm, *(leaf.grad for leaf in leaves)])
        several = calls.names["norm"] > 1
        assert several == (clip is not utils.clip_grad_norm_ and parameters > 1)
    assert found[0][0].dtype == found[1][0].dtype == torch.float32
    torch.testing.assert_close(*found)


def test_fairseq_leaves_the_norm_where_it_is():
    on_the_host = torch.tensor(3.0)
    norm = SimpleNamespace(cpu=lambda: on_the_host)
    limits = []
    optimizer = SimpleNamespace(clip_grad_norm=lambda limit, *_, **__: limits.append(limit) or norm)
    stub = SimpleNamespace(optimizer=optimizer, is_fsdp=False)
    assert unpatched(trainer).Trainer.clip_grad_norm(stub, 5.0) is norm
    assert trainer.Trainer.clip_grad_norm(stub, 5.0) is on_the_host
    assert limits == [5.0, 5.0]
