import logging
import subprocess
import sys
import types
from pathlib import Path

import omegaconf
import pytest
import torch
from fairseq.data.iterators import ShardedIterator
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import progress_bar
from fairseq_cli import generate
from torch.multiprocessing import ProcessExitedException

from rnndrop_plugin.compat import commands, errors, versions
from rnndrop_plugin.errors import InputError

ROOT = Path(__file__).parents[2]
PLUGIN = ("--user-dir", "rnndrop_plugin")


def fail(error: Exception, cause: Exception | None = None):
    def main(cfg, **kwargs):
        raise error from cause

    return main


CFG = omegaconf.OmegaConf.create(
    {
        "common_eval": {"model_overrides": "{}"},
        "checkpoint": {"optimizer_overrides": "{}", "save_interval": 1, "write_checkpoints_asynchronously": False},
        "optimization": {"update_freq": [1], "lr": [0.1], "max_epoch": 0, "max_update": 0},
        "generation": {"beam": 5},
        "distributed_training": {
            "distributed_init_method": None,
            "distributed_world_size": 1,
            "distributed_no_spawn": False,
            "ddp_backend": "pytorch_ddp",
        },
        "criterion": None,
        "optimizer": None,
        "lr_scheduler": None,
        "ema": {"ema_decay": 0.9999, "ema_update_freq": 1},
        "common": {"cpu": False, "tpu": False, "seed": 1, "log_interval": 1},
        "dataset": {"validate_interval": 1, "max_valid_steps": None, "max_tokens": None},
    }
)


HINT = " (RNNDROP_TRACEBACK=1 shows where)"


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (fail(InputError("--x must be\n  1")), "--x must be 1"),
        (fail(Exception("Cannot load x."), InputError("size")), "Cannot load x: size"),
        (fail(FileNotFoundError(2, "No such file or directory", "a.pt")), f"a.pt: No such file or directory{HINT}"),
        (fail(OSError("Model file not found: a.pt")), f"Model file not found: a.pt{HINT}"),
        (fail(UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "end")), f"a text is not utf-8 (byte 0xe9){HINT}"),
        (fail(RuntimeError("DefaultCPUAllocator: can't allocate memory")), f"there is not enough memory{HINT}"),
        (fail(RuntimeError("Storage size calculation overflowed")), f"there is not enough memory{HINT}"),
        (fail(AssertionError("Must specify batch size")), f"Must specify batch size{HINT}"),
        (fail(Exception("use --ddp-backend=legacy_ddp")), f"use --ddp-backend=legacy_ddp{HINT}"),
        (
            fail(FloatingPointError("gradients are Nan/Inf")),
            f"gradients are Nan/Inf: the training has diverged; a lower --lr or a --clip-norm may help{HINT}",
        ),
        (fail(NotImplementedError("--post-process=x is not")), f"--post-process=x is not{HINT}"),
        (fail(ImportError("Please install fairscale")), f"Please install fairscale{HINT}"),
        (fail(omegaconf.errors.ValidationError("x is no float\n    key: y")), f"x is no float key: y{HINT}"),
        (
            fail(ValueError("Unsupported optimizer: SGD")),
            f"--memory-efficient-fp16 and --memory-efficient-bf16 need an optimizer such as adam{HINT}",
        ),
    ],
)
def test_an_error_of_the_input_ends_a_command_in_one_line(monkeypatch, capsys, main, line):
    monkeypatch.setattr(distributed_utils, "infer_init_method", lambda *_: None)
    for wanted in ("0", "1"):
        monkeypatch.setenv("RNNDROP_TRACEBACK", wanted)
        with pytest.raises(SystemExit) as end:
            distributed_utils.call_main(CFG, main)
        assert end.value.code == 2
        traceback = capsys.readouterr().err.removesuffix(f"error: {line}\n")
        assert ("raise error from cause" in traceback) == bool(traceback) == (wanted == "1")
    with pytest.raises(Exception) as unpatched:  # noqa: B017, PT011 - whatever it is
        distributed_utils.call_main.__wrapped__(CFG, main)
    assert not isinstance(unpatched.value, SystemExit)


def test_a_value_that_fairseq_refuses_is_an_error_of_the_input(monkeypatch, capsys):
    monkeypatch.setattr(distributed_utils, "infer_init_method", lambda *_: None)
    with pytest.raises(SystemExit):
        distributed_utils.call_main(CFG, lambda cfg: ShardedIterator([], num_shards=2, shard_id=2))
    assert capsys.readouterr().err == f"error: shard_id must be between 0 and num_shards{HINT}\n"


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("x"), AssertionError(), NotImplementedError(), RuntimeError("x")]
)
def test_any_other_error_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(distributed_utils, "infer_init_method", lambda *_: None)
    with pytest.raises(type(error)):
        distributed_utils.call_main(CFG, fail(error))


def test_a_job_of_hydra_goes_on_to_the_next_one_with_the_line(monkeypatch):
    """hydra prints an InputError alone without its traceback."""
    monkeypatch.setattr(errors.HydraConfig, "initialized", lambda: True)
    with pytest.raises(InputError) as error:
        errors.run(fail(AssertionError("Must specify batch size")), CFG)
    assert str(error.value) == f"Must specify batch size{HINT}"


@pytest.mark.parametrize("status", [1, 2])
def test_a_process_of_several_has_said_why_it_ended(monkeypatch, status):
    """What a process raises, errors.run has printed; torch's error of the process would follow it."""

    def train(cfg, main, **kwargs):
        torch.multiprocessing.start_processes(lambda rank: sys.exit(status), nprocs=2, start_method="fork")

    monkeypatch.setattr(commands, "upstream_call_main", train)
    with pytest.raises(SystemExit if status == errors.STATUS else ProcessExitedException) as end:
        distributed_utils.call_main(CFG, print)
    assert getattr(end.value, "code", errors.STATUS) == errors.STATUS


def test_generate_is_a_command_like_the_others(monkeypatch, capsys):
    monkeypatch.setattr(commands, "upstream_generate_main", fail(InputError("x")))
    monkeypatch.setattr(commands.flags, "check_flags", lambda cfg: None)
    with pytest.raises(SystemExit) as end:
        generate.main({})
    assert (end.value.code, capsys.readouterr().err) == (errors.STATUS, "error: x\n")


def run(command: str, *arguments) -> subprocess.CompletedProcess:
    path = Path(sys.executable).with_name(command)
    return subprocess.run([path, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_a_command_of_a_user_prints_one_line(training, tmp_path):
    ended = run("fairseq-train", *training[1:], "--update-dropout", 2, "--save-dir", tmp_path / "run")
    assert (ended.returncode, ended.stderr) == (2, "error: --update-dropout must be in [0, 1), got 2.0\n")


def test_a_command_that_fairseq_leaves_at_the_level_of_debugging_prints_one_line(stream_data, tmp_path):
    flags = (*PLUGIN, "--task", "rnndrop_language_modeling", "--path", tmp_path / "absent.pt")
    ended = run("fairseq-eval-lm", stream_data, *flags)
    told = [line for line in ended.stderr.splitlines() if not line.startswith("INFO:")]  # where fairseq logs to
    assert (ended.returncode, told) == (2, [f"error: Model file not found: {tmp_path}/absent.pt{HINT}"])


def test_the_level_of_debugging_is_kept_where_it_is_asked_for(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    monkeypatch.setenv("LOGLEVEL", "debug")
    versions.restore_log_level()
    assert root.level == logging.DEBUG
    monkeypatch.delenv("LOGLEVEL")
    versions.restore_log_level()
    assert root.level == logging.INFO


@pytest.mark.skipif(sys.gettrace() is not None, reason="hydra takes coverage for a debugger, and shows tracebacks")
def test_the_jobs_of_a_sweep_end_each_by_itself(command, stream_data, tmp_path):
    def saved(job: int, name: str) -> dict:
        return torch.load(tmp_path / str(job) / f"checkpoint_{name}.pt")["extra_state"]

    flags = ("--task", "rnndrop_language_modeling", "--arch", "lstm_rnndrop", "--criterion", "rnndrop_cross_entropy")
    flags += ("--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--tokens-per-sample", 50, "--batch-size", 4)
    flags += ("--update-dropout", 0.25)
    sgd = ("--optimizer", "sgd", "--lr", 1e-6, "--lr-scheduler", "rnndrop_plateau")
    command("train", stream_data, *PLUGIN, *flags, *sgd, "--max-epoch", 2, "--save-dir", tmp_path / "4")
    finished = (tmp_path / "4" / "checkpoint_last.pt").read_bytes()

    flags = ("-m", "--config-dir", "examples/hydra", "--config-name", "ptb_word", f"task.data={stream_data}")
    flags += ("model._name=lstm_rnndrop", "+model.decoder_embed_dim=4", "+model.decoder_hidden_size=0,4,6,-1,5")
    flags += ("task.tokens_per_sample=50", "dataset.batch_size=4", "optimization.max_epoch=3", "checkpoint.patience=9")
    flags += ("optimization.max_update=4", "optimization.lr=[1e-6]", "optimizer.lr=[1e-6]")
    folder = f"{tmp_path}/${{model.decoder_hidden_size}}"
    flags += (f"checkpoint.save_dir={folder}", f"common.log_file={folder}.log", f"hydra.sweep.dir={tmp_path}/sweep")
    ended = run("fairseq-hydra-train", *flags)

    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "\n--decoder-hidden-size must be at least 1, got 0\n" in ended.stderr  # the first one that failed
    assert "--decoder-hidden-size must be at least 1, got -1" in ended.stdout
    assert "this run has already ended, after 4 updates: --max-update is 4" in ended.stdout
    assert (tmp_path / "4" / "checkpoint_last.pt").read_bytes() == finished
    assert saved(5, "best")["best"] > saved(6, "best")["best"]  # each has its own
    for job in (5, 6):
        progress = saved(job, "last")["RnndropLanguageModelingTask"]["progress"]
        assert progress["early_stopping"] == {"best": saved(job, "best")["best"], "num_runs": 1}
        assert f"'decoder_hidden_size': {job}" in (tmp_path / f"{job}.log").read_text()
    assert "'decoder_hidden_size': 5" not in (tmp_path / "6.log").read_text()


def test_fairseq_logs_to_the_files_of_the_run_before(tmp_path, monkeypatch):
    closed = []
    writer = types.SimpleNamespace(close=lambda: closed.append("tensorboard"))
    monkeypatch.setitem(progress_bar._tensorboard_writers, "train", writer)
    monkeypatch.setattr(progress_bar, "wandb", types.SimpleNamespace(finish=lambda: closed.append("wandb")))
    aim = types.SimpleNamespace(cache_clear=lambda: closed.append("aim"))
    monkeypatch.setattr(progress_bar, "get_aim_run", aim)
    for name in ("first", "second"):
        progress_bar.progress_bar([], log_format="simple", log_file=tmp_path / name)
    handlers = [handler for handler in progress_bar.logger.handlers if isinstance(handler, logging.FileHandler)]
    assert len(handlers) == 2 and len(progress_bar._tensorboard_writers) == 1  # what fairseq leaves open
    commands.close_logs()
    assert closed == ["tensorboard", "aim", "wandb"] and not progress_bar._tensorboard_writers
    assert not set(handlers) & set(progress_bar.logger.handlers)
