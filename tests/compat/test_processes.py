import importlib.util
import types

import pytest
import torch
from fairseq import trainer
from omegaconf import OmegaConf

from rnndrop_plugin.compat import processes
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops.masks import draw_mask


def test_fairseq_seeds_the_processes_alike():
    spec = importlib.util.spec_from_file_location("fairseq.unpatched_trainer", trainer.__file__)
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)

    def drawn(set_seed, rank, seed=1, updates=5) -> tuple:
        cfg = types.SimpleNamespace(common=types.SimpleNamespace(seed=seed))
        process = types.SimpleNamespace(cfg=cfg, data_parallel_rank=rank, get_num_updates=lambda: updates)
        set_seed(process)
        mask = draw_mask(0.5, 3, 4, 8).keep.flatten().tolist()
        return *mask, *torch.nn.functional.dropout(torch.ones(64)).tolist()

    upstream, ours = unpatched.Trainer._set_seed, trainer.Trainer._set_seed
    assert drawn(upstream, 0) == drawn(upstream, 1) == drawn(ours, 0)
    several = [drawn(ours, rank, updates=updates) for rank in range(8) for updates in range(5)]
    assert len(set(several)) == 40
    assert drawn(ours, 1) == drawn(ours, 1) != drawn(ours, 1, seed=2)


@pytest.mark.parametrize(
    ("gpus", "launched", "flags", "line"),
    [
        (0, 2, (), "there is no GPU: use rnndrop train-cpu --processes 2"),
        (0, 2, ("--distributed-world-size", 2), "there is no GPU: use rnndrop train-cpu --processes 2"),
        (0, 1, ("--distributed-world-size", 3), "there is no GPU: use rnndrop train-cpu --processes 3"),
        (
            1,
            4,
            ("--distributed-world-size", 1),
            "each of 4 processes would train alone: add --distributed-world-size 4",
        ),
        (
            2,
            1,
            ("--distributed-world-size", 2, "--find-unused-parameters", "--criterion", "rnndrop_cross_entropy"),
            "leave it out, or add --ddp-backend legacy_ddp",
        ),
    ],
)
def test_processes_that_would_not_train_together(training, tmp_path, monkeypatch, refuse, gpus, launched, flags, line):
    if launched > 1:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", str(launched))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert line in refuse(*training, *flags, "--save-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("crf", [True, False])
def test_unused_parameters_are_not_looked_for_where_a_crf_has_the_loss(monkeypatch, crf):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    together = {"distributed_world_size": 2, "ddp_backend": "pytorch_ddp", "find_unused_parameters": True}
    cfg = {"criterion": {"_name": "rnndrop_tagging"}, "model": {"crf": crf}}
    cfg = OmegaConf.create({**cfg, "distributed_training": {**together, "distributed_no_spawn": False}})
    if crf:
        with pytest.raises(InputError, match="does not go with rnndrop_cross_entropy and --crf"):
            processes.check_processes(cfg)
    else:
        processes.check_processes(cfg)


def test_a_cpu_has_one_process_however_many_gpus_there_are(command, training, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # which fairseq makes the default of the next flag
    command(*training, "--cpu", "--distributed-world-size", 2, "--max-update", 1, "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_lets_each_of_torchruns_processes_train_alone(command, training, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path)
    monkeypatch.setattr(processes, "check_processes", lambda cfg: None)
    command(*arguments)
    assert (tmp_path / "checkpoint_last.pt").exists()
