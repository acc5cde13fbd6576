import shutil
import types
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from rnndrop_plugin.compat import resume


def test_every_process_gathers_what_the_first_one_saves(monkeypatch):
    calls = []
    monkeypatch.setattr(resume, "upstream_save", lambda *_: calls.append("saved"))
    for processes in (1, 2):
        process = types.SimpleNamespace(
            data_parallel_world_size=processes,
            data_parallel_process_group="group",
            task=types.SimpleNamespace(gather_state=calls.append),
        )
        resume.save_checkpoint(None, process, None, None)
    assert calls == ["saved", "group", "saved"]


def test_fairseq_starts_afresh_where_the_file_to_restore_is_missing(command, training, tmp_path, unpatch):
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path)
    with pytest.raises(SystemExit):
        command(*arguments, "--restore-file", tmp_path / "absent.pt")
    assert not list(tmp_path.iterdir())
    unpatch(checkpoint_utils, "load_checkpoint")
    command(*arguments, "--restore-file", tmp_path / "absent.pt")
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_loses_the_schedulers_step_at_the_end_of_an_epoch(command, training, tmp_path, unpatch):
    # The second epoch changes next to nothing, so its validation is not the best and the rate shrinks.
    arguments = (*training, "--save-dir", tmp_path)
    command(*arguments, "--max-epoch", 2)
    resume = (*arguments, "--max-epoch", 3, "--restore-file", tmp_path / "checkpoint2.pt")
    assert {float(rate) for rate in command(*resume).metrics("lr", "train_inner")} == {5e-10}
    unpatch(checkpoint_utils, "load_checkpoint")
    assert {float(rate) for rate in command(*resume).metrics("lr", "train_inner")} == {1e-9}


def test_a_scheduler_that_is_reset_or_new_is_not_stepped(command, training, tmp_path):
    arguments = training
    command(*arguments, "--max-epoch", 2, "--save-dir", tmp_path / "run")
    saved = tmp_path / "run" / "checkpoint2.pt"
    reset = ("--restore-file", saved, "--reset-lr-scheduler", "--max-epoch", 3, "--save-dir", tmp_path / "run")
    finetune = ("--finetune-from-model", saved, "--max-epoch", 1, "--save-dir", tmp_path / "other")
    for more in (reset, finetune):
        assert {float(rate) for rate in command(*arguments, *more).metrics("lr", "train_inner")} == {1e-9}


def test_fairseq_fine_tunes_a_model_of_other_words(command, stream_data, training, tmp_path, capsys, unpatch):
    arguments = ("train", *training[2:], "--max-epoch", 1, "--no-epoch-checkpoints")
    command(*arguments, stream_data, "--save-dir", tmp_path / "run")
    other = shutil.copytree(stream_data, tmp_path / "other")
    (other / "dict.txt").write_text((other / "dict.txt").read_text().replace("w3 ", "another "))
    finetune = (*arguments, other, "--finetune-from-model", tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(SystemExit):
        command(*finetune, "--save-dir", tmp_path / "refused")
    assert "the checkpoint's dict.txt has 24 types and is not the one of" in capsys.readouterr().err
    unpatch(checkpoint_utils, "load_checkpoint")
    assert "loading pretrained model" in command(*finetune, "--save-dir", tmp_path / "taken").text()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change])
def test_a_run_goes_on_from_the_newest_checkpoint_that_loads(command, training, tmp_path, damage, refuse, unpatch):
    flags = ("--lr", 1, "--tokens-per-sample", 7, "--save-interval-updates", 2, "--save-dir")
    arguments = (*training, *flags, tmp_path / "run")
    command(*training, *flags, tmp_path / "whole", "--max-update", 6)
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
    assert f"{last}: cannot load this checkpoint: it is damaged" in refuse(*arguments, "--max-update", 7)
    unpatch(checkpoint_utils, "load_checkpoint")
    refuse(*arguments, "--max-update", 7)


def test_fairseq_goes_on_where_a_run_has_ended(command, training, tmp_path, unpatch):
    arguments = (*training, "--max-update", 2, "--save-dir", tmp_path)
    command(*arguments)
    logged = command(*arguments)
    assert "this run has ended before, after 2 updates: --max-update is 2" in logged.text()
    assert logged.metrics("num_updates", "train_inner") == []
    unpatch(checkpoint_utils, "load_checkpoint")
    assert command(*arguments).metrics("num_updates", "train_inner") == ["3"]


def test_fairseq_forgets_the_validations_that_were_not_the_best(command, training, tmp_path, unpatch):
    plateau = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", 2, "--lr", 1e-6)
    arguments = (*training, *plateau, "--patience", 9, "--save-dir", tmp_path, "--max-epoch")
    command(*arguments, 3)
    saved = torch.load(tmp_path / "checkpoint3.pt")
    progress = saved["extra_state"]["RnndropLanguageModelingTask"].pop("progress")
    assert progress["early_stopping"]["num_runs"] == 2

    def rates(*more) -> set[float]:
        return {float(rate) for rate in command(*arguments, 5, *more).metrics("lr", "train_inner")}

    # All epochs but the first change next to nothing: the fifth begins after a third one that is not the best.
    assert rates() == {1e-6, 5e-7}
    assert torch.load(tmp_path / "checkpoint5.pt")["extra_state"]["best"] == progress["early_stopping"]["best"]

    saved["extra_state"]["early_stopping"] = progress["early_stopping"]  # where they were in older checkpoints
    saved["optimizer_history"][-1]["lr_scheduler_state"]["num_bad_epochs"] = progress["bad_epochs"]
    torch.save(saved, tmp_path / "older.pt")
    assert rates("--restore-file", tmp_path / "older.pt") == {1e-6, 5e-7}
    assert "early stop since" in command(*arguments, 9, "--patience", 5, "--restore-file", tmp_path / "older.pt").text()

    unpatch(checkpoint_utils, "load_checkpoint")
    resume.forget_scores()
    assert rates("--restore-file", tmp_path / "checkpoint3.pt") == {1e-6}
