from argparse import Namespace

import pytest
import torch
from fairseq import options, utils
from fairseq.optim import AMPOptimizer
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin, _MemoryEfficientFP16OptimizerMixin
from fairseq.optim.sgd import SGD
from omegaconf import OmegaConf

from rnndrop_plugin.compat import precision


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


def test_a_run_goes_on_from_a_checkpoint_that_fairseq_wrote(command, training, tmp_path, monkeypatch):
    """Which has no parameters in float32."""
    arguments = (*training, "--cpu", "--bf16", "--save-dir", tmp_path, "--max-update")
    with monkeypatch.context() as patch:
        patch.setattr(_FP16OptimizerMixin, "state_dict", precision.upstream_state_dict)
        command(*arguments, 1)
    before = torch.load(tmp_path / "checkpoint_last.pt")
    assert "fp32_params" not in before["last_optimizer_state"]
    assert command(*arguments, 2).metrics("num_updates", "train_inner") == ["2"]
    after = torch.load(tmp_path / "checkpoint_last.pt")  # an update of this rate changes nothing in half precision
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)


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


@pytest.mark.parametrize("upstream", [False, True])
def test_the_scale_of_the_loss_goes_on_after_a_resume(monkeypatch, upstream):
    if upstream:
        monkeypatch.setattr(AMPOptimizer, "state_dict", precision.upstream_amp_state_dict)

    def train(optimizer, updates: int) -> list[float]:
        scales = []
        for _ in range(updates):
            optimizer.zero_grad()
            optimizer.backward(next(optimizer.fp32_optimizer.params).sum())
            optimizer.clip_grad_norm(0.0)
            optimizer.step()
            scales.append(optimizer.scaler.get_scale())
        return scales

    def build():
        return amp(SGD, 0.5, torch.nn.Parameter(torch.zeros(1)), amp_scale_window=3)

    whole, first, resumed = build(), build(), build()
    scales = train(whole, 8)
    assert scales == [64, 64, 128, 128, 128, 256, 256, 256]
    assert train(first, 4) == scales[:4]
    resumed.load_state_dict(first.state_dict())
    assert (train(resumed, 4) == scales[4:]) is not upstream
    assert resumed.scaler.get_growth_interval() == 3


@pytest.mark.parametrize("name", ["", "memory_efficient_"])
def test_the_scale_of_fp16_grows_after_a_resume_when_it_would_have(name):
    class Wrapped:
        """An optimizer as the mixins see it, without parameters."""

        fp32_params = []

        def __init__(self):
            self.scaler = DynamicLossScaler(init_scale=64, scale_window=3)
            self.fp32_optimizer = self.wrapped_optimizer = Namespace(state_dict=dict, load_state_dict=lambda *_: None)
            self.optimizer = Namespace(disable_mem_eff_fp16_loading_hack=True)

    mixin = {"": _FP16OptimizerMixin, "memory_efficient_": _MemoryEfficientFP16OptimizerMixin}[name]
    optimizers = [type("Wrapped", (Wrapped, mixin), {"__init__": Wrapped.__init__})() for _ in range(2)]

    def train(optimizer, updates: int) -> list[float]:
        scales = []
        for _ in range(updates):
            optimizer.scaler.update()
            scales.append(optimizer.scaler.loss_scale)
        return scales

    scales = train(optimizers[0], 4)
    state = optimizers[0].state_dict()
    optimizers[1].load_state_dict(state)
    assert vars(optimizers[1].scaler) == vars(optimizers[0].scaler)
    scales = train(optimizers[0], 6)
    assert scales[0] != scales[-1]
    assert train(optimizers[1], 6) == scales
    optimizers[1].load_state_dict({"loss_scale": 8.0})  # of fairseq's own
    assert optimizers[1].scaler.loss_scale == 8


def test_a_window_whose_loss_overflows_is_not_read_again_from_the_state_at_its_end(command, training, tmp_path):
    log = command(*training, "--cpu", "--amp", "--max-update", 1, "--save-dir", tmp_path)
    assert log.metrics("num_updates", "train") == ["1"]
    assert torch.load(tmp_path / "checkpoint_last.pt")["cfg"]["common"]["amp_batch_retries"] == 0
