import copy

import pytest
import torch
from fairseq.optim.adam import Adam
from torch.utils._python_dispatch import TorchDispatchMode

import rnndrop_plugin
from rnndrop_plugin.compat import adam

rnndrop_plugin.register()


class Upstream(Adam):
    step = adam.upstream_step


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {}),
        (torch.float32, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
        (torch.float32, {"amsgrad": True}),
        (torch.float16, {}),
    ],
)
def test_the_updates_are_those_of_fairseq(dtype, settings):
    torch.manual_seed(1)
    parameters = [torch.randn(3, i + 1).to(dtype) for i in range(4)]
    gradients = [
        [torch.randn_like(p) if (update + i) % 4 else None for i, p in enumerate(parameters)] for update in range(6)
    ]
    found = []
    for cls in (Adam, Upstream):
        leaves = [torch.nn.Parameter(p.clone()) for p in parameters]
        groups = [{"params": leaves[:3]}, {"params": leaves[3:], "lr": 0.5}]
        optimizer = cls(groups, lr=0.1, **settings)
        for update, own in enumerate(gradients):
            if update == 3:  # as a resume does
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = cls(groups, lr=0.1, **settings)
                optimizer.load_state_dict(state)
            for leaf, gradient in zip(leaves, own, strict=True):
                leaf.grad = None if gradient is None else gradient.clone()
            assert optimizer.step(lambda: 7) == 7
        found.append([*(p.detach() for p in leaves), *(x for s in optimizer.state.values() for x in s.values())])
    for x, y in zip(*found, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def test_fairseq_goes_from_parameter_to_parameter():
    counts = []
    for cls in (Upstream, Adam):
        leaves = [torch.nn.Parameter(torch.zeros(2)) for _ in range(9)]
        optimizer = cls(leaves)
        for leaf in leaves:
            leaf.grad = torch.ones(2)
        optimizer.step()
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[0] >= 9 * 8 and counts[1] < 20
