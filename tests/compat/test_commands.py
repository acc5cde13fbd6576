import subprocess
import sys
from pathlib import Path

import omegaconf
import pytest
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import generate

from rnndrop_plugin.compat import errors
from rnndrop_plugin.errors import InputError

ROOT = Path(__file__).parents[2]


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
        generate.main.func(fail(InputError("x")), None)
    assert generate.main.func is errors.run


def test_a_command_of_a_user_prints_one_line(training, tmp_path):
    command = Path(sys.executable).with_name("fairseq-train")
    arguments = (*training[1:], "--update-dropout", 2, "--save-dir", tmp_path / "run")
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
