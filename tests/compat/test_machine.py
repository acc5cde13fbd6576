import pytest
import torch
from fairseq import trainer, utils
from omegaconf import OmegaConf

from rnndrop_plugin.compat import machine
from rnndrop_plugin.errors import InputError


@pytest.mark.skipif(utils.xm is not None, reason="torch_xla is installed")
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--tpu",), "--tpu asks for a TPU, and torch_xla is not installed"),
        (("--tpu", "--bf16"), "--tpu asks for a TPU, and torch_xla is not installed"),
        (("--cpu", "--fp16"), "--fp16 needs a GPU"),
        (("--cpu", "--memory-efficient-fp16"), "--fp16 needs a GPU"),
    ],
)
def test_fairseq_has_no_words_for_precisions_that_the_machine_lacks(
    command, training, tmp_path, flags, line, refuse, unpatch
):
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path, *flags)
    assert line in refuse(*arguments)
    assert not list(tmp_path.iterdir())
    unpatch(trainer.Trainer, "__init__")
    if flags == ("--cpu", "--fp16") and not torch.cuda.is_available():
        assert "Torch not compiled with CUDA" in refuse(*arguments)
    else:
        with pytest.raises((AttributeError, SystemExit)):
            command(*arguments)


@pytest.mark.parametrize(("gpu", "cpu", "told"), [(False, False, True), (True, True, True), (True, False, False)])
def test_mixed_precision_that_has_no_effect_is_told(monkeypatch, caplog, gpu, cpu, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    common = {"tpu": False, "cpu": cpu, "fp16": False, "amp": True}
    machine.check_device(OmegaConf.create({"common": common, "model": {}}))
    assert ("--amp has no effect without a GPU" in caplog.text) is told


@pytest.mark.parametrize(
    ("backend", "gpu", "cpu", "line"),
    [
        ("triton", False, False, "--recurrent-backend triton needs a GPU, and there is none"),
        ("triton", True, True, r"--recurrent-backend triton needs a GPU, .* \(or --cpu is given\)"),
        ("cpu", True, False, "--recurrent-backend cpu is for a CPU, and there is a GPU: add --cpu"),
    ],
)
def test_a_backend_of_another_device_is_refused(monkeypatch, backend, gpu, cpu, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    common = {"tpu": False, "cpu": cpu, "fp16": False, "amp": False}
    cfg = OmegaConf.create({"common": common, "model": {"recurrent_backend": backend}})
    with pytest.raises(InputError, match=line):
        trainer.Trainer(cfg, None, None, None)


@pytest.mark.parametrize(
    ("backend", "gpu", "cpu"),
    [("triton", True, False), ("cpu", False, False), ("cpu", True, True), ("torch", True, False)],
)
def test_a_backend_of_the_device_is_not_refused(monkeypatch, backend, gpu, cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    common = {"tpu": False, "cpu": cpu, "fp16": False, "amp": False}
    machine.check_device(OmegaConf.create({"common": common, "model": {"recurrent_backend": backend}}))


@pytest.mark.parametrize(
    ("gpus", "launched", "flags", "line"),
    [
        (0, 2, (), "there is no GPU: use rnndrop train-cpu --processes 2"),
        (0, 2, ("--distributed-world-size", 2), "there is no GPU: use rnndrop train-cpu --processes 2"),
        (0, 1, ("--distributed-world-size", 3), "there is no GPU: use rnndrop train-cpu --processes 3"),
        (
            0,
            1,
            ("--cpu", "--distributed-world-size", 3, "--max-epoch", 1),
            "there is no GPU: use rnndrop train-cpu --processes 3",
        ),
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


def test_the_size_of_a_world_alone_launches_no_processes(monkeypatch):
    """As a cluster may set it; fairseq asks for a rank, too."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    alone = {"distributed_world_size": 1, "distributed_no_spawn": False, "ddp_backend": "pytorch_ddp"}
    machine.check_processes(OmegaConf.create({"criterion": None, "distributed_training": alone}))


@pytest.mark.parametrize(("crf", "backend"), [(True, "pytorch_ddp"), (False, "pytorch_ddp"), (True, "legacy_ddp")])
def test_unused_parameters_are_not_looked_for_where_a_crf_has_the_loss(monkeypatch, crf, backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    together = {"distributed_world_size": 2, "ddp_backend": backend, "find_unused_parameters": True}
    cfg = {"criterion": {"_name": "rnndrop_tagging"}, "model": {"crf": crf}}
    cfg = OmegaConf.create({**cfg, "distributed_training": {**together, "distributed_no_spawn": False}})
    if crf and backend == "pytorch_ddp":
        with pytest.raises(InputError, match="does not go with rnndrop_cross_entropy and --crf"):
            machine.check_processes(cfg)
    else:
        machine.check_processes(cfg)


def test_a_cpu_has_one_process_however_many_gpus_there_are(command, training, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # which fairseq makes the default of the next flag
    command(*training, "--cpu", "--distributed-world-size", 2, "--max-update", 1, "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_lets_each_of_torchruns_processes_train_alone(command, training, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path)
    monkeypatch.setattr(machine, "check_processes", lambda cfg: None)
    command(*arguments)
    assert (tmp_path / "checkpoint_last.pt").exists()
