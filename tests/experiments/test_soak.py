"""The soak test: what it kills, what it compares; a real one in the slow tests."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import soak

STATE = {"model": {"weight": torch.ones(2)}, "last_optimizer_state": {"step": torch.tensor(3)}}


def write_run(folder: Path, loss: str = "2.5", state: dict = STATE) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "checkpoints" / "checkpoint_last.pt")
    line = f'| INFO | train_inner | {{"num_updates": "10", "loss": "{loss}"}}\n'
    (folder / "train.log").write_text(f"{line}| INFO | valid | {{\n{line}")  # killed in a line, and repeated
    return folder


def test_difference(tmp_path):
    whole = write_run(tmp_path / "whole")
    assert soak.difference(whole, write_run(tmp_path / "same")) is None
    assert "losses" in soak.difference(whole, write_run(tmp_path / "loss", loss="2.51"))
    changed = {**STATE, "model": {"weight": torch.tensor([1.0, 1 + 2**-23])}}
    assert soak.difference(whole, write_run(tmp_path / "model", state=changed)) == "checkpoint_last.pt: model"
    stepped = {**STATE, "last_optimizer_state": {"step": torch.tensor(4)}}
    assert soak.difference(whole, write_run(tmp_path / "step", state=stepped)) == (
        "checkpoint_last.pt: last_optimizer_state"
    )
    more = write_run(tmp_path / "more")
    (more / "checkpoints" / "checkpoint1.pt").write_bytes(b"")
    assert soak.difference(whole, more) == "files: checkpoint1.pt"


@pytest.mark.parametrize(
    "line", ['{"num_updates": "10", "loss": "2.51"}', '{"valid_num_updates": "10", "valid_loss": "2.5"}']
)
def test_a_loss_that_the_uninterrupted_run_does_not_have(tmp_path, line):
    """An update that was made again after a kill with another loss, or another validation."""
    whole, killed = write_run(tmp_path / "whole"), write_run(tmp_path / "killed")
    with (killed / "train.log").open("a") as log:
        log.write(f"| INFO | a tag | {line}\n")
    assert "losses" in soak.difference(whole, killed)


def test_kill(tmp_path):
    def sleeping(seconds: float) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])

    (tmp_path / "checkpoints").mkdir()
    assert soak.kill(sleeping(600), tmp_path, 0, aim=False) is False
    assert soak.kill(sleeping(0), tmp_path, 60, aim=False) is None
    (tmp_path / "checkpoints" / "checkpoint1.pt.tmp").write_bytes(b"")  # left by an earlier kill
    assert soak.kill(sleeping(0.5), tmp_path, 0, aim=True) is None
    writes = "from pathlib import Path; import sys, time; Path(sys.argv[1]).write_bytes(b'half'); time.sleep(600)"
    path = tmp_path / "checkpoints" / "checkpoint_last.pt.tmp"
    assert soak.kill(subprocess.Popen([sys.executable, "-c", writes, path]), tmp_path, 0, aim=True) is True


def test_a_training_that_something_else_kills_has_failed(tmp_path):
    (tmp_path / "train.log").write_text("its last line\n")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process.kill()
    with pytest.raises(ValueError, match="fairseq-train: exit status -9: its last line"):
        soak.end(process, tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--kills", 0), "'0' is not a whole number of at least 1"),
        (("--data", "absent"), "absent"),
        (("--no-save", "--max-epoch", 1), "the uninterrupted run has left no checkpoint to compare"),
        (("--update-dropout", 2), "fairseq-train: exit status 2: error: --update-dropout must be in [0, 1), got 2.0"),
    ],
)
def test_bad_input(call, stream_data, args, words):
    status, out, err = call(soak, "--data", stream_data, *args)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]


@pytest.mark.slow
def test_three_kills(call, stream_data):
    sizes = ("--decoder-embed-dim", 8, "--decoder-hidden-size", 8, "--save-interval-updates", 3)
    status, stdout, stderr = call(soak, "--kills", 3, "--data", stream_data, *sizes)
    assert status == 0, stderr
    assert "3 kills" in stdout.splitlines()[-1] and ": 0 of " in stdout.splitlines()[-1]
