"""Runs of fairseq-train, several at a time, which go on where they were interrupted (for reproduce.py)."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments import origin
from experiments.epochs import epochs, seconds
from rnndrop_plugin.files import write_text
from rnndrop_plugin.training_log import entries

TRAIN = [sys.executable, "-m", "fairseq_cli.train"]
VALIDATE = [sys.executable, "-m", "fairseq_cli.validate"]
POLL = 0.5  # seconds between two checks of a log
LAST_LINES = 15  # how many lines of a failed command's log are shown


class Run(NamedTuple):
    """One training, and the evaluation of its checkpoints.

    Attributes:
        name: the name of its folder in the experiment's folder.
        train: arguments of fairseq-train, without --save-dir.
        test: arguments of fairseq-validate, without the checkpoint and the splits.
        splits: the splits to test on; if empty, nothing is tested.
        metrics: the metrics to test, by their names in the log; the first one is reported.
        ends: whether the training is over, given the statistics of its epochs so far. If so, it is stopped. If there
            is a checkpoint of each epoch, that of the last epoch so far is tested instead of the first one of
            ``checkpoints``. None leaves the end to fairseq's flags.
        checkpoints: the checkpoints to test; the result of the first one is reported.
        needs: the run that must be finished before this one starts.
        more: returns more arguments of fairseq-train, given the result of that run.
    """

    name: str
    train: list[str]
    test: list[str]
    splits: Sequence[str]
    metrics: Sequence[str]
    ends: Callable[[list[dict]], bool] | None = None
    checkpoints: Sequence[str] = ("checkpoint_best.pt",)
    needs: str | None = None
    more: Callable[[dict], list[str]] = lambda needed: []


class Interrupted(Exception):
    """Raised in a run to make it stop."""


def read_json(path: Path) -> dict:
    """The object in a JSON file; an empty one if there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is damaged (not JSON, or no object); remove it to do this run again")
    return content


def epochs_needed(run: Run, done: list[dict]) -> int | None:
    """The number of epochs after which ``run.ends`` was True; None if it never was."""
    if run.ends is not None:
        for number in range(1, len(done) + 1):
            if run.ends(done[:number]):
                return number
    return None


def is_trained(run: Run, arguments: list[str], done: list[dict]) -> bool:
    """Whether a training is over by ``run.ends``, or has made --max-update updates."""
    if epochs_needed(run, done):
        return True
    if not done or "--max-update" not in arguments:
        return False
    return int(done[-1]["train_num_updates"]) >= int(arguments[arguments.index("--max-update") + 1])


def without_limit(arguments: list[str]) -> list[str]:
    """The arguments without --max-update and its value."""
    if "--max-update" not in arguments:
        return arguments
    at = arguments.index("--max-update")
    return arguments[:at] + arguments[at + 2 :]


def summary(result: dict) -> str:
    """A result in one line."""
    outcome = {None: "trained", True: "ended", False: "at its limit"}[result["solved"]]
    parts = [f"{outcome} after {result['updates']:,} updates in {result['seconds']:.0f} s"]
    if result["training"] is not None:
        parts.append(f"training {result['metric']} {result['training']:.2f}")
    parts += [f"{split} {value:.2f}" for split, value in result["test"].items()]
    return ", ".join(parts)


class Runs:
    """The runs of an experiment, each in a folder of its own in ``out``.

    A finished run has a result.json there. It holds the arguments ("train"), "epochs", "updates" and "seconds" of the
    training, the name of the "metric", its value on the "training" data in the last epoch (None if the training does
    not log it, as taggers do not log the F1), "solved" (whether the training was over by ``ends``; None without it),
    the "checkpoint", the metric on each split that it was tested on ("test"), all metrics by checkpoint and split
    ("tests"), and the "commits" and "devices" with which the run was performed.

    Attributes:
        results: the results of the performed runs, by their names.
        failures: the reasons why other runs have no result, by their names.
    """

    def __init__(self, runs: Sequence[Run], out: Path):
        self.runs = {run.name: run for run in runs}
        self.out = out
        self.results: dict[str, dict] = {}
        self.failures: dict[str, str] = {}
        self._stop = threading.Event()
        self._status: dict[str, str] = {}  # the status of each running run, for the progress bar
        self._lock = -1

    def perform(self, names: Sequence[str], jobs: int, finished: Callable[[], None]) -> None:
        """Perform these runs and those that they need, unless they are finished, ``jobs`` at a time.

        If a run fails, those that do not need it go on. An exception (Ctrl-C) ends the running commands.

        Args:
            finished: a function to call after each run.

        Raises:
            ValueError: the folder is in use by other such runs, or has a run with other flags.
        """
        needed = {self.runs[name].needs for name in names}
        waiting = [name for name in self.runs if name in names or name in needed]
        for name in waiting:
            self._check_flags(self.runs[name])
        running: dict[Future, str] = {}
        self.out.mkdir(parents=True, exist_ok=True)
        with (
            self._alone(),
            tqdm(total=len(waiting), unit=" runs", disable=None) as bar,
            ThreadPoolExecutor(jobs) as pool,
        ):
            try:
                while waiting or running:
                    for name in self._ready(waiting)[: jobs - len(running)]:
                        waiting.remove(name)
                        running[pool.submit(self._perform, self.runs[name])] = name
                        say(f"{name}: started")
                    done, _ = wait(running, timeout=2 * POLL, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._collect(running.pop(future), future)
                        finished()
                    for name in [name for name in waiting if self.runs[name].needs in self.failures]:
                        waiting.remove(name)
                        self.failures[name] = f"not started, for it needs {self.runs[name].needs}"
                    bar.n = len(self.results) + len(self.failures)
                    bar.set_postfix_str("; ".join(f"{name} {status}" for name, status in [*self._status.items()]))
            except BaseException:
                self._stop.set()
                raise

    def results_so_far(self) -> dict[str, dict]:
        """The results of all finished runs in their order, including runs that an earlier command performed.

        Raises:
            ValueError: a result.json is damaged.
        """
        found = {}
        for name, run in self.runs.items():
            result = read_json(self.out / name / "result.json")
            if name in self.results or result.get("train", [])[: len(run.train)] == run.train:
                found[name] = result
        return found

    def _check_flags(self, run: Run) -> None:
        """Raise ValueError if the folder has a run with other flags, as far as these are known before the start."""
        folder, planned = self.out / run.name, without_limit(run.train)
        started = without_limit(read_json(folder / "run.json").get("train", planned))
        if started[: len(planned)] != planned:
            raise _other_flags(folder, started, planned)

    def _ready(self, waiting: list[str]) -> list[str]:
        return [name for name in waiting if self.runs[name].needs in (None, *self.results)]

    def _collect(self, name: str, future: Future) -> None:
        self._status.pop(name, None)
        try:
            self.results[name] = future.result()
            say(f"{name}: {summary(self.results[name])}")
        except (OSError, ValueError) as error:
            self.failures[name] = str(error)
            say(f"{name}: failed")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder. The commands inherit the lock, which matters if they outlive this process."""
        with (self.out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.out}: this script, or a training that it left, is running in it") from None
            self._lock = file.fileno()
            yield

    def _perform(self, run: Run) -> dict:
        """Perform one run unless it is finished, and return its result.

        Raises:
            OSError, ValueError: a command fails, or the folder has a run with other arguments.
        """
        folder = self.out / run.name
        arguments = [*run.train, "--save-dir", str(folder), *run.more(self.results.get(run.needs, {}))]
        started = read_json(folder / "run.json")
        flags = without_limit(started.get("train", arguments)), without_limit(arguments)
        if flags[0] != flags[1]:
            raise _other_flags(folder, *flags)
        result = read_json(folder / "result.json")
        if result and (result["solved"] or result["train"] == arguments):
            return result

        folder.mkdir(parents=True, exist_ok=True)
        by = {"commits": origin.commit(), "devices": origin.device(cpu="--cpu" in arguments)}
        by = {key: [*dict.fromkeys([*started.get(key, []), *([now] if now else [])])] for key, now in by.items()}
        write_text(folder / "run.json", json.dumps({"train": arguments, **by}, indent=2) + "\n")
        log = folder / "train.log"
        if not is_trained(run, arguments, epochs(log)):
            self._command([*TRAIN, *arguments], log, lambda: self._look(run, log))
        done = epochs(log)
        if not done:
            raise ValueError(f"{log}: has no statistics of an epoch")
        number = epochs_needed(run, done)
        checkpoint = folder / run.checkpoints[0]
        if number and "--no-epoch-checkpoints" not in arguments:  # later epochs do not count
            done = done[:number]
            checkpoint = folder / f"checkpoint{done[-1]['epoch']}.pt"
        last, metric = done[-1], run.metrics[0]
        tests = self._test(run, folder, checkpoint) if run.splits else {}
        result = {
            "train": arguments,
            "epochs": int(last["epoch"]),
            "updates": int(last["train_num_updates"]),
            "seconds": seconds(done),
            "metric": metric,
            "training": float(last[f"train_{metric}"]) if f"train_{metric}" in last else None,
            "solved": None if run.ends is None else number is not None,
            "checkpoint": str(checkpoint),
            "test": {split: found[metric] for split, found in tests.get(checkpoint.name, {}).items()},
            "tests": tests,
            **by,
        }
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
        return result

    def _look(self, run: Run, log: Path) -> bool:
        """Update the training's status. Returns whether it is over."""
        done = epochs(log)
        if done:
            last, metric = done[-1], run.metrics[0]
            score = last.get(f"train_{metric}", last.get(f"valid_{metric}", ""))
            self._status[run.name] = f"epoch {last['epoch']} {metric} {score}"
        return epochs_needed(run, done) is not None

    def _test(self, run: Run, folder: Path, checkpoint: Path) -> dict[str, dict[str, dict[str, float]]]:
        """Test the checkpoints. Returns the metrics by checkpoint and split.

        Raises:
            ValueError: a command fails, or does not log all metrics.
        """
        self._status[run.name] = "testing"
        tests = {}
        for path in (checkpoint, *(folder / name for name in run.checkpoints[1:])):
            log = folder / f"test_{path.stem}.log"
            log.unlink(missing_ok=True)
            arguments = [*run.test, "--path", str(path), "--valid-subset", ",".join(run.splits)]
            self._command([*VALIDATE, *arguments], log)
            found = {name: value for entry in entries(log) for name, value in entry.items()}
            if missing := [f"{s}_{m}" for s in run.splits for m in run.metrics if f"{s}_{m}" not in found]:
                raise ValueError(f"{log}: has no {', '.join(missing)}")
            tests[path.name] = {
                split: {metric: float(found[f"{split}_{metric}"]) for metric in run.metrics} for split in run.splits
            }
        return tests

    def _command(self, command: list[str], log: Path, look: Callable[[], bool] = lambda: False) -> None:
        """Run a command until it ends or ``look``, which is called whenever its log has grown, returns True.

        Raises:
            Interrupted: the runs have to stop.
            ValueError: the command fails.
        """
        with log.open("a", encoding="utf-8") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # so that Ctrl-C reaches only this script, which then ends the command
                pass_fds=[self._lock],
            )
        size = 0
        try:
            while process.poll() is None:
                if self._stop.wait(POLL):
                    raise Interrupted
                if log.stat().st_size != size:
                    size = log.stat().st_size
                    if look():
                        return
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            reasons = [line for line in lines if line.startswith("error: ")]  # leaves out fairseq's page of settings
            raise ValueError(
                "\n".join([f"{log}: the command failed ({process.returncode}). It ends with", *(reasons or lines)])
            )


def _other_flags(folder: Path, started: list[str], planned: list[str]) -> ValueError:
    other = next((flag for flag in planned if flag not in started), "others")
    return ValueError(
        f"{folder}: has a run with other flags (see run.json), without {other}; remove it or use another --out"
    )


def say(text: str) -> None:
    """Print a line above the progress bar, without buffering."""
    tqdm.write(text)
    sys.stdout.flush()
