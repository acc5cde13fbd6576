import inspect
import types

import pytest
import torch
from fairseq.trainer import Trainer
from omegaconf import DictConfig, OmegaConf

from rnndrop_plugin.compat import training_step
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask as Task


def test_settings_are_the_configurations():
    cfg = OmegaConf.create({"a": {"b": [1, 2], "c": "${a.d}", "d": 0.5, "absent": "???"}, "e": types.SimpleNamespace()},
                           flags={"allow_objects": True})  # fmt: skip
    copy = training_step.settings(cfg)
    assert (copy.a.b, copy.a.c, copy["a"]["d"], copy.e) == ([1, 2], 0.5, 0.5, cfg.e)
    assert "absent" not in copy.a and getattr(copy.a, "absent", 7) == 7
    with pytest.raises(AttributeError, match="absent"):
        copy.absent  # noqa: B018


def test_fairseq_reads_its_configuration_at_every_update(command, training, tmp_path, monkeypatch):
    """A copy is taken for all updates of an epoch but the first, and no number changes."""

    kinds: list[type] = []
    step = training_step.upstream_train_step
    watched = lambda trainer, *rest: kinds.append(type(trainer.cfg)) or step(trainer, *rest)  # noqa: E731
    monkeypatch.setattr(training_step, "upstream_train_step", watched)
    read: list[type] = []  # by the watch over the loss
    monkeypatch.setattr(training_step.divergence, "watch", lambda trainer, _: read.append(type(trainer.cfg)))

    def run(name: str) -> dict:
        kinds.clear()
        flags = ("--clip-norm", 1, "--lr", 0.5, "--tokens-per-sample", 8, "--max-epoch", 2)
        command(*training, *flags, "--save-dir", tmp_path / name)
        return torch.load(tmp_path / name / "checkpoint_last.pt")

    state = run("ours")
    epoch = len(kinds) // 2
    assert epoch > 2 and kinds == read == 2 * [DictConfig, *[training_step.Settings] * (epoch - 1)]
    monkeypatch.setattr(training_step, "settings", lambda cfg: None)
    upstream = run("upstream")
    assert set(kinds) == {DictConfig}
    assert all(torch.equal(state["model"][name], upstream["model"][name]) for name in upstream["model"])
    for cfg in (state["cfg"], upstream["cfg"]):
        cfg["checkpoint"]["save_dir"] = cfg["task"]["save_dir"] = cfg["optimizer"] = None  # which repeats the first
    assert state["cfg"] == upstream["cfg"]


def test_what_is_saved_within_an_update_has_the_configuration_itself(command, training, tmp_path, monkeypatch):
    def train_step(task, *arguments, **keywords):
        if task.failing:
            raise LookupError("in the middle")
        task.failing = True
        return step(task, *arguments, **keywords)

    step = Task.train_step
    monkeypatch.setattr(Task, "failing", False, raising=False)
    monkeypatch.setattr(Task, "train_step", train_step)
    with pytest.raises(LookupError, match="in the middle"):
        command(*training, "--tokens-per-sample", 8, "--save-dir", tmp_path)
    assert torch.load(tmp_path / "crash.pt")["cfg"]["task"]["tokens_per_sample"] == 8


def test_an_update_that_is_tried_again_keeps_the_configuration(command, training, tmp_path, monkeypatch):
    """As fairseq does after an overflow with --amp: Trainer.train_step calls itself."""

    def train_step(trainer, samples, *arguments, again=True, **keywords):
        return trainer.train_step(samples, again=False) if again else step(trainer, samples, *arguments, **keywords)

    step = training_step.upstream_train_step
    monkeypatch.setattr(training_step, "upstream_train_step", train_step)
    command(*training, "--tokens-per-sample", 8, "--max-update", 3, "--save-dir", tmp_path)
    assert torch.load(tmp_path / "checkpoint_last.pt")["cfg"]["task"]["tokens_per_sample"] == 8


def test_the_memory_of_a_gpu_is_read_where_it_is_logged(monkeypatch):
    upstream = inspect.getsource(inspect.unwrap(Trainer.train_step))
    assert "if self.cuda and self.cuda_env is not None:" in upstream  # at every update
    assert Trainer.train_step is training_step.train_step

    read = []

    def update(trainer, samples):
        if trainer.cuda_env is not None:
            read.append(trainer.updates)
        if samples == "bad":
            raise FloatingPointError

    monkeypatch.setattr(training_step, "upstream_train_step", update)
    cfg = OmegaConf.create({"common": {"log_interval": 3}})
    trainer = types.SimpleNamespace(cfg=cfg, cuda_env="a GPU", updates=0, get_num_updates=lambda: trainer.updates)
    for trainer.updates in range(7):
        training_step.train_step(trainer, "good")
    with pytest.raises(FloatingPointError):
        training_step.train_step(trainer, "bad")
    assert read == [2, 5]  # the third and the sixth update
    assert trainer.cuda_env == "a GPU" and trainer.cfg is cfg
