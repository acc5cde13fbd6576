import importlib.util
import re
import sys
import traceback
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import utils
from fairseq.data import BucketPadLengthDataset, TokenBlockDataset, data_utils, indexed_dataset

from rnndrop_plugin.compat import versions

ROOT = Path(__file__).parents[2]


def test_fairseq_warns_of_what_is_silenced_and_of_nothing_else(command, training, tmp_path, monkeypatch):
    arguments = (*training, "--max-epoch", 1, "--save-dir", tmp_path)
    with warnings.catch_warnings(record=True) as silenced:
        warnings.simplefilter("always")
        command(*arguments)
    assert [str(warning.message) for warning in silenced] == []
    monkeypatch.setattr(versions, "silence_warnings", lambda: None)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        command(*arguments, "--restore-file", next(tmp_path.glob("checkpoint1.pt")), "--max-epoch", 2)
    for pattern in versions.SILENCED_WARNINGS:
        assert any(re.match(pattern, str(warning.message)) for warning in given), pattern


def test_numpys_compat_is_missing_and_used_by_fairseq(monkeypatch):
    def blocks():
        sentences = [torch.tensor([5, 2]), torch.tensor([6, 2])]
        return TokenBlockDataset(sentences, [2, 2], block_size=None, pad=1, eos=2, break_mode="eos")

    assert [block.tolist() for block in blocks()] == [[5, 2], [6, 2]]
    assert isinstance(np.compat, types.SimpleNamespace)  # ours: numpy has none
    monkeypatch.delattr(np, "compat")
    with pytest.raises(AttributeError, match="compat"):
        blocks()


def test_a_damaged_dataset_fails_once(stream_data, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("fairseq.data.unpatched", indexed_dataset.__file__)
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)
    (tmp_path / "text.bin").write_bytes((stream_data / "valid.bin").read_bytes())
    (tmp_path / "text.idx").write_bytes((stream_data / "valid.idx").read_bytes()[:20])
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    for module, failures in ((unpatched, 2), (indexed_dataset, 0)):
        ignored.clear()
        with pytest.raises(Exception, match="unpack requires"):
            module.MMapIndexedDataset(str(tmp_path / "text"))
        assert len(ignored) == failures
    whole = indexed_dataset.MMapIndexedDataset(str(stream_data / "valid"))
    closed = whole._bin_buffer_mmap._mmap
    whole._bin_buffer.release()
    del whole
    assert closed.closed


def test_torch_writes_down_the_stack_where_fairseq_seeds(monkeypatch):
    stacks = []
    monkeypatch.setattr(traceback, "format_stack", lambda: stacks.append("") or [])
    (upstream,) = versions.SeedGenerators.__bases__
    for seed in (5, -5, 5 + 7 * 0x9E3779B9):
        upstream(seed)
        expected = torch.rand(3), torch.randn(3), torch.randint(9, (3,))
        assert stacks
        torch.manual_seed(6)
        stacks.clear()
        before = torch.get_rng_state()
        with utils.set_torch_seed(seed):
            drawn = torch.rand(3), torch.randn(3), torch.randint(9, (3,))
        assert all(map(torch.equal, drawn, expected))
        assert torch.equal(torch.get_rng_state(), before)
        assert not stacks


def test_every_gpu_is_seeded_and_the_state_of_the_current_one_restored(monkeypatch):
    gpus = tuple(torch.Generator().manual_seed(seed) for seed in (1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    monkeypatch.setattr(torch.cuda, "get_rng_state", gpus[1].get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", gpus[1].set_state)
    before = gpus[1].get_state()
    with utils.set_torch_seed(5):
        assert [gpu.initial_seed() for gpu in gpus] == [5, 5] and torch.initial_seed() == 5
    assert torch.equal(gpus[1].get_state(), before) and gpus[0].initial_seed() == 5


def test_buckets_of_lengths_by_a_keyword_that_numpy_no_longer_has():
    sizes = np.array([3, 1, 2, 9, 4, 4])
    assert list(BucketPadLengthDataset([torch.ones(3)] * 6, sizes, 2, pad_idx=1, left_pad=False).buckets) == [3, 9]
    with pytest.raises(TypeError, match="interpolation"):
        data_utils.get_buckets(sizes, 2)
