"""Each patch has a test that fails where it is not needed any more, and one that fails where it does not fit."""

import importlib.util
import inspect
import io
import pickle
import re
import shutil
import subprocess
import sys
import traceback
import types
import warnings
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import torch
from fairseq import checkpoint_utils, options, trainer, utils
from fairseq.data import TokenBlockDataset, indexed_dataset
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)
from fairseq.optim.sgd import SGD
from fairseq_cli import generate

from rnndrop_plugin import compat
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops.masks import draw_mask

ROOT = Path(__file__).parents[1]
FLAGS = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--arch", "lstm_rnndrop")
FLAGS += ("--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--batch-size", 4, "--tokens-per-sample", 50)
FLAGS += ("--optimizer", "sgd", "--lr", 1e-9, "--lr-scheduler", "rnndrop_plateau", "--lr-shrink", 0.5)
FLAGS += ("--log-format", "json", "--log-interval", 1)


# silence_warnings


def test_fairseq_warns_of_what_is_silenced_and_of_nothing_else(command, stream_data, tmp_path, monkeypatch):
    arguments = ("train", stream_data, *FLAGS, "--max-epoch", 1, "--save-dir", tmp_path)
    with warnings.catch_warnings(record=True) as silenced:
        warnings.simplefilter("always")
        command(*arguments)
    assert [str(warning.message) for warning in silenced] == []
    monkeypatch.setattr(compat, "silence_warnings", lambda: None)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        command(*arguments, "--restore-file", next(tmp_path.glob("checkpoint1.pt")), "--max-epoch", 2)
    for pattern in compat.SILENCED_WARNINGS:
        assert any(re.match(pattern, str(warning.message)) for warning in given), pattern


# restore_numpy_compat


def test_numpys_compat_is_missing_and_used_by_fairseq(monkeypatch):
    def blocks():
        sentences = [torch.tensor([5, 2]), torch.tensor([6, 2])]
        return TokenBlockDataset(sentences, [2, 2], block_size=None, pad=1, eos=2, break_mode="eos")

    assert [block.tolist() for block in blocks()] == [[5, 2], [6, 2]]
    assert isinstance(np.compat, types.SimpleNamespace)  # ours: numpy has none
    monkeypatch.delattr(np, "compat")
    with pytest.raises(AttributeError, match="compat"):
        blocks()


# quiet_damaged_datasets


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


# allow_checkpoint_classes


def test_the_allowed_classes_load_a_checkpoint_and_each_is_needed(command, stream_data, tmp_path):
    command("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path)
    state = checkpoint_utils.load_checkpoint_to_cpu(tmp_path / "checkpoint_last.pt")
    sent = io.BytesIO()  # what one process sends to the others when they resume
    torch.save(distributed_utils._split_tensors_from_obj(state, []), sent)
    before = torch.serialization.get_safe_globals()
    try:
        sent.seek(0)
        assert torch.load(sent, weights_only=True)["cfg"] == state["cfg"]
        for left_out in compat.CHECKPOINT_CLASSES:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([cls for cls in compat.CHECKPOINT_CLASSES if cls is not left_out])
            sent.seek(0)
            with pytest.raises(pickle.UnpicklingError, match="GLOBAL"):
                torch.load(sent, weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_switching_the_protection_off_warns(monkeypatch, caplog):
    compat.allow_checkpoint_classes()
    assert not caplog.records
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    compat.allow_checkpoint_classes()
    assert "may run code" in caplog.text


# SeedOneGenerator


@pytest.mark.parametrize("accelerator", [False, True])
def test_torch_writes_down_the_stack_where_fairseq_seeds(monkeypatch, accelerator):
    stacks = []
    monkeypatch.setattr(traceback, "format_stack", lambda: stacks.append("") or [])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    (upstream,) = compat.SeedOneGenerator.__bases__
    upstream(5)
    expected, needed = torch.rand(3), len(stacks)
    torch.manual_seed(6)
    stacks.clear()
    before = torch.get_rng_state()
    with utils.set_torch_seed(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert needed > 0 and len(stacks) == (needed if accelerator else 0)


# seed_each_process, gather_task_state


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


def test_every_process_gathers_what_the_first_one_saves():
    calls = []
    task = types.SimpleNamespace(gather_state=calls.append)
    save = compat.gather_task_state(lambda *_: calls.append("saved"))
    for processes in (1, 2):
        process = types.SimpleNamespace(
            data_parallel_world_size=processes, data_parallel_process_group="group", task=task
        )
        save(None, process, None, None)
    assert calls == ["saved", "group", "saved"]


# check_processes


@pytest.mark.parametrize(
    ("gpus", "launched", "flags", "line"),
    [
        (0, 2, (), "there is no GPU: use python scripts/train_cpu.py --processes 2"),
        (0, 2, ("--distributed-world-size", 2), "there is no GPU: use python scripts/train_cpu.py --processes 2"),
        (0, 1, ("--distributed-world-size", 3), "there is no GPU: use python scripts/train_cpu.py --processes 3"),
        (
            1,
            4,
            ("--distributed-world-size", 1),
            "each of 4 processes would train alone: add --distributed-world-size 4",
        ),
    ],
)
def test_processes_that_would_not_train_together(
    command, stream_data, tmp_path, monkeypatch, capsys, gpus, launched, flags, line
):
    if launched > 1:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", str(launched))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    with pytest.raises(SystemExit) as end:
        command("train", stream_data, *FLAGS, *flags, "--save-dir", tmp_path / "run")
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told


def test_fairseq_lets_each_of_torchruns_processes_train_alone(command, stream_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path)
    monkeypatch.setattr(compat, "check_processes", lambda cfg: None)
    command(*arguments)
    assert (tmp_path / "checkpoint_last.pt").exists()


# say_what_is_wrong


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it is damaged, or not one of fairseq's"),
        (b"no checkpoint", "it is damaged, or not one of fairseq's"),
        ({"weight": torch.zeros(2)}, "it is damaged, or not one of fairseq's"),
        ({"path": Path("x")}, "it holds objects other than tensors and fairseq's settings"),
    ],
)
def test_an_unusable_checkpoint_is_told_in_one_line(tmp_path, content, reason):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert str(error.value).startswith(f"{path}: cannot load this checkpoint: {reason}")
    assert "\n" not in str(error.value)
    with pytest.raises(Exception) as unpatched:  # noqa: B017, PT011 - whatever fairseq lets through
        checkpoint_utils.load_checkpoint_to_cpu.__wrapped__(str(path))
    assert not isinstance(unpatched.value, InputError)


# check_restore_file, replay_scheduler_step


def test_fairseq_starts_afresh_where_the_file_to_restore_is_missing(command, stream_data, tmp_path, monkeypatch):
    arguments = ("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path)
    with pytest.raises(SystemExit):
        command(*arguments, "--restore-file", tmp_path / "absent.pt")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", inspect.unwrap(checkpoint_utils.load_checkpoint))
    command(*arguments, "--restore-file", tmp_path / "absent.pt")
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_loses_the_schedulers_step_at_the_end_of_an_epoch(command, stream_data, tmp_path, monkeypatch):
    # The second epoch changes next to nothing, so its validation is not the best and the rate shrinks.
    arguments = ("train", stream_data, *FLAGS, "--save-dir", tmp_path)
    command(*arguments, "--max-epoch", 2)
    resume = (*arguments, "--max-epoch", 3, "--restore-file", tmp_path / "checkpoint2.pt")
    assert {float(rate) for rate in command(*resume).metrics("lr", "train_inner")} == {5e-10}
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", inspect.unwrap(checkpoint_utils.load_checkpoint))
    assert {float(rate) for rate in command(*resume).metrics("lr", "train_inner")} == {1e-9}


def test_a_scheduler_that_is_reset_or_new_is_not_stepped(command, stream_data, tmp_path):
    arguments = ("train", stream_data, *FLAGS)
    command(*arguments, "--max-epoch", 2, "--save-dir", tmp_path / "run")
    saved = tmp_path / "run" / "checkpoint2.pt"
    reset = ("--restore-file", saved, "--reset-lr-scheduler", "--max-epoch", 3, "--save-dir", tmp_path / "run")
    finetune = ("--finetune-from-model", saved, "--max-epoch", 1, "--save-dir", tmp_path / "other")
    for more in (reset, finetune):
        assert {float(rate) for rate in command(*arguments, *more).metrics("lr", "train_inner")} == {1e-9}


# check_pretrained_model


def test_fairseq_fine_tunes_a_model_of_other_words(command, stream_data, tmp_path, monkeypatch, capsys):
    arguments = ("train", *FLAGS, "--max-epoch", 1, "--no-epoch-checkpoints")
    command(*arguments, stream_data, "--save-dir", tmp_path / "run")
    other = shutil.copytree(stream_data, tmp_path / "other")
    (other / "dict.txt").write_text((other / "dict.txt").read_text().replace("w3 ", "another "))
    finetune = (*arguments, other, "--finetune-from-model", tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(SystemExit):
        command(*finetune, "--save-dir", tmp_path / "refused")
    assert "the checkpoint's dict.txt has 24 types and is not the one of" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", inspect.unwrap(checkpoint_utils.load_checkpoint))
    assert "loading pretrained model" in command(*finetune, "--save-dir", tmp_path / "taken").text()


# check_best_metric, check_precision, ask_for_task


def refuse(command, capsys, *arguments) -> str:
    """The one line on stderr of a command that must end with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ")
    return line


def test_fairseq_finds_an_unknown_metric_after_an_epoch(command, stream_data, tmp_path, monkeypatch, capsys):
    steps = []
    train_step = trainer.Trainer.train_step
    monkeypatch.setattr(trainer.Trainer, "train_step", lambda *args: steps.append(1) or train_step(*args))
    arguments = ("train", stream_data, *FLAGS, "--max-epoch", 1, "--save-dir", tmp_path, "--best-checkpoint-metric")
    line = refuse(command, capsys, *arguments, "accuracy")
    assert "--best-checkpoint-metric accuracy is none of what is logged: loss, ppl, " in line
    assert not steps and not list(tmp_path.iterdir())
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", inspect.unwrap(checkpoint_utils.load_checkpoint))
    with pytest.raises(KeyError, match="accuracy"):
        command(*arguments, "accuracy")
    assert steps


@pytest.mark.parametrize("task", ["tagging", "classification"])
def test_metrics_of_the_other_tasks(command, tagging_data, tmp_path, capsys, task):
    model = {"tagging": "tagger", "classification": "classifier"}[task]
    flags = ("--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--criterion", f"rnndrop_{task}")
    flags += ("--arch", f"lstm_rnndrop_{model}", "--decoder-embed-dim", 4, "--decoder-hidden-size", 4)
    flags += ("--optimizer", "sgd", "--lr", 0.1, "--batch-size", 8, "--max-epoch", 1, "--best-checkpoint-metric")
    other = {"tagging": "f1_people", "classification": "f1_PER"}[task]
    line = refuse(command, capsys, "train", tagging_data, *flags, other, "--save-dir", tmp_path)
    assert f"--best-checkpoint-metric {other} is none of what is logged: loss, accuracy" in line
    own = {"tagging": "f1_PER", "classification": "f1_people"}[task]
    command("train", tagging_data, *flags, own, "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_best.pt").exists()


def test_looking_for_the_metric_changes_no_number(command, stream_data, tmp_path):
    dropout = ("--lr", 1, "--update-dropout", 0.25, "--decoder-dropout-in", 0.2)
    arguments = ("train", stream_data, *FLAGS, *dropout, "--max-epoch", 1, "--best-checkpoint-metric")
    models = []
    for metric in ("loss", "ppl"):  # for the first there is nothing to look for
        command(*arguments, metric, "--save-dir", tmp_path / metric)
        models.append(torch.load(tmp_path / metric / "checkpoint_last.pt")["model"])
    torch.testing.assert_close(*models, rtol=0, atol=0)


@pytest.mark.skipif(utils.xm is not None, reason="torch_xla is installed")
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--bf16",), "--bf16 asks fairseq for a TPU, and torch_xla is not installed"),
        (("--memory-efficient-bf16",), "--bf16 asks fairseq for a TPU"),
        (("--tpu",), "--tpu asks fairseq for a TPU"),
        (("--cpu", "--fp16"), "--fp16 needs a GPU"),
        (("--cpu", "--memory-efficient-fp16"), "--fp16 needs a GPU"),
    ],
)
def test_fairseq_has_no_words_for_precisions_that_the_machine_lacks(
    command, stream_data, tmp_path, monkeypatch, capsys, flags, line
):
    arguments = ("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path, *flags)
    assert line in refuse(command, capsys, *arguments)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(trainer.Trainer, "__init__", trainer.Trainer.__init__.__wrapped__)
    if flags == ("--cpu", "--fp16") and not torch.cuda.is_available():
        assert "Torch not compiled with CUDA" in refuse(command, capsys, *arguments)
    else:
        with pytest.raises((AttributeError, ValueError)):
            command(*arguments)


def test_fairseq_validate_needs_a_task(command, stream_data, tmp_path, monkeypatch, capsys):
    arguments = ("validate", stream_data, "--user-dir", "rnndrop_plugin", "--path", tmp_path / "absent.pt")
    assert "give the task that the model was trained for by --task" in refuse(command, capsys, *arguments)
    monkeypatch.setattr(options, "parse_args_and_arch", options.parse_args_and_arch.__wrapped__)
    with pytest.raises(KeyError, match="None"):
        command(*arguments)


# check_flags


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--arch", "absent"), "argument --arch/-a: invalid choice: 'absent'"),
        (("--task", "absent"), "argument --task: invalid choice: 'absent'"),
        (("--optimizer", "absent"), "argument --optimizer: invalid choice: 'absent'"),
        (("--recurrent-dropout-sampling", "absent"), "invalid choice: 'absent' (choose from 'step', 'sequence')"),
        (("--absent", 1), "unrecognized arguments: --absent 1"),
        (("--update-dropout", "x"), "argument --update-dropout: invalid float value: 'x'"),
        (("--tokens-per-sample", "1.5"), "argument --tokens-per-sample: invalid int value: '1.5'"),
    ],
)
def test_flags_that_are_not_known(command, stream_data, tmp_path, capsys, flags, line):
    with pytest.raises(SystemExit) as end:
        command("train", stream_data, *FLAGS, *flags, "--save-dir", tmp_path / "run")
    assert end.value.code == 2 and line in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "line", "upstream"),
    [
        (("--seed", -1), "--seed must be in [0, 2**32), got -1", ValueError),
        (("--seed", 2**32), "--seed must be in [0, 2**32), got 4294967296", ValueError),
        (("--update-freq", "2,0"), "--update-freq must be at least 1, got 0", None),
        (("--update-freq", 0), "--update-freq must be at least 1, got 0", ZeroDivisionError),
        (("--lr", -1), "--lr must not be negative, got -1.0", ValueError),
        (("--optimizer-overrides", "{lr"), "--optimizer-overrides must be a dictionary such as", None),
    ],
)
def test_fairseq_has_no_words_for_flags(command, stream_data, tmp_path, monkeypatch, capsys, flags, line, upstream):
    arguments = ("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path / "run", *flags)
    assert line in refuse(command, capsys, *arguments)
    assert not (tmp_path / "run").exists()
    if upstream:
        monkeypatch.setattr(compat, "check_flags", lambda cfg: None)
        with pytest.raises(upstream):
            command(*arguments)


@pytest.mark.parametrize("name", ["eval_lm", "validate"])
def test_fairseq_evaluates_overrides(command, stream_data, tmp_path, monkeypatch, capsys, name):
    command("train", stream_data, *FLAGS, "--max-update", 1, "--save-dir", tmp_path)
    flags = ("--batch-size", 2, *FLAGS[:4], "--path", tmp_path / "checkpoint_last.pt", "--model-overrides")
    code = f"{{'arch': open('{tmp_path}/written', 'w').name}}"
    for text in (code, "3", "{x"):
        line = refuse(command, capsys, name, stream_data, *flags, text)
        assert f"--model-overrides must be a dictionary such as {{'name': 1}}, got {text}" in line
    assert not (tmp_path / "written").exists()
    monkeypatch.setattr(compat, "check_flags", lambda cfg: None)
    command(name, stream_data, *flags, code)
    assert (tmp_path / "written").exists()


# use_newest_that_loads


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change])
def test_a_run_goes_on_from_the_newest_checkpoint_that_loads(command, stream_data, tmp_path, monkeypatch, damage):
    flags = ("--lr", 1, "--tokens-per-sample", 7, "--save-interval-updates", 2, "--save-dir")
    arguments = ("train", stream_data, *FLAGS, *flags, tmp_path / "run")
    command("train", stream_data, *FLAGS, *flags, tmp_path / "whole", "--max-update", 6)
    command(*arguments, "--max-update", 5)
    last, newest = tmp_path / "run" / "checkpoint_last.pt", tmp_path / "run" / "checkpoint_1_4.pt"
    for path in tmp_path.glob("run/checkpoint*.pt"):
        if path not in (newest, tmp_path / "run" / "checkpoint_1_2.pt"):
            damage(path)
    logged = command(*arguments, "--max-update", 6)
    (warning,) = [record.getMessage() for record in logged if record.levelname == "WARNING"]
    assert f"{last}: cannot load this checkpoint: it is damaged" in warning and f"going on from {newest}" in warning
    assert [int(n) for n in logged.metrics("num_updates", "train_inner")] == [5, 6]
    models = [torch.load(run / "checkpoint_last.pt")["model"] for run in (tmp_path / "whole", tmp_path / "run")]
    torch.testing.assert_close(*models, rtol=0, atol=0)

    for path in tmp_path.glob("run/checkpoint*.pt"):
        damage(path)
    for load in (checkpoint_utils.load_checkpoint, inspect.unwrap(checkpoint_utils.load_checkpoint)):
        monkeypatch.setattr(checkpoint_utils, "load_checkpoint", load)
        with pytest.raises(SystemExit) as end:
            command(*arguments, "--max-update", 7)
        assert end.value.code == 2


# save_progress, restore_progress (see also test_interruption.py)


def test_fairseq_goes_on_where_a_run_has_ended(command, stream_data, tmp_path, monkeypatch):
    arguments = ("train", stream_data, *FLAGS, "--max-update", 2, "--save-dir", tmp_path)
    command(*arguments)
    with pytest.raises(SystemExit):
        command(*arguments)
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", inspect.unwrap(checkpoint_utils.load_checkpoint))
    assert command(*arguments).metrics("num_updates", "train_inner") == ["3"]


def test_fairseq_forgets_the_validations_that_were_not_the_best(command, stream_data, tmp_path, monkeypatch):
    arguments = ("train", stream_data, *FLAGS, "--patience", 9, "--max-epoch", 3, "--save-dir", tmp_path)
    command(*arguments)
    # The second and the third epoch change next to nothing.
    assert torch.load(tmp_path / "checkpoint3.pt")["extra_state"]["early_stopping"]["num_runs"] == 2
    monkeypatch.setattr(trainer.Trainer, "save_checkpoint", inspect.unwrap(trainer.Trainer.save_checkpoint))
    command(*arguments, "--max-epoch", 4)
    assert "early_stopping" not in torch.load(tmp_path / "checkpoint4.pt")["extra_state"]


# copy_whole


def test_fairseq_leaves_half_a_copy(tmp_path, monkeypatch):
    def half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:2])
        raise KeyboardInterrupt

    (tmp_path / "new").write_bytes(b"new!")
    target = tmp_path / "target"
    monkeypatch.setattr(shutil, "copyfile", half)
    for copy, left in ((PathManager.copy, b"old!"), (inspect.unwrap(PathManager.copy), b"ne")):
        target.write_bytes(b"old!")
        with pytest.raises(KeyboardInterrupt):
            copy(str(tmp_path / "new"), str(target), overwrite=True)
        assert target.read_bytes() == left


# save_bad_epochs


def test_fairseq_forgets_the_epochs_that_lr_patience_has_counted():
    def schedule():
        optimizer = SGD(types.SimpleNamespace(lr=[1.0], momentum=0.0, weight_decay=0.0), [torch.zeros(1)])
        cfg = ReduceLROnPlateauLRScheduleConfig(lr=[1.0], lr_patience=2, maximize_best_checkpoint_metric=False)
        return ReduceLROnPlateauLRSchedule(omegaconf.OmegaConf.structured(cfg), optimizer)

    whole, resumed = schedule(), schedule()
    for epoch, loss in enumerate((1.0, 2.0, 2.0), 1):
        whole.step(epoch, loss)
    resumed.load_state_dict(whole.state_dict())
    assert whole.step(4, 2.0) == resumed.step(4, 2.0) == 0.1
    upstream = schedule()
    upstream.load_state_dict({name: whole.state_dict()[name] for name in ("best", "last_epoch")})
    assert upstream.step(4, 2.0) == 1.0


# report_input_errors


def fail(error: Exception, cause: Exception | None = None):
    def main(cfg, **kwargs):
        raise error from cause

    return main


CFG = omegaconf.OmegaConf.create(
    {
        "common_eval": {"model_overrides": "{}"},
        "checkpoint": {"optimizer_overrides": "{}"},
        "optimization": {"update_freq": [1], "lr": [0.1]},
        "distributed_training": {
            "distributed_init_method": None,
            "distributed_world_size": 1,
            "distributed_no_spawn": False,
        },
        "common": {"tpu": False, "seed": 1},
    }
)


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (fail(InputError("--x must be\n  1")), "--x must be 1"),
        (fail(Exception("Cannot load x."), InputError("size")), "Cannot load x: size"),
        (fail(FileNotFoundError(2, "No such file or directory", "a.pt")), "a.pt: No such file or directory"),
        (fail(OSError("Model file not found: a.pt")), "Model file not found: a.pt"),
        (fail(UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "end")), "a text is not utf-8 (byte 0xe9)"),
        (fail(AssertionError("Must specify batch size")), "Must specify batch size"),
        (fail(Exception("use --ddp-backend=legacy_ddp")), "use --ddp-backend=legacy_ddp"),
    ],
)
def test_an_error_of_the_input_ends_a_command_in_one_line(monkeypatch, capsys, main, line):
    monkeypatch.setattr(distributed_utils, "infer_init_method", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        distributed_utils.call_main(CFG, main)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    with pytest.raises(Exception) as unpatched:  # noqa: B017, PT011 - whatever it is
        distributed_utils.call_main.__wrapped__(CFG, main)
    assert not isinstance(unpatched.value, SystemExit)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AssertionError(), RuntimeError("x")])
def test_any_other_error_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(distributed_utils, "infer_init_method", lambda *_: None)
    with pytest.raises(type(error)):
        distributed_utils.call_main(CFG, fail(error))


def test_generate_is_a_command_like_the_others():
    with pytest.raises(SystemExit):
        compat._run(fail(InputError("x")), None)
    assert generate.main.func is compat._run


def test_a_command_of_a_user_prints_one_line(stream_data, tmp_path):
    command = Path(sys.executable).with_name("fairseq-train")
    arguments = (stream_data, *FLAGS, "--update-dropout", 2, "--save-dir", tmp_path / "run")
    ended = subprocess.run([command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "error: --update-dropout must be in [0, 1), got 2.0\n")


@pytest.mark.skipif(sys.gettrace() is not None, reason="hydra takes coverage for a debugger, and shows tracebacks")
def test_hydra_tells_an_input_error_without_traceback(stream_data, tmp_path):
    command = Path(sys.executable).with_name("fairseq-hydra-train")
    flags = ("--config-dir", "examples/hydra", "--config-name", "ptb_word", f"checkpoint.save_dir={tmp_path}")
    overrides = (f"task.data={stream_data}", "model.update_dropout=2", "+model.decoder_hidden_size=4")
    ended = subprocess.run([command, *flags, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "\n--update-dropout must be in [0, 1), got 2.0\n" in ended.stderr
    assert "Traceback" not in ended.stderr
