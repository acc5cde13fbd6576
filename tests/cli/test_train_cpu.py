"""Several processes: real ones, over gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rnndrop_plugin.cli import train_cpu

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_cpu.py"
PLUGIN = ("--user-dir", "rnndrop_plugin")
TASK = (*PLUGIN, "--task", "rnndrop_language_modeling", "--criterion", "rnndrop_cross_entropy")
MODEL = ("--arch", "lstm_rnndrop", "--decoder-embed-dim", 8, "--decoder-hidden-size", 8, "--init-range", 0.5)
OPTIMIZATION = ("--optimizer", "adam", "--lr", 0.05, "--clip-norm", 1, "--lr-scheduler", "rnndrop_plateau")
LOGGING = ("--log-format", "json", "--log-interval", 1)


def arguments(data, save_dir, rows: int, *others) -> list[str]:
    batch = ("--batch-size", rows, "--tokens-per-sample", 7)
    flags = (data, *TASK, *MODEL, *batch, *OPTIMIZATION, *LOGGING, "--save-dir", save_dir, *others)
    return [str(flag) for flag in flags]


def start(*flags, **options) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "--processes", "2", *flags]
    return subprocess.Popen(command, cwd=SCRIPT.parents[1], stdout=subprocess.PIPE, text=True, **options)


def train(*flags) -> list[str]:
    """Train with two processes; returns the lines of the log."""
    process = start(*flags)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0, lines[-5:]
    return lines


def assert_same_metrics(lines: list[str], log, metrics: dict[str, tuple[str, ...]]) -> None:
    """Compare a log's lines with the log of one process: ``metrics`` of each tag, as far as they are printed."""
    for tag, names in metrics.items():
        prefix = "" if tag == "train_inner" else f"{tag}_"
        logged = [json.loads(line.split(" | ")[-1]) for line in lines if f" | {tag} | " in line]
        for name in names:
            expected = [float(value) for value in log.metrics(name, tag)]
            assert [float(line[prefix + name]) for line in logged] == pytest.approx(expected, abs=0.011), name
            assert len(set(expected)) > 1


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def test_two_processes_train_as_one_with_the_same_rows_does(command, stream_data, tmp_path):
    options = ("--max-epoch", 2, "--save-interval-updates", 3)
    lines = train(*arguments(stream_data, tmp_path / "two", 3, *options))
    one = command("train", *arguments(stream_data, tmp_path / "one", 6, *options))
    metrics = ("loss", "ppl", "ppl_batch_mean")
    assert_same_metrics(lines, one, {"train_inner": metrics, "train": metrics, "valid": metrics})

    saved = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert saved == sorted(path.name for path in (tmp_path / "two").iterdir()) and "checkpoint_2_9.pt" in saved
    for name in saved:
        states = [load(tmp_path / run / name) for run in ("two", "one")]
        torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=1e-5)
        tasks = [state["extra_state"]["RnndropLanguageModelingTask"] for state in states]
        assert tasks[0]["layout"] == tasks[1]["layout"]
        torch.testing.assert_close(tasks[0]["carried"], tasks[1]["carried"], rtol=0, atol=1e-5)

    # One process goes on with the state that two have left.
    resume = ("--max-epoch", 2, "--restore-file", tmp_path / "two" / "checkpoint_1_3.pt")
    logged = command("train", *arguments(stream_data, tmp_path / "resumed", 6, *resume))
    assert not [record for record in logged if record.levelname == "WARNING"]
    end = [load(tmp_path / run / "checkpoint_last.pt")["model"] for run in ("resumed", "one")]
    torch.testing.assert_close(*end, rtol=0, atol=1e-5)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(stream_data, tmp_path, monkeypatch):
    options = ("--update-freq", 3, "--disable-validation", "--lr-scheduler", "fixed", "--max-epoch", 2)
    options += ("--update-dropout", 0.25, "--hidden-dropout", 0.25, "--decoder-dropout-in", 0.2)
    (tmp_path / "a temporary folder").mkdir()  # a path with blanks
    monkeypatch.setenv("TMPDIR", str(tmp_path / "a temporary folder"))
    train(*arguments(stream_data, tmp_path / "whole", 3, *options, "--save-interval-updates", 2))
    resume = ("--restore-file", tmp_path / "whole" / "checkpoint_1_2.pt")  # in the middle of the first epoch
    lines = train(*arguments(stream_data, tmp_path / "resumed", 3, *options, *resume))
    assert not [line for line in lines if "WARNING" in line]
    whole, resumed = (load(tmp_path / run / "checkpoint_last.pt") for run in ("whole", "resumed"))
    assert whole["extra_state"]["train_iterator"] == resumed["extra_state"]["train_iterator"]
    torch.testing.assert_close(whole["model"], resumed["model"], rtol=0, atol=0)
    carried = [end["extra_state"]["RnndropLanguageModelingTask"]["carried"] for end in (whole, resumed)]
    torch.testing.assert_close(*carried, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("task", "frequency"), [("tagging", 2), pytest.param("classification", 1, marks=pytest.mark.slow)]
)
def test_two_processes_train_on_sequences_as_twice_the_batches_an_update_do(
    command, tagging_data, tmp_path, task, frequency
):
    """Of 15 batches for training and 4 for validation, one process has one less, and an update's other one counts."""
    model = {"tagging": "tagger", "classification": "classifier"}[task]
    flags = (tagging_data, *PLUGIN, "--task", f"rnndrop_{task}", "--criterion", f"rnndrop_{task}", *LOGGING)
    flags += ("--arch", f"gru_rnndrop_{model}", "--decoder-embed-dim", 12, "--decoder-hidden-size", 16)
    flags += ("--optimizer", "sgd", "--lr", 3, "--clip-norm", 5, "--max-epoch", 3, "--batch-size", 8)
    flags += ("--batch-size-valid", 11)
    lines = train(*map(str, (*flags, "--save-dir", tmp_path / "two", "--update-freq", frequency)))
    one = command("train", *flags, "--save-dir", tmp_path / "one", "--update-freq", 2 * frequency)
    metrics = ("loss", "accuracy")
    assert_same_metrics(lines, one, {"train_inner": metrics, "train": metrics, "valid": (*metrics, "f1")})
    two, one = (load(tmp_path / run / "checkpoint_last.pt")["model"] for run in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_no_thread_of_the_processes_together_outlives_the_training(stream_data, tmp_path):
    """One that still holds a tensor when the interpreter ends would abort the process."""
    code = "import sys; from pathlib import Path; from rnndrop_plugin.cli import train_cpu; "
    code += "train_cpu.train(0, 1, sys.argv[1], sys.argv[2:]); "
    code += "print(*(path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')))"
    flags = arguments(stream_data, tmp_path / "saved", 3, "--max-epoch", 1, "--no-save")
    command = [sys.executable, "-c", code, str(tmp_path / "init"), *flags]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    lines = subprocess.check_output(command, cwd=SCRIPT.parents[1], text=True, env=environment).splitlines()
    assert "done training" in lines[-2] and "gloo" not in lines[-1], lines[-5:]


def workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize("how", ["a process dies", pytest.param("Ctrl-C", marks=pytest.mark.slow)])
def test_a_run_ends_with_one_of_its_processes_and_all_end_with_it(stream_data, tmp_path, how):
    process = start(*arguments(stream_data, tmp_path, 3, "--no-save"), stderr=subprocess.PIPE)
    while "train_inner" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    pids = workers(process)
    assert len(pids) == 2
    os.kill(*((pids[1], signal.SIGKILL) if how == "a process dies" else (process.pid, signal.SIGINT)))
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.terminate()
    assert process.returncode == (1 if how == "a process dies" else 130)
    assert ("train_cpu.py: error: process 1 terminated with signal SIGKILL" in stderr) == (how == "a process dies")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (6, "3"), (7, "3")])
def test_the_processes_share_the_cores(call, monkeypatch, cores, threads):
    """And use no GPU, nor more than the threads that are asked for."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found = []

    def spawn(*args, **kwargs):
        found.append((os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]))
        return SimpleNamespace(join=lambda grace_period: True, processes=[])

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    flags = ("--processes", 2, "data", "--arch", "lstm_rnndrop")
    assert call(train_cpu, *flags)[0] == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert call(train_cpu, *flags)[0] == 0
    assert found == [(threads, ""), ("5", "")]


@pytest.mark.parametrize("processes", ["0", "-1", "two", ""])
def test_bad_arguments(call, processes):
    status, out, err = call(train_cpu, "--processes", processes, "data")
    assert (status, out) == (2, "")
    assert "is not a whole number of at least 1" in err or "expected one argument" in err


@pytest.mark.slow
def test_bad_input_is_told_once(stream_data, tmp_path):
    process = start(*arguments(stream_data, tmp_path, 3, "--update-dropout", 2), stderr=subprocess.STDOUT)
    told, _ = process.communicate(timeout=120)
    assert (process.returncode, told.count("error: --update-dropout must be in [0, 1), got 2.0\n")) == (2, 1)


@pytest.mark.slow
def test_bad_input_of_another_process_is_told(stream_data, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "__init__.py").write_text(
        "import sys\n"
        "from rnndrop_plugin.errors import InputError\n"
        "from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask\n"
        "def load_dataset(*args, **kwargs):\n"
        "    raise InputError('found by the second process')\n"
        "if sys.argv[sys.argv.index('--distributed-rank') + 1] == '1':\n"
        "    RnndropLanguageModelingTask.load_dataset = load_dataset\n"
    )
    process = start(*arguments(stream_data, tmp_path, 2, "--user-dir", own), stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, told.count("error: found by the second process\n")) == (2, 1)
