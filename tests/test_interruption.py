"""Runs that are killed, at any moment, and started again with the same command."""

import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

PLUGIN = ("--user-dir", "rnndrop_plugin", "--log-format", "json", "--log-interval", 5, "--clip-norm", 1)
LANGUAGE_MODEL = ("--task", "rnndrop_language_modeling", "--arch", "lstm_rnndrop", "--decoder-embed-dim", 8)
LANGUAGE_MODEL += ("--decoder-hidden-size", 8, "--update-dropout", 0.25, "--hidden-dropout", 0.25)
LANGUAGE_MODEL += ("--decoder-dropout-out", 0.2, "--batch-size", 4, "--tokens-per-sample", 7)
TAGGER = ("--task", "rnndrop_tagging", "--criterion", "rnndrop_tagging", "--arch", "gru_rnndrop_tagger")
TAGGER += ("--decoder-embed-dim", 8, "--decoder-hidden-size", 8, "--update-dropout", 0.25, "--batch-size", 8)
TAGGER += ("--extract-length", 4, "--decoder-dropout-in", 0.2)


class Killed(BaseException):
    """Ends a run as SIGKILL does: fairseq handles exceptions, and this is none."""


@pytest.fixture
def kill(monkeypatch):
    """``kill(moment, n)`` kills the run of this process when a moment comes for the n-th time."""
    places = {
        "before an update": (Trainer, "train_step"),
        "while a checkpoint is written": (torch, "save"),
        "before a checkpoint takes its name": (Path, "replace"),
        "while a checkpoint is copied": (shutil, "copyfile"),
        "after a checkpoint": (checkpoint_utils, "save_checkpoint"),
    }

    def kill(moment: str, n: int) -> None:
        owner, name = places[moment]
        original, calls = getattr(owner, name), []

        def function(*args, **kwargs):
            calls.append(args)
            if len(calls) < n:
                return original(*args, **kwargs)
            monkeypatch.setattr(owner, name, original)
            if moment == "while a checkpoint is written":
                args[1].write(b"half")
            elif moment == "while a checkpoint is copied":
                Path(args[1]).write_bytes(Path(args[0]).read_bytes()[:1000])
            elif moment == "after a checkpoint":
                original(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(owner, name, function)

    return kill


MOMENTS = (
    ("before an update", 2),
    ("while a checkpoint is written", 1),
    ("while a checkpoint is copied", 1),
    ("while a checkpoint is copied", 2),
    ("before a checkpoint takes its name", 4),
    ("before an update", 5),
    ("after a checkpoint", 2),
)


@pytest.mark.parametrize(
    "options",
    [
        "--update-freq 1 --optimizer sgd --lr 1 --lr-scheduler rnndrop_plateau --patience 5",
        "--update-freq 3 --optimizer adam --lr 0.01 --lr-scheduler reduce_lr_on_plateau --lr-shrink 0.5 --patience 5",
        "--update-freq 1 --optimizer adam --lr 0.01 --lr-scheduler fixed --force-anneal 1 --disable-validation",
        "--update-freq 3 --optimizer sgd --lr 1 --disable-validation --max-epoch 6",
        "--update-freq 1 --optimizer adam --lr 0.01 --max-update 40",
        "--update-freq 1 --optimizer rnndrop_asgd --asgd-nonmonotone 0 --lr 1 --variable-bptt --weight-dropout 0.25 "
        "--decoder-embed-dropout 0.1 --decoder-dropout-sampling sequence",
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_been(command, kill, stream_data, tagging_data, tmp_path, options):
    task = (tagging_data, *TAGGER) if "--max-update" in options else (stream_data, *LANGUAGE_MODEL)
    # A falling loss is not the best then, so that rates shrink and --patience comes to its end.
    options = (*task, *PLUGIN, "--max-epoch", 3, "--save-interval-updates", 3, *options.split())
    options += ("--maximize-best-checkpoint-metric",)
    whole = command("train", *options, "--save-dir", tmp_path / "whole")
    for moment in MOMENTS:
        kill(*moment)
        with pytest.raises(Killed):
            command("train", *options, "--save-dir", tmp_path / "killed")
    killed = command("train", *options, "--save-dir", tmp_path / "killed")

    updates = [len(log.metrics("num_updates", "train_inner")) for log in (whole, killed)]
    assert 0 < updates[1] < updates[0]
    for tag in ("train_inner", "train", "valid"):
        expected, logged = whole.metrics("loss", tag), killed.metrics("loss", tag)
        assert logged == expected[len(expected) - len(logged) :], tag
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        states = [torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "killed")]
        for part in ("model", "last_optimizer_state"):
            torch.testing.assert_close(*(state[part] for state in states), rtol=0, atol=0)
        assert states[0]["optimizer_history"][-1] == states[1]["optimizer_history"][-1]
        for part in ("best", "train_iterator", "val_loss"):
            assert states[0]["extra_state"].get(part) == states[1]["extra_state"].get(part), (name, part)
        task = next(name for name in states[0]["extra_state"] if name.startswith("Rnndrop"))
        assert states[0]["extra_state"][task]["progress"] == states[1]["extra_state"][task]["progress"]
    assert ("early stop since" in killed.text()) == ("--patience" in options)


@pytest.mark.parametrize("limit", ["--max-update 4", "--patience 1 --maximize-best-checkpoint-metric"])
def test_a_run_that_has_ended_does_not_begin_again(command, stream_data, tmp_path, limit):
    options = ("--optimizer", "sgd", "--lr", 1, "--save-dir", tmp_path, *limit.split())
    flags = (stream_data, *LANGUAGE_MODEL, *PLUGIN, *options)
    command("train", *flags)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "this run has already ended" in command("train", *flags).text()
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    command("train", *flags, *("--max-update", 30, "--patience", 9))
    assert torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["optimizer_history"][-1]["num_updates"] == 30


def test_a_validation_over_the_training_split_changes_nothing_of_what_a_resume_needs(command, stream_data, tmp_path):
    flags = ("--valid-subset", "valid,train", "--batch-size-valid", 2, "--optimizer", "sgd", "--lr", 1)
    flags = (stream_data, *LANGUAGE_MODEL, *PLUGIN, *flags, "--save-interval-updates", 3, "--max-update")
    command("train", *flags, 6, "--save-dir", tmp_path / "whole")
    command("train", *flags, 3, "--save-dir", tmp_path / "resumed")
    resumed = command("train", *flags, 6, "--save-dir", tmp_path / "resumed")
    assert not [record for record in resumed if record.levelname == "WARNING"]  # of other rows
    models = [torch.load(tmp_path / run / "checkpoint_last.pt")["model"] for run in ("whole", "resumed")]
    torch.testing.assert_close(*models, rtol=0, atol=0)
