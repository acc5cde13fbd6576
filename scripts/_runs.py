"""Runs of fairseq-train that go on where they were interrupted, several at a time (for reproduce.py)."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from plot_log import entries
from tqdm import tqdm

TRAIN = [sys.executable, "-m", "fairseq_cli.train"]
VALIDATE = [sys.executable, "-m", "fairseq_cli.validate"]
POLL = 0.5  # seconds between two looks at a run's log
LAST_LINES = 15  # of a failed command's log that are shown


class Run(NamedTuple):
    """One training, and the evaluation of what it made.

    Attributes:
        name: of its folder below the experiment's.
        train: arguments of fairseq-train: the data, flags.
        test: arguments of fairseq-validate but for the checkpoint and the splits.
        splits: what is tested on, nothing if empty.
        metric: what is reported, as the log calls it.
        target: the training is stopped when the metric on the training data is at least this in two epochs in a row,
            and what is tested is the checkpoint of the second; None to train to the end.
        checkpoint: which one is tested otherwise.
        needs: the run that must be finished before this one starts; None for none.
        more: further arguments of fairseq-train, given the result of that run.
    """

    name: str
    train: list[str]
    test: list[str]
    splits: Sequence[str]
    metric: str
    target: float | None = None
    checkpoint: str = "checkpoint_best.pt"
    needs: str | None = None
    more: Callable[[dict], list[str]] = lambda needed: []


class Interrupted(Exception):
    """The runs are to stop."""


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    new = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def read_json(path: Path) -> dict | None:
    """What :func:`write_json` wrote, None if there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: not the JSON that this script writes") from None


def epochs(log: Path) -> list[dict]:
    """The statistics of the epochs that a log of fairseq-train holds, in the order of their updates."""
    if not log.exists() or not log.stat().st_size:
        return []
    found = {int(entry["train_num_updates"]): entry for entry in entries(log) if "train_num_updates" in entry}
    return [found[updates] for updates in sorted(found)]


def seconds(done: list[dict]) -> float:
    """How long the epochs took; an interrupted training counts from its start to its last whole epoch."""
    total = previous = 0.0
    for wall in (float(entry["train_wall"]) for entry in done):
        total += wall - previous if wall >= previous else wall  # it starts from 0 where the training was resumed
        previous = wall
    return total


def reached(run: Run, done: list[dict]) -> int | None:
    """How many epochs it took to reach the run's target, None if it was not reached."""
    values = [float(entry[f"train_{run.metric}"]) for entry in done]
    for number in range(2, len(values) + 1):
        if run.target is not None and min(values[number - 2 : number]) >= run.target:
            return number
    return None


def complete(run: Run, arguments: list[str], done: list[dict]) -> bool:
    """Whether the training has reached its target or its --max-update.

    fairseq-train would train for one more update if it were started again at --max-update.
    """
    if reached(run, done):
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


class Runs:
    """Runs of one experiment, in the folder ``out``.

    A finished run has a result.json: its arguments ("train"), "updates" and "seconds" of the training, the "metric"
    in its last epoch on "training" data, "solved" (whether the target was reached; None without one), the
    "checkpoint" and the metric on the splits it was tested on ("test").
    """

    def __init__(self, runs: Sequence[Run], out: Path):
        self.runs = {run.name: run for run in runs}
        self.out = out
        self.results: dict[str, dict] = {}
        self.failures: dict[str, str] = {}
        self._stop = threading.Event()
        self._status: dict[str, str] = {}

    def select(self, names: Sequence[str]) -> list[str]:
        """The runs of these names and those that they need, each after what it needs."""
        selected: list[str] = []
        for name in names:
            needs = self.runs[name].needs
            for each in ([needs] if needs else []) + [name]:
                if each not in selected:
                    selected.append(each)
        return selected

    def perform(self, names: Sequence[str], jobs: int, finished: Callable[[], None]) -> None:
        """Perform those of the runs that are not finished, ``jobs`` at a time, and fill ``results`` and ``failures``.

        Args:
            finished: is called after each run.
        """
        waiting = self.select(names)
        running: dict[Future, str] = {}
        bar = tqdm(total=len(waiting), unit=" runs", disable=None)
        with bar, ThreadPoolExecutor(jobs) as pool:
            try:
                while waiting or running:
                    for name in list(waiting):
                        needs = self.runs[name].needs
                        if needs in self.failures:
                            self.failures[name] = f"not run, for it needs {needs}"
                            waiting.remove(name)
                            bar.update()
                        elif len(running) < jobs and (needs is None or needs in self.results):
                            running[pool.submit(self._perform, self.runs[name])] = name
                            waiting.remove(name)
                    done, _ = wait(running, timeout=2 * POLL, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._collect(running.pop(future), future)
                        finished()
                        bar.update()
                    bar.set_postfix_str("; ".join(f"{name} {status}" for name, status in self._status.items()))
            except BaseException:
                self._stop.set()
                raise

    def _collect(self, name: str, future: Future) -> None:
        self._status.pop(name, None)
        try:
            self.results[name] = future.result()
            tqdm.write(f"{name}: {summary(self.results[name])}")
        except (OSError, ValueError) as error:
            self.failures[name] = str(error)
            tqdm.write(f"{name}: failed")

    def _perform(self, run: Run) -> dict:
        """The result of one run, which is performed if it is not finished.

        Raises:
            ValueError: a command fails, or the folder has a run with other arguments.
        """
        folder = self.out / run.name
        arguments = [*run.train, "--save-dir", str(folder), *run.more(self.results.get(run.needs, {}))]
        started = read_json(folder / "run.json")
        if started and without_limit(started["train"]) != without_limit(arguments):
            raise ValueError(
                f"{folder}: holds a run with other flags (see its run.json); remove it, or use another --out"
            )
        result = read_json(folder / "result.json")
        if result and (result["solved"] or result["train"] == arguments):
            return result

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {"train": arguments})
        log = folder / "train.log"
        done = epochs(log)
        if not complete(run, arguments, done):
            self._command([*TRAIN, *arguments], log, run)
            done = epochs(log)
        if not done:
            raise ValueError(f"{log}: has no epoch's statistics")
        number = reached(run, done)
        done = done[:number]
        checkpoint = f"checkpoint{done[-1]['epoch']}.pt" if number else run.checkpoint
        result = {
            "train": arguments,
            "updates": int(done[-1]["train_num_updates"]),
            "seconds": seconds(done),
            "metric": run.metric,
            "training": float(done[-1][f"train_{run.metric}"]),
            "solved": None if run.target is None else number is not None,
            "checkpoint": str(folder / checkpoint),
            "test": self._test(run, folder, checkpoint) if run.splits else {},
        }
        write_json(folder / "result.json", result)
        return result

    def _test(self, run: Run, folder: Path, checkpoint: str) -> dict[str, float]:
        self._status[run.name] = "testing"
        log = folder / "test.log"
        log.unlink(missing_ok=True)
        arguments = [*run.test, "--path", str(folder / checkpoint), "--valid-subset", ",".join(run.splits)]
        self._command([*VALIDATE, *arguments], log, None)
        found: dict = {}
        for entry in entries(log):
            found.update(entry)
        missing = [split for split in run.splits if f"{split}_{run.metric}" not in found]
        if missing:
            raise ValueError(f"{log}: has no {missing[0]}_{run.metric}")
        return {split: float(found[f"{split}_{run.metric}"]) for split in run.splits}

    def _command(self, command: list[str], log: Path, run: Run | None) -> None:
        """Run a command to its end, or, given the run of which it is the training, to the run's target."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        size = 0
        with log.open("a", encoding="utf-8") as out:
            # In a process group of its own, so that Ctrl-C reaches this script alone, which then ends the command.
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            while True:
                try:
                    process.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    pass
                if self._stop.is_set():
                    raise Interrupted
                if run and log.stat().st_size != size:
                    size = log.stat().st_size
                    done = epochs(log)
                    if done:
                        value = done[-1][f"train_{run.metric}"]
                        self._status[run.name] = f"epoch {done[-1]['epoch']} {run.metric} {value}"
                    if reached(run, done):
                        return
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            raise ValueError("\n".join([f"{command[2]} exited with {process.returncode}; the end of {log}:", *lines]))


def summary(result: dict) -> str:
    """A result in a line."""
    solved = {None: "trained", True: "solved", False: "not solved"}[result["solved"]]
    parts = [f"{solved} after {result['updates']:,} updates ({result['seconds']:.0f} s)"]
    parts += [f"training {result['metric']} {result['training']:.2f}"]
    parts += [f"{split} {value:.2f}" for split, value in result["test"].items()]
    return ", ".join(parts)
