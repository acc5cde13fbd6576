"""Where Triton's kernels cannot run, the reason is a sentence, and torch operations serve."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from rnndrop_plugin.ops import Mask, Masks, availability, choose_backend
from rnndrop_plugin.ops.recurrence.triton import tiles

GPU = torch.device("cuda", 0)
DROPS = Masks(hidden=Mask(torch.ones(2, 3, dtype=torch.bool), 2.0))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 9.0 and Triton 3.6, as far as they are asked."""
    availability._unavailable.cache_clear()
    availability.warn_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(availability, "_launch_nothing", lambda device: None)
    yield monkeypatch
    availability._unavailable.cache_clear()
    availability.warn_once.cache_clear()


def test_on_a_cpu():
    with pytest.raises(ValueError, match="'triton' cannot run this recurrence: its tensors are on cpu"):
        choose_backend("lstm", DROPS, backend="triton")


def test_available(gpu):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert choose_backend("gru", device="cuda", dtype=dtype) == "triton"


def test_what_drops_nothing_is_cudnns_where_it_is_faster(gpu):
    gpu.setattr(tiles, "device_limits", lambda device: (132, 227 * 1024))
    gpu.setattr(torch.backends.cudnn, "allow_tf32", True)
    gpu.setattr(tiles, "_chosen", {})

    def chosen(**changes):
        sizes = {"batch": 32, "hidden": 256, "dtype": torch.float32} | changes
        return choose_backend("lstm", device=GPU, **sizes)

    assert chosen() == chosen(dtype=torch.bfloat16) == "triton"
    assert chosen(batch=None) == chosen(dtype=torch.float16) == chosen(hidden=128) == "vendor"
    assert chosen(hidden=4096) == "vendor"  # its blocks cannot all be on the device at once
    gpu.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert chosen() == "vendor"


def test_float64_stays_on_torch(gpu):
    assert choose_backend("gru", device="cuda", dtype=torch.float64) == "torch"
    with pytest.raises(ValueError, match="float32, bfloat16 and float16, the input is of torch.float64"):
        choose_backend("gru", device="cuda", dtype=torch.float64, backend="triton")


def test_an_old_gpu(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0 or later" in availability.obstacle(GPU, torch.float32)


def test_an_old_triton(gpu):
    gpu.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    assert availability.obstacle(GPU, torch.float32) == "Triton is 3.2.0, and the oldest supported version is 3.6"


def test_no_triton(gpu):
    gpu.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported" in availability.obstacle(GPU, torch.float32)


def test_a_gpu_that_is_full_for_now_is_asked_again(gpu):
    failures = [RuntimeError("Triton Error [CUDA]: out of memory")]

    def launch(device):
        if failures:
            raise failures.pop()

    gpu.setattr(availability, "_launch_nothing", launch)
    with pytest.raises(RuntimeError, match="out of memory"):
        availability.obstacle(GPU, torch.float32)
    assert availability.obstacle(GPU, torch.float32) is None


def test_no_compiler_is_said_once(gpu, caplog):
    def fail(device):
        raise RuntimeError("\nFailed to find C compiler. Please specify via CC environment variable.")

    gpu.setattr(availability, "_launch_nothing", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert choose_backend("lstm", DROPS, device="cuda") == "torch"
    assert len(caplog.records) == 1
    assert "Failed to find C compiler" in caplog.text
