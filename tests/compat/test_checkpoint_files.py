import argparse
import inspect
import io
import pickle
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager

from rnndrop_plugin.compat import checkpoint_files
from rnndrop_plugin.errors import InputError

ROOT = Path(__file__).parents[2]


def test_the_allowed_classes_load_a_checkpoint_and_each_is_needed(command, training, tmp_path):
    command(*training, "--max-update", 1, "--save-dir", tmp_path)
    state = checkpoint_utils.load_checkpoint_to_cpu(tmp_path / "checkpoint_last.pt")
    sent = io.BytesIO()  # what one process sends to the others when they resume
    torch.save(distributed_utils._split_tensors_from_obj(state, []), sent)
    before = torch.serialization.get_safe_globals()
    try:
        sent.seek(0)
        assert torch.load(sent, weights_only=True)["cfg"] == state["cfg"]
        for left_out in checkpoint_files.CHECKPOINT_CLASSES:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(
                [cls for cls in checkpoint_files.CHECKPOINT_CLASSES if cls is not left_out]
            )
            sent.seek(0)
            with pytest.raises(pickle.UnpicklingError, match="GLOBAL"):
                torch.load(sent, weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize("trained_by", ["cpu", "triton", "reference"])
def test_a_model_is_not_bound_to_the_device_that_it_was_trained_on(command, training, tmp_path, trained_by):
    command(*training, "--cpu", "--recurrent-backend", "cpu", "--max-update", 1, "--save-dir", tmp_path)
    path = tmp_path / "checkpoint_last.pt"
    state = torch.load(path)
    state["cfg"]["model"]["recurrent_backend"] = trained_by
    torch.save(state, path)

    def backend(**options) -> str:
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], **options)
        return model.decoder.rnn.backend

    assert backend() == ("reference" if trained_by == "reference" else "auto")
    assert backend(arg_overrides={"recurrent_backend": "cpu"}) == "cpu"


def test_architectures_of_fairseq_without_a_dataclass_are_loaded(command, training, stream_data, tmp_path):
    """Whose settings are an argparse.Namespace within the configuration."""
    sizes = ("--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--decoder-out-embed-dim", 4)
    model = ("--task", "language_modeling", "--arch", "lstm_lm", *sizes, "--tokens-per-sample", 8, "--num-workers", 0)
    for updates in (1, 2):
        log = command(*training, *model, "--max-update", updates, "--save-dir", tmp_path)
        assert log.metrics("num_updates", "train") == [str(updates)]
    path = tmp_path / "checkpoint_last.pt"
    assert isinstance(torch.load(path)["cfg"]["model"], argparse.Namespace)
    flags = ("--user-dir", "rnndrop_plugin", "--task", "language_modeling", "--batch-size", 4, "--path", path)
    assert "Perplexity: " in command("eval_lm", stream_data, *flags, "--num-workers", 0).text()


def test_switching_the_protection_off_warns(monkeypatch, caplog):
    checkpoint_files.allow_checkpoint_classes()
    assert not caplog.records
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    checkpoint_files.allow_checkpoint_classes()
    assert "may run code" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it is damaged, or not one of fairseq's"),
        (b"no checkpoint", "it is damaged, or not one of fairseq's"),
        ({"weight": torch.zeros(2)}, "the file is whole, but not one of fairseq's (KeyError("),
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


def test_torch_loads_parameters_whose_bits_have_changed(command, training, tmp_path):
    command(*training, "--max-update", 1, "--save-dir", tmp_path)
    path = tmp_path / "checkpoint_last.pt"
    weight = torch.load(path)["model"]["decoder.rnn.weight_hh_l0"]
    content = weight.numpy().tobytes()
    assert path.read_bytes().count(content) == 1
    path.write_bytes(path.read_bytes().replace(content, content[::-1]))
    assert not torch.equal(torch.load(path)["model"]["decoder.rnn.weight_hh_l0"], weight)
    with pytest.raises(checkpoint_files.DamagedCheckpoint, match="it is damaged"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_a_fault_of_the_code_is_no_damage_of_the_file(tmp_path, monkeypatch):
    """Otherwise a run would go on from an older checkpoint."""

    def load(*args, **kwargs):
        raise AttributeError("a fault")

    torch.save({}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(checkpoint_files, "upstream_load", load)
    with pytest.raises(InputError, match="the file is whole, .*a fault") as error:
        checkpoint_files.load_checkpoint_to_cpu(str(tmp_path / "checkpoint.pt"))
    assert not isinstance(error.value, checkpoint_files.DamagedCheckpoint)


def test_fairseq_saves_what_it_cannot_load(tmp_path):
    path = tmp_path / "checkpoint.pt"
    logged = [(0, "_bleu_counts", "AverageMeter", {"sum": np.array([3, 1])})]
    state = {"extra_state": {"metrics": {"valid": logged}, "val_loss": np.float64(0.25)}, "args": None, "cfg": None}
    checkpoint_files.upstream_save(state, str(path))
    with pytest.raises(InputError, match="it holds objects other than tensors"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    checkpoint_utils.torch_persistent_save(state, str(path))
    saved = torch.load(path, weights_only=True)["extra_state"]
    assert saved["val_loss"] == 0.25 and saved["metrics"]["valid"][0][3]["sum"].tolist() == [3, 1]


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


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        PathManager.copy(str(tmp_path / "absent"), str(tmp_path / "target"), overwrite=True)
    assert error.value.filename == str(tmp_path / "absent")


@pytest.fixture
def full_disk():
    """A limit on the size of files takes the place of a disk that is full: the kernel refuses to write beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(tmp_path, full_disk):
    path = tmp_path / "checkpoint_last.pt"
    (tmp_path / "large").write_bytes(bytes(200_000))
    checkpoint_utils.torch_persistent_save({"epoch": 1}, str(path))
    full_disk(50_000)
    writes = (
        lambda: checkpoint_utils.torch_persistent_save({"epoch": 2, "model": torch.zeros(100_000)}, str(path)),
        lambda: PathManager.copy(str(tmp_path / "large"), str(path), overwrite=True),
    )
    for write in writes:
        with pytest.raises(OSError, match="File too large") as error:
            write()
        assert error.value.filename == str(path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint_last.pt", "large"]
        assert torch.load(path) == {"epoch": 1}


def test_fairseq_leaves_half_a_checkpoint_behind(tmp_path, full_disk, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    full_disk(50_000)
    with pytest.raises(Exception) as error:  # noqa: B017, PT011 - of torch's writer
        checkpoint_files.upstream_save({"model": torch.zeros(100_000)}, str(tmp_path / "checkpoint.pt"))
    assert "checkpoint.pt" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt.tmp"]


def test_an_override_of_no_setting_is_warned_of(command, stream_data, training, tmp_path):
    command(*training, "--optimizer", "adam", "--max-update", 1, "--save-dir", tmp_path)
    evaluation = (
        "eval_lm",
        stream_data,
        *training[2:6],
        "--path",
        tmp_path / "checkpoint_last.pt",
        "--model-overrides",
    )
    assert "to override" not in command(*evaluation, "{'recurrent_dropout_scaling': 'expected'}").text()
    warned = command(*evaluation, "{'recurrent_dropout_scalin': 'expected'}").text()
    assert "has no setting recurrent_dropout_scalin to override (--model-overrides)" in warned


def test_what_from_pretrained_overrides_is_no_mistake():
    """fairseq's hub names a tokenizer and a bpe, which are groups of settings and none themselves."""
    settings = {"model": argparse.Namespace(update_dropout=0.2), "common": {"seed": 1}, "bpe": None, "tokenizer": None}
    overrides = {"bpe": "sentencepiece", "tokenizer": "moses", "seed": 2, "update_dropout": 0.3, "update_dropou": 0.4}
    assert checkpoint_files._unknown(overrides, settings) == ["update_dropou"]
