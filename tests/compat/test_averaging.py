"""Training by --optimizer rnndrop_asgd beside the same training by SGD."""

import pytest
import torch
from fairseq.trainer import Trainer

# A falling loss is not the best where it is maximized, so the second validation begins the averaging.
FLAGS = ("--maximize-best-checkpoint-metric", "--max-epoch", 3, "--lr", 0.2, "--lr-scheduler", "fixed")
FLAGS += ("--update-dropout", 0.25, "--variable-bptt", "--sentence-avg", "--tokens-per-sample", 12)
ASGD = ("--optimizer", "rnndrop_asgd", "--asgd-nonmonotone", 0)


@pytest.fixture
def steps(monkeypatch) -> list[dict]:
    """The parameters after each training step, in the order of the steps."""
    steps = []
    train_step = Trainer.train_step

    def spy(trainer, *args, **kwargs):
        result = train_step(trainer, *args, **kwargs)
        steps.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return result

    monkeypatch.setattr(Trainer, "train_step", spy)
    return steps


def load(folder, epoch: int = 3) -> dict:
    return torch.load(folder / f"checkpoint{epoch}.pt", weights_only=True)


def test_validation_and_checkpoints_have_the_mean_and_training_goes_on_without_it(
    command, training, tmp_path, steps, stream_data, unpatch
):
    command(*training, *FLAGS, "--optimizer", "sgd", "--save-dir", tmp_path / "sgd")
    expected = list(steps)
    steps.clear()
    log = command(*training, *FLAGS, *ASGD, "--save-dir", tmp_path / "asgd")
    begun = int(log.metrics("num_updates", "train")[1])
    assert f"averaging of the parameters begins after {begun} updates" in log.text()
    assert 1 < begun < len(expected) - 1
    for values, others in zip(expected, steps, strict=True):
        for name, value in values.items():
            assert torch.equal(value, others[name])
    saved = load(tmp_path / "asgd")["model"]
    for name in expected[0]:
        mean = torch.stack([values[name] for values in expected[begun:]]).mean(0)
        torch.testing.assert_close(saved[name], mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(saved[name], expected[-1][name])

    flags = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--batch-size", 4)
    flags += ("--tokens-per-sample", 12, "--log-format", "json")
    score = command("validate", stream_data, *flags, "--path", tmp_path / "asgd" / "checkpoint3.pt")
    assert score.metrics("loss", "valid") == log.metrics("loss", "valid")[2:]

    unpatch(Trainer, "state_dict")
    unpatch(Trainer, "begin_valid_epoch")
    command(*training, *FLAGS, *ASGD, "--save-dir", tmp_path / "unpatched")
    for name, value in load(tmp_path / "unpatched")["model"].items():
        assert torch.equal(value, expected[-1][name])


def test_a_checkpoint_without_a_validation_has_the_mean(command, training, tmp_path):
    command(*training, *FLAGS, *ASGD, "--save-dir", tmp_path / "whole")
    folder = tmp_path / "resumed"
    folder.mkdir()
    (tmp_path / "whole" / "checkpoint2.pt").rename(folder / "checkpoint_last.pt")
    fewer = ("--validate-interval", 4, "--max-epoch", 4)
    log = command(*training, *FLAGS, *ASGD, *fewer, "--save-dir", folder)
    assert len(log.metrics("loss", "valid")) == 1  # after the fourth epoch
    expected, saved = load(tmp_path / "whole")["model"], load(folder)["model"]
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_validation_of_another_run_does_not_count(command, training, tmp_path):
    command(*training, *FLAGS, *ASGD, "--save-dir", tmp_path / "first", "--max-epoch", 2)
    more = ("--restore-file", tmp_path / "first" / "checkpoint2.pt", "--save-dir", tmp_path / "second")
    log = command(*training, *FLAGS, *ASGD, *more, "--max-epoch", 4)
    assert load(tmp_path / "second", 4)["last_optimizer_state"]["validations"] == pytest.approx(
        [float(loss) for loss in log.metrics("loss", "valid")][:1], abs=1e-3
    )


def test_mixed_precision_is_refused(training, tmp_path, refuse):
    for flag in ("--amp", "--bf16", "--use-bmuf"):
        line = refuse(*training, *FLAGS, *ASGD, flag, "--save-dir", tmp_path)
        assert "rnndrop_asgd averages parameters of float32: drop --fp16, --bf16, --amp and --use-bmuf" in line
