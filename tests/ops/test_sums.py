import pytest
import torch

from rnndrop_plugin.ops import sums


@pytest.mark.parametrize("small", [0, 100])
def test_sum_of_rows(monkeypatch, small):
    monkeypatch.setattr(sums, "SMALL", small)
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(sums.sum_of_rows(x), x.sum(0))
