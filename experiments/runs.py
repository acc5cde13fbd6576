"""Runs of fairseq-train that go on where they were interrupted, several at a time (for reproduce.py)."""

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
POLL = 0.5  # seconds between two looks at a log
LAST_LINES = 15  # so many of a failed command's log are shown


class Run(NamedTuple):
    """One training, and the evaluation of what it made.

    Attributes:
        name: of its folder below the experiment's.
        train: arguments of fairseq-train, without --save-dir.
        test: arguments of fairseq-validate but for the checkpoint and the splits.
        splits: what to test on, nothing if empty.
        metrics: what to test, as the log calls it; the first one is reported.
        ends: whether the training is over, given the statistics of its epochs so far; it is then stopped, and the
            checkpoint of that epoch is tested in place of the first one below, if there is one of each epoch. None to
            leave the end to fairseq's flags.
        checkpoints: which ones to test; the result of the first one is reported.
        needs: the run that must be finished before this one starts.
        more: further arguments of fairseq-train, given the result of that run.
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
    """The runs are to stop."""


def read_json(path: Path) -> dict:
    """The contents of a JSON file, nothing if there is none.

    Raises:
        ValueError: it is damaged.
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
    """After how many epochs the training was over by ``run.ends``, None if it is not."""
    if run.ends is not None:
        for number in range(1, len(done) + 1):
            if run.ends(done[:number]):
                return number
    return None


def is_trained(run: Run, arguments: list[str], done: list[dict]) -> bool:
    """Whether a training is over, or has made its --max-update."""
    if epochs_needed(run, done):
        return True
    if not done or "--max-update" not in arguments:
        return False
    return int(done[-1]["train_num_updates"]) >= int(arguments[arguments.index("--max-update") + 1])


def without_limit(arguments: list[str]) -> list[str]:
    """The arguments but for --max-update and its value."""
    if "--max-update" not in arguments:
        return arguments
    at = arguments.index("--max-update")
    return arguments[:at] + arguments[at + 2 :]


def summary(result: dict) -> str:
    """A result in a line."""
    outcome = {None: "trained", True: "ended", False: "at its limit"}[result["solved"]]
    parts = [f"{outcome} after {result['updates']:,} updates in {result['seconds']:.0f} s"]
    if result["training"] is not None:
        parts.append(f"training {result['metric']} {result['training']:.2f}")
    parts += [f"{split} {value:.2f}" for split, value in result["test"].items()]
    return ", ".join(parts)


class Runs:
    """The runs of an experiment, each in a folder of its own below ``out``.

    A finished run has a result.json there: its arguments ("train"), "epochs", "updates" and "seconds" of the training,
    the name of the "metric", its value on the "training" data in the last epoch (None where the training does not log
    it, as taggers do not log the F1), "solved" (whether the training was over by ``ends``; None without it), the
    "checkpoint" and the metric on the splits it was tested on ("test"), all metrics by checkpoint and split ("tests"),
    the "commits" and "devices" that it was performed by.

    Attributes:
        results: of the runs performed, by their names.
        failures: why the others of them have none.
    """

    def __init__(self, runs: Sequence[Run], out: Path):
        self.runs = {run.name: run for run in runs}
        self.out = out
        self.results: dict[str, dict] = {}
        self.failures: dict[str, str] = {}
        self._stop = threading.Event()
        self._status: dict[str, str] = {}  # what is shown of the runs that are going on
        self._lock = -1

    def perform(self, names: Sequence[str], jobs: int, finished: Callable[[], None]) -> None:
        """Perform these runs and those that they need, unless they are finished, ``jobs`` at a time.

        Where one fails, those that do not need it go on. An exception (Ctrl-C) ends the running commands.

        Args:
            finished: is called after each run.

        Raises:
            ValueError: such runs are being performed in the same folder already, or it has one of other flags.
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
        """The results of all runs that are finished, those that were not performed now too, in the order of the runs.

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
        """Raise ValueError where the run's folder has one of other flags, as far as they are known before it starts."""
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
        """Keep others out of the folder. The commands inherit the lock, should they outlive this process."""
        with (self.out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.out}: this script, or a training that it left, is running in it") from None
            self._lock = file.fileno()
            yield

    def _perform(self, run: Run) -> dict:
        """The result of one run, which is performed if it is not finished.

        Raises:
            OSError, ValueError: a command fails, or the folder has a run of other arguments.
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
            raise ValueError(f"{log}: has no epoch's statistics")
        number = epochs_needed(run, done)
        checkpoint = folder / run.checkpoints[0]
        if number and "--no-epoch-checkpoints" not in arguments:  # epochs that came after it do not count
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
        """Note how far a training is, and whether it is over."""
        done = epochs(log)
        if done:
            last, metric = done[-1], run.metrics[0]
            score = last.get(f"train_{metric}", last.get(f"valid_{metric}", ""))
            self._status[run.name] = f"epoch {last['epoch']} {metric} {score}"
        return epochs_needed(run, done) is not None

    def _test(self, run: Run, folder: Path, checkpoint: Path) -> dict[str, dict[str, dict[str, float]]]:
        """The metrics by checkpoint and split.

        Raises:
            ValueError: a command fails, or does not log them all.
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
        """Run a command to its end, or until ``look``, which is called when its log has grown, is True.

        Raises:
            Interrupted: the runs are to stop.
            ValueError: the command fails.
        """
        with log.open("a", encoding="utf-8") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this script alone, which then ends the command
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
            reasons = [line for line in lines if line.startswith("error: ")]  # without fairseq's page of settings
            raise ValueError(
                "\n".join([f"{log}: the command failed ({process.returncode}). It ends with", *(reasons or lines)])
            )


def _other_flags(folder: Path, started: list[str], planned: list[str]) -> ValueError:
    other = next((flag for flag in planned if flag not in started), "others")
    return ValueError(
        f"{folder}: has a run of other flags (see run.json), without {other}; remove it or use another --out"
    )


def say(text: str) -> None:
    """Print a line above the progress bar, at once."""
    tqdm.write(text)
    sys.stdout.flush()
