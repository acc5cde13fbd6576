from argparse import Namespace

import pytest
import torch
from fairseq import options, trainer, utils
from fairseq.optim import AMPOptimizer
from fairseq.optim.sgd import SGD
from omegaconf import OmegaConf

from rnndrop_plugin.compat import precision
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


@pytest.mark.skipif(utils.xm is not None, reason="torch_xla is installed")
@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_bf16_means_the_device_at_hand(command, training, tmp_path, unpatch, flag):
    arguments = (*training, "--cpu", "--optimizer", "adam", "--max-update", 2, "--save-dir", tmp_path, flag)
    dtypes = set()
    forward = torch.nn.functional.embedding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "embedding",
            lambda tokens, weight, *rest, **more: dtypes.add(weight.dtype) or forward(tokens, weight, *rest, **more),
        )
        assert command(*arguments).metrics("num_updates", "train") == ["2"]
    assert dtypes == {torch.bfloat16}
    unpatch(options, "parse_args_and_arch")
    with pytest.raises(SystemExit):
        command(*arguments, "--save-dir", tmp_path / "upstream")


def amp(optimizer_class, lr: float, parameter: torch.nn.Parameter, **common) -> AMPOptimizer:
    flags = {"amp_init_scale": 64, "fp16_init_scale": 2, "amp_scale_window": None, "min_loss_scale": 1e-4, **common}
    optimizer = optimizer_class(Namespace(lr=[lr], momentum=0.0, weight_decay=0.0), [parameter])
    return AMPOptimizer(OmegaConf.create({"common": flags, "optimizer": None}), [parameter], optimizer)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("upstream", [False, True])
def test_the_scale_of_the_loss_does_not_change_the_rate(monkeypatch, clip_norm, upstream):
    if upstream:
        monkeypatch.setattr(AMPOptimizer, "step", precision.upstream_amp_step)
    start, gradients = torch.tensor([3.0, -4.0]), torch.tensor([[1.0, 2.0], [5.0, -6.0], [0.5, 0.25]])
    parameter = torch.nn.Parameter(start.clone())
    optimizer = amp(SGD, 0.5, parameter)
    assert optimizer.scaler.is_enabled() and optimizer.scaler.get_scale() == 64
    expected = start.clone()
    for _ in range(3):
        optimizer.zero_grad()
        for gradient in gradients:  # --update-freq 3
            optimizer.backward((parameter * gradient).sum())
        optimizer.multiply_grads(1 / 3)
        norm = optimizer.clip_grad_norm(clip_norm)
        optimizer.step()
        mean = gradients.mean(0)
        assert float(norm) == pytest.approx(float(mean.norm()))
        expected -= 0.5 * mean * (min(1.0, clip_norm / float(mean.norm())) if clip_norm else 1.0)
    if upstream:
        torch.testing.assert_close(parameter.data, start + (expected - start) / 64)
    else:
        torch.testing.assert_close(parameter.data, expected)


def test_a_gradient_that_overflows_is_left_out_and_the_scale_falls():
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = amp(SGD, 0.5, parameter)
    optimizer.backward((parameter * torch.inf).sum())
    assert not torch.isfinite(optimizer.clip_grad_norm(1.0))
    optimizer.step()
    assert parameter.item() == 3.0 and optimizer.scaler.get_scale() == 32


def test_fairseq_takes_the_flags_of_the_scale_for_each_other(monkeypatch):
    optimizer = amp(SGD, 0.5, torch.nn.Parameter(torch.zeros(1)), amp_scale_window=7)
    assert (optimizer.scaler.get_scale(), optimizer.scaler.get_growth_interval()) == (64, 7)
    monkeypatch.setattr(AMPOptimizer, "__init__", precision.upstream_amp_init)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda **options: options)
    optimizer = amp(SGD, 0.5, torch.nn.Parameter(torch.zeros(1)), amp_scale_window=7)
    assert optimizer.scaler == {"init_scale": 2, "growth_interval": 64}
