"""Kill a training at random moments, start it again each time, and compare its results with an uninterrupted run's."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from benchmarks.end_to_end import OURS, prepare
from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.errors import failure
from rnndrop_plugin.progress import progress_bar
from rnndrop_plugin.training_log import entries

FLAGS = (
    "--cpu --seed 1 --decoder-embed-dim 256 --decoder-hidden-size 256 --init-range 0.05 --update-dropout 0.25 "
    "--decoder-dropout-in 0.2 --decoder-dropout-out 0.5 --tokens-per-sample 35 --batch-size 16 --optimizer adam "
    "--lr 0.003 --clip-norm 1 --max-epoch 8 --save-interval-updates 50 --log-format json --log-interval 10"
).split()


def start(arguments: list[str], folder: Path, trainings: ExitStack) -> subprocess.Popen:
    """Start fairseq-train with its checkpoints and its log, which is appended to, in ``folder``.

    Args:
        trainings: gets callbacks that end the training when this program ends.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "fairseq_cli.train", *arguments, "--save-dir", str(folder / "checkpoints")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    trainings.callback(process.wait)
    trainings.callback(process.kill)
    return process


def end(process: subprocess.Popen, folder: Path) -> None:
    """Wait for the end of a training.

    Raises:
        ValueError: the training fails.
    """
    if process.wait():
        raise failure("fairseq-train", process.returncode, (folder / "train.log").read_text(encoding="utf-8"))


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """The names and times of checkpoints that are being written, or were when a training was killed."""
    found = set()
    for path in folder.glob("checkpoints/*.tmp"):
        with suppress(FileNotFoundError):  # it is finished and has been renamed
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def kill(process: subprocess.Popen, folder: Path, seconds: float, aim: bool) -> bool | None:
    """Kill a training after some time, or with ``aim`` when it next writes a checkpoint after that time.

    Returns:
        Whether it was writing a checkpoint; None if it had already ended.
    """
    left = unfinished(folder)
    moment = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() >= moment and (not aim or unfinished(folder) - left):
            process.kill()
            return bool(unfinished(folder) - left) if process.wait() < 0 else None
        time.sleep(0.001)
    return None


def losses(folder: Path) -> set[tuple]:
    """All losses in a log, those of updates, epochs and validations."""
    return {
        (prefix, entry[f"{prefix}num_updates"], entry[f"{prefix}loss"])
        for entry in entries(folder / "train.log")
        for prefix in ("", "train_", "valid_")
        if f"{prefix}loss" in entry
    }


def difference(whole: Path, killed: Path) -> str | None:
    """A difference between an uninterrupted run and one that was killed; None if their results are equal."""
    if losses(whole) != losses(killed):
        return f"losses: {sorted(losses(whole) ^ losses(killed))[0]}"
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, killed)]
    if names[0] != names[1]:
        return f"files: {sorted(set(names[0]) ^ set(names[1]))[0]}"
    for name in names[0]:
        states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (whole, killed)]
        for part in ("model", "last_optimizer_state"):
            try:
                torch.testing.assert_close(*(state[part] for state in states), rtol=0, atol=0)
            except AssertionError:
                return f"{name}: {part}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Kill a training at random moments, every second time while it writes a checkpoint, start it again "
        "with the same command, and compare its losses and checkpoints bit for bit with those of an uninterrupted run.",
        epilog="All other arguments are passed to fairseq-train, after those of the quickstart.",
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=positive, default=20, help="number of kills (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments at which it is killed (default: 1)")
    parser.add_argument(
        "--data", type=Path, help="a prepared folder, or one with the Penn Treebank (default: Python's manual)"
    )
    args, more = parser.parse_known_args()
    moments = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as name, ExitStack() as trainings:
        folder = Path(name)
        arguments = [str(prepare(args.data, folder)), *OURS, *FLAGS, *more]
        whole = folder / "whole"
        began = time.monotonic()
        end(start(arguments, whole, trainings), whole)
        seconds = time.monotonic() - began
        if not [*whole.glob("checkpoints/*.pt")]:
            raise ValueError("the uninterrupted run has left no checkpoint to compare: leave out --no-save")
        print(f"uninterrupted: {seconds:.0f} s, {len(losses(whole))} losses logged", flush=True)
        kills = writing = runs = differences = 0
        with progress_bar(total=args.kills, desc="soak", unit=" kills") as progress:
            while kills < args.kills:
                runs += 1
                killed = folder / f"killed{runs}"
                process = start(arguments, killed, trainings)
                while kills < args.kills:
                    wrote = kill(process, killed, moments.uniform(0, seconds), aim=kills % 2 == 1)
                    if wrote is None:
                        break
                    kills += 1
                    writing += wrote
                    progress.update()
                    process = start(arguments, killed, trainings)
                end(process, killed)
                found = difference(whole, killed)
                differences += found is not None
                print(f"run {runs}, {kills} kills so far: {found or 'ended like the uninterrupted run'}", flush=True)
        print(f"{kills} kills, {writing} of them while a checkpoint was written: {differences} of {runs} runs differ")
    if differences:
        sys.exit(1)
