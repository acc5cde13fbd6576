import errno
import shutil
import types
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq_cli import train
from omegaconf import OmegaConf

from rnndrop_plugin.compat import precision, resume
from rnndrop_plugin.compat.checkpoint_files import DamagedCheckpoint
from rnndrop_plugin.compat.source import find_source, load_newest_undamaged
from rnndrop_plugin.errors import InputError

LAST = "checkpoint_last.pt"


def save(monkeypatch, task, processes: int = 1) -> list:
    """What happens when the task's state is saved; ``gather`` of the task may add to it."""
    calls = task.calls = []
    trainer = types.SimpleNamespace(
        data_parallel_world_size=processes, data_parallel_process_group="group", lr_scheduler=None, task=task
    )
    trainer.get_model = lambda: torch.nn.Linear(1, 1)
    trainer.cfg = types.SimpleNamespace(model=OmegaConf.create({"units": 1, "sizes": [1]}))
    monkeypatch.setattr(resume, "upstream_save", lambda *_: calls.append(trainer.task.get_checkpoint_dict()))
    cfg = types.SimpleNamespace(best_checkpoint_metric="loss", maximize_best_checkpoint_metric=False)
    resume.save_checkpoint(cfg, trainer, None, None)
    return calls


def test_every_process_gathers_what_the_first_one_saves(monkeypatch):
    class Task:
        def gather_state(self, group):
            self.calls.append(group)

        def get_checkpoint_dict(self):
            return "saved"

    assert save(monkeypatch, Task(), processes=1) == ["saved"]
    assert save(monkeypatch, Task(), processes=2) == ["group", "saved"]


def test_a_task_of_fairseq_keeps_what_patience_has_counted(monkeypatch):
    resume.forget_scores()
    task = TranslationTask(TranslationConfig(), Dictionary(), Dictionary())
    for counted in (1, 2):  # at each checkpoint anew
        monkeypatch.setattr(train.should_stop_early, "num_runs", counted, raising=False)
        (saved,) = save(monkeypatch, task)
        progress = {"early_stopping": {"num_runs": counted}, "metric": "the lowest loss"}
        progress |= {"trained": ["weight", "bias"], "model": {"units": 1}}
        assert saved == {"TranslationTask": {"progress": progress, "dictionaries": None}}


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


@pytest.mark.parametrize("scheduler", ["rnndrop_plateau", "reduce_lr_on_plateau"])
def test_another_metric_has_another_best(command, training, tmp_path, scheduler):
    """A perplexity is never as low as the best loss."""
    arguments = (*training, "--save-dir", tmp_path, "--lr", 0.5, "--patience", 1, "--no-epoch-checkpoints")
    arguments += ("--lr-scheduler", scheduler)
    command(*arguments, "--max-epoch", 2)
    log = command(*arguments, "--best-checkpoint-metric", "ppl", "--max-epoch", 4)
    assert "looked for the lowest loss and do not count: now the aim is the lowest ppl" in log.text()
    perplexities = [float(value) for value in log.metrics("ppl", "valid")]
    assert torch.load(tmp_path / "checkpoint_last.pt")["extra_state"]["best"] == pytest.approx(min(perplexities))
    assert len(perplexities) == 2
    assert {float(rate) for rate in log.metrics("lr", "train_inner")} == {0.5}


@pytest.mark.parametrize("reset", ["--reset-meters", "--reset-optimizer"])
def test_what_patience_has_counted_is_reset(command, training, tmp_path, reset):
    arguments = (*training, "--patience", 9, "--no-epoch-checkpoints", "--save-dir", tmp_path, "--max-epoch")
    command(*arguments, 3)
    command(*arguments, 4, reset)
    extra_state = torch.load(tmp_path / LAST)["extra_state"]
    counted = extra_state["RnndropLanguageModelingTask"]["progress"]["early_stopping"]
    assert counted == {"best": extra_state["val_loss"], "num_runs": 0}


def test_a_scheduler_that_is_reset_or_new_is_not_stepped(command, training, tmp_path):
    arguments = training
    command(*arguments, "--max-epoch", 2, "--save-dir", tmp_path / "run")
    saved = tmp_path / "run" / "checkpoint2.pt"
    reset = ("--restore-file", saved, "--reset-lr-scheduler", "--max-epoch", 4, "--save-dir", tmp_path / "run")
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


def test_checkpoints_without_the_last_one_are_told_of(command, training, tmp_path):
    arguments = (*training, "--lr", 1, "--tokens-per-sample", 7, "--save-dir", tmp_path, "--max-update", 1)
    assert "begins anew and replaces" not in command(*arguments).text()
    (tmp_path / "checkpoint_last.pt").rename(tmp_path / "checkpoint_9.pt")
    logged = command(*arguments).text()
    assert f"{tmp_path} has checkpoint" in logged and "but no checkpoint_last.pt: the run begins anew" in logged


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


def test_a_fine_tuned_run_goes_on_from_the_newest_checkpoint_that_loads(tmp_path):
    """fairseq would not take --finetune-from-model with the --restore-file that names the checkpoint."""
    for name in (LAST, "checkpoint1.pt"):
        (tmp_path / name).touch()
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path), finetune_from_model="other.pt"))
    tried = []

    def load(cfg, trainer):
        tried.append((cfg.restore_file, cfg.finetune_from_model))
        if len(tried) == 1:
            raise DamagedCheckpoint("damaged")

    trainer = types.SimpleNamespace(checkpoint_suffix="")
    source = find_source(cfg, "")
    assert source.own  # not the model that it began with
    load_newest_undamaged(load, cfg, trainer, source)
    assert tried == [(LAST, "other.pt"), (str(tmp_path / "checkpoint1.pt"), None)]
    assert (cfg.restore_file, cfg.finetune_from_model) == (LAST, "other.pt")  # which checkpoints keep


def test_a_damaged_checkpoint_that_was_asked_for_is_not_replaced_by_another(tmp_path):
    for name in ("asked.pt", "checkpoint1.pt"):
        (tmp_path / name).touch()
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path), restore_file=str(tmp_path / "asked.pt")))
    tried = []

    def load(cfg, trainer):
        tried.append(cfg.restore_file)
        raise DamagedCheckpoint("damaged")

    with pytest.raises(DamagedCheckpoint):
        load_newest_undamaged(load, cfg, types.SimpleNamespace(checkpoint_suffix=""), find_source(cfg, ""))
    assert tried == [str(tmp_path / "asked.pt")]


def test_a_checkpoint_of_the_runs_own_by_another_spelling_of_its_folder(tmp_path):
    for folder in ("run", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "checkpoint1.pt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder, own in (("run", True), ("link", True), ("other", False)):
        for save_dir in (f"{tmp_path}/run", f"{tmp_path}/run/"):
            cfg = CheckpointConfig(save_dir=save_dir, restore_file=f"{tmp_path}/{folder}/checkpoint1.pt")
            assert find_source(cfg, "").own is own


def test_fairseq_goes_on_where_a_run_has_ended(command, training, tmp_path, unpatch):
    arguments = (*training, "--max-update", 2, "--save-dir", tmp_path)
    command(*arguments)
    logged = command(*arguments)
    assert "this run has already ended, after 2 updates: --max-update is 2" in logged.text()
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


def test_a_run_from_the_checkpoint_of_another_one_begins_to_count_anew(command, training, tmp_path, refuse):
    arguments = (*training, "--patience", 2, "--lr-shrink", 0.9)
    stopped = command(*arguments, "--max-epoch", 9, "--save-dir", tmp_path / "first")
    assert "early stop since" in stopped.text() and stopped.metrics("num_updates", "train")[-1] == "6"
    first = tmp_path / "first" / "checkpoint_last.pt"
    state = torch.load(first)
    state["extra_state"]["best"] = state["extra_state"]["RnndropLanguageModelingTask"]["progress"]["early_stopping"][
        "best"
    ] = state["optimizer_history"][-1]["lr_scheduler_state"]["best"] = 1.0
    torch.save(state, first)

    other = (*arguments, "--restore-file", first, "--save-dir", tmp_path / "second")
    logged = command(*other, "--max-epoch", 9)
    assert "early stop since" in logged.text()  # three more epochs, of which the first is the best
    assert logged.metrics("num_updates", "train") == ["8", "10", "12"]
    assert torch.load(tmp_path / "second" / "checkpoint_last.pt")["extra_state"]["best"] > 4
    assert (tmp_path / "second" / "checkpoint_best.pt").exists()
    saved_rate = state["optimizer_history"][-1]["lr_scheduler_state"]["lr"]
    assert float(logged.metrics("lr", "train_inner")[0]) == pytest.approx(saved_rate)

    assert "nothing is left to train: --restore-file" in refuse(*other, "--max-epoch", 3)
    line = refuse(*other, "--max-epoch", 9, "--max-update", 5)
    assert "counts 6, --max-update is 5 (--reset-optimizer counts from 0)" in line
    again = command(*other, "--max-epoch", 4, "--max-update", 5, "--reset-optimizer")
    assert again.metrics("num_updates", "train") == ["2"]


def test_a_checkpoint_is_read_once(command, training, tmp_path, monkeypatch):
    arguments = (*training, "--no-epoch-checkpoints", "--save-dir", tmp_path / "run", "--max-epoch")
    command(*arguments, 1)
    reads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **kwargs: reads.append(file.name) or load(file, **kwargs))
    command(*arguments, 2)
    assert reads == [f"{tmp_path}/run/checkpoint_last.pt"]
    finetune = ("--finetune-from-model", tmp_path / "run" / "checkpoint_best.pt", "--save-dir", tmp_path / "other")
    command(*training, *finetune, "--max-epoch", 1)
    assert reads[1:] == [f"{tmp_path}/run/checkpoint_best.pt"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_is_no_damage_ends_a_resume(command, training, tmp_path, monkeypatch, refuse, error, reason):
    arguments = (*training, "--save-interval-updates", 1, "--save-dir", tmp_path)
    if not list(tmp_path.iterdir()):
        command(*arguments, "--max-update", 2)
    before = sorted(tmp_path.iterdir())

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    if reason is None:
        with pytest.raises(KeyboardInterrupt):
            command(*arguments, "--max-update", 3)
    else:
        line = refuse(*arguments, "--max-update", 3)
        assert line == f"error: {tmp_path}/checkpoint_last.pt: cannot load this checkpoint: {reason}"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("flag", ["--reset-optimizer", "--reset-dataloader", "--restore-file", "--continue-once"])
def test_flags_that_exclude_each_other(command, training, tmp_path, refuse, unpatch, flag):
    more = (flag, tmp_path / "one.pt") if flag in ("--restore-file", "--continue-once") else (flag,)
    arguments = (*training, "--finetune-from-model", tmp_path / "other.pt", *more, "--save-dir", tmp_path / "run")
    assert f"--finetune-from-model begins anew by itself: leave out {flag}" in refuse(*arguments)
    unpatch(checkpoint_utils, "load_checkpoint")
    unpatch(distributed_utils, "call_main")
    if flag != "--continue-once":  # it goes before the other one there, without a word
        with pytest.raises(ValueError, match="can not be"):
            command(*arguments)


def test_a_run_that_another_ones_checkpoint_began_goes_on_from_its_own(command, training, tmp_path):
    command(*training, "--max-update", 1, "--save-dir", tmp_path / "first")
    more = ("--continue-once", tmp_path / "first" / LAST, "--patience", 9, "--save-dir", tmp_path / "second")
    assert command(*training, *more, "--max-update", 2).metrics("num_updates", "train_inner") == ["2"]
    logged = command(*training, *more, "--max-update", 2)
    assert "this run has already ended, after 2 updates: --max-update is 2" in logged.text()


@pytest.mark.parametrize("fp32", [(), ("--ema-fp32",)])
def test_an_average_of_parameters_can_be_added_at_a_resume(command, training, tmp_path, unpatch, fp32):
    rate, decay = ("--lr", 1), ("--store-ema", "--ema-decay", 0.75, *fp32)
    arguments = (*training, *rate, "--save-dir", tmp_path, "--max-update")
    command(*arguments, 1)
    plain = shutil.copy(tmp_path / "checkpoint_last.pt", tmp_path / "plain.pt")
    states = [torch.load(plain)]
    for update in (2, 3):
        logged = command(*arguments, update, *decay)
        assert ("the checkpoint has no average of parameters" in logged.text()) == (update == 2)
        states.append(torch.load(tmp_path / "checkpoint_last.pt"))
    average = states[0]["model"]
    for state in states[1:]:
        average = {name: 0.75 * average[name] + 0.25 * state["model"][name] for name in average}
        torch.testing.assert_close(state["extra_state"]["ema"], average)
    assert "has an average of parameters, which is lost" in command(*arguments, 4).text()
    unpatch(checkpoint_utils, "load_checkpoint")
    with pytest.raises(KeyError, match="model"):
        command(*arguments, 2, *decay, "--restore-file", plain)


def test_an_average_starts_from_a_checkpoint_that_has_one(command, training, tmp_path, refuse, unpatch):
    arguments = (*training, "--lr", 1, "--max-update", 1, "--store-ema", "--ema-decay", 1, "--save-dir")
    command(*training, "--max-update", 1, "--save-dir", tmp_path / "plain")
    command(*arguments, tmp_path / "averaged")
    seed = ("--ema-seed-model", tmp_path / "averaged" / "checkpoint_last.pt")
    command(*arguments, tmp_path / "seeded", "--seed", 2, *seed)
    averages = [
        torch.load(tmp_path / name / "checkpoint_last.pt")["extra_state"]["ema"] for name in ("averaged", "seeded")
    ]
    torch.testing.assert_close(*averages, rtol=0, atol=0)
    seed = ("--ema-seed-model", tmp_path / "plain" / "checkpoint_last.pt")
    line = refuse(*arguments, tmp_path / "refused", *seed)
    assert line == f"error: --ema-seed-model {seed[1]}: the checkpoint has no average of parameters (--store-ema)"
    unpatch(checkpoint_utils, "load_ema_from_checkpoint")
    with pytest.raises(KeyError, match="ema"):
        command(*arguments, tmp_path / "refused", *seed)


@pytest.mark.parametrize("flags", [("--bf16",), ("--store-ema", "--ema-decay", 0.75, "--ema-update-freq", 2)])
def test_fairseq_forgets_what_a_bit_for_bit_resume_needs(command, training, tmp_path, monkeypatch, flags):
    """The parameters in float32, and the updates since the last average."""

    def run(name: str, *updates: int) -> dict:
        for update in updates:
            arguments = ("--optimizer", "adam", "--lr", 1e-3, *flags, "--save-dir", tmp_path / name)
            command(*training, *arguments, "--max-update", update)
        state = torch.load(tmp_path / name / "checkpoint_last.pt")
        return state["model"] | {f"ema.{name}": p for name, p in state["extra_state"].get("ema", {}).items()}

    def differ(one: dict, other: dict) -> bool:
        return any(not torch.equal(one[name], other[name]) for name in one)

    whole = run("whole", 6)
    assert not differ(whole, run("resumed", 3, 5, 6))
    if flags == ("--bf16",):
        monkeypatch.setattr(_FP16OptimizerMixin, "load_state_dict", precision.upstream_load_state_dict)
    else:
        monkeypatch.setattr(checkpoint_utils, "load_checkpoint", resume.upstream_load)
    assert differ(whole, run("upstream", 3, 5, 6))


def test_an_average_in_single_precision_of_a_model_in_half_goes_on_bit_for_bit(command, training, tmp_path):
    flags = ("--optimizer", "adam", "--lr", 1e-3, "--bf16", "--store-ema", "--ema-decay", 0.75, "--ema-fp32")
    averages = []
    for name, updates in (("whole", (6,)), ("resumed", (3, 6))):
        for update in updates:
            command(*training, *flags, "--save-dir", tmp_path / name, "--max-update", update)
        averages.append(torch.load(tmp_path / name / LAST)["extra_state"]["ema_fp32_params"])
    assert {average.dtype for average in averages[0].values()} == {torch.float32}
    torch.testing.assert_close(*averages, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (("--decoder-freeze-embed",), (), " (such as decoder.embed_tokens.weight)"),
        ((), ("--recurrent-biases", 1), " (such as decoder.rnn.bias_hh_l0)"),
        (
            ("--decoder-freeze-embed",),
            ("--recurrent-biases", 1),
            "decoder.embed_tokens.weight, decoder.rnn.bias_hh_l0)",
        ),
    ],
)
def test_an_optimizer_of_other_parameters(command, training, tmp_path, refuse, before, after, names):
    arguments = (*training, "--optimizer", "adam", "--lr", 1e-3)
    command(*arguments, *before, "--save-dir", tmp_path, "--max-update", 1)
    for flags in (("--save-dir", tmp_path), ("--save-dir", tmp_path / "new", "--restore-file", tmp_path / LAST)):
        line = refuse(*arguments, *after, *flags, "--max-update", 2)
        assert "was for other trained parameters: --reset-optimizer begins it anew" in line
        assert line.endswith(names) or len(before) + len(after) < 3
    command(*arguments, *after, "--save-dir", tmp_path, "--max-update", 1, "--reset-optimizer")


@pytest.mark.parametrize("schedule", ["cosine", "reduce_lr_on_plateau", "rnndrop_plateau"])
def test_a_schedule_other_than_that_of_the_checkpoint(command, training, tmp_path, refuse, schedule):
    arguments = (*training, "--save-dir", tmp_path, "--lr-scheduler")
    command(*arguments, "fixed", "--max-update", 1)
    assert "the checkpoint is of another --lr-scheduler" in refuse(*arguments, schedule, "--max-update", 2)
    command(*arguments, schedule, "--max-update", 2, "--reset-lr-scheduler")


def test_a_run_that_goes_on_with_other_settings_is_told(command, training, tmp_path, monkeypatch):
    arguments = (*training, "--save-dir", tmp_path, "--max-epoch")
    command(*arguments, 1, "--update-dropout", 0.25)
    assert "other settings" not in command(*arguments, 2, "--update-dropout", 0.25).text()
    line = f"{tmp_path} has the checkpoint of a run with other settings: update_dropout is 0.5, was 0.25"
    assert line in command(*arguments, 3, "--update-dropout", 0.5).text()
    monkeypatch.setattr(resume.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(resume.HydraConfig, "get", lambda: types.SimpleNamespace(mode=resume.RunMode.MULTIRUN))
    with pytest.raises(InputError, match="give each job a folder of its own"):
        command(*arguments, 3)
