"""Words per second of fairseq-train (for benchmark.py --end-to-end): lstm_rnndrop compared with fairseq's own lstm_lm,
and taggers with one that drops nothing."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from tqdm import tqdm

from benchmarks.layers import median_ratio
from rnndrop_plugin.errors import failure
from rnndrop_plugin.progress import progress_bar
from rnndrop_plugin.training_log import entries

ROOT = Path(__file__).parents[1]
BASELINE = "fairseq's lstm_lm, no dropout"
PLUGIN = ["--user-dir", str(ROOT / "rnndrop_plugin")]  # the path may have blanks
OURS = [
    *PLUGIN,
    *"--task rnndrop_language_modeling --arch lstm_rnndrop --criterion rnndrop_cross_entropy".split(),
]
PLAIN_TAGGER = "lstm_rnndrop_tagger with CRF, no dropout"
TAGGER = [*PLUGIN, *"--task rnndrop_tagging --arch lstm_rnndrop_tagger --criterion rnndrop_tagging".split()]
TAGGER += "--bidirectional --character-filters 50 --decoder-embed-dim 50 --optimizer adam --lr 0.001".split()
UPDATE_DROPOUT = ["--update-dropout", "0.25"]
INTERVAL = 10  # each figure in the log is the mean over so many updates; the first interval is not counted


class Speed(NamedTuple):
    """How fast one model trains.

    Attributes:
        words_per_second: the median over the repetitions of each run's median.
        ratio: the median ratio to the baseline's run of the same repetition; above 1 is faster.
        operations: the multiplications and additions of the matrix products per word, forward and backward; None if
            they are not counted.
        repetitions: the median of each run.
    """

    name: str
    words_per_second: float
    ratio: float
    operations: int | None
    repetitions: list[float]


def end_to_end(
    data: Path | None = None,
    *,
    size: int = 256,
    rows: int = 32,
    steps: int = 35,
    updates: int | None = None,
    repetitions: int = 3,
    threads: int | None = None,
) -> list[Speed]:
    """Train word models like those of the paper's Table 2 for some updates each, in turn, several times.

    All have one layer of ``size`` units, embeddings of that size and plain SGD; only lstm_rnndrop with update
    dropout drops anything. lstm_lm reads its data in the main process, which is faster here than its default.

    Args:
        data: a folder made by a prepare_*.py script, or one that holds the Penn Treebank; None for Python's
            reference manual, as in the quickstart.
        rows, steps: the size of a batch.
        updates: how many updates each run has, at least twice INTERVAL; None for 50, or 400 on a GPU.
        threads: OMP_NUM_THREADS of the runs; None to leave it as it is.

    Returns:
        The speed of each model. If a model fails, its error is printed and it is left out.

    Raises:
        OSError, ValueError: the folder cannot be used, or a run of lstm_lm fails.
    """
    models = {
        BASELINE: (
            f"--task language_modeling --arch lstm_lm --decoder-out-embed-dim {size} --dropout 0 --criterion "
            "cross_entropy --sample-break-mode none --num-workers 0"
        ).split(),
        "lstm_rnndrop, no dropout": OURS,
        "lstm_rnndrop, update dropout 0.25 per step": OURS + UPDATE_DROPOUT,
    }
    if torch.cuda.is_available():
        models["the same from a CUDA graph"] = [*OURS, *UPDATE_DROPOUT, "--cuda-graph"]
    flags = ["--tokens-per-sample", str(steps), *_flags(size, rows, _updates(updates))]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(data, Path(folder))
        return _compare(prepared, flags, models, repetitions, threads, _operations(prepared, size))


def taggers(
    data: Path,
    *,
    size: int = 256,
    rows: int = 32,
    updates: int | None = None,
    repetitions: int = 3,
    threads: int | None = None,
) -> list[Speed]:
    """Train bidirectional taggers with character features by Adam for some updates each, as :func:`end_to_end` does.

    The embeddings have 50 dimensions and are trained.

    Args:
        data: a folder made by prepare_conll.py.
        size: the number of units of each direction.

    The other arguments are those of :func:`end_to_end`.

    Raises:
        ValueError: a run of the tagger that drops nothing fails.
    """
    models = {
        PLAIN_TAGGER: [*TAGGER, "--crf"],
        "the same, update dropout 0.25 per step": [*TAGGER, "--crf", *UPDATE_DROPOUT],
        "the same without CRF": [*TAGGER, *UPDATE_DROPOUT],
    }
    return _compare(data, _flags(size, rows, _updates(updates)), models, repetitions, threads)


def is_tagged(data: Path) -> bool:
    """Whether a folder has data for a tagger."""
    return (data / "tag" / "dict.txt").is_file()


def scaling(data: Path | None = None, *, size=256, rows=32, steps=35, updates=50, repetitions=3) -> list[Speed]:
    """Train lstm_rnndrop with update dropout in one process and in two, in turn, with one thread for each process.

    The arguments are those of :func:`end_to_end`. Each process has its own ``rows``. The ratios are to the training in
    one process.

    Raises:
        OSError, ValueError: the folder cannot be used, or a run fails.
    """
    flags = ["--tokens-per-sample", str(steps), *_flags(size, rows, updates), *OURS, *UPDATE_DROPOUT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(data, Path(folder))
        plan = list(runs) * repetitions
        for processes in progress_bar(plan, desc="train_cpu", unit=" runs"):
            program = [str(ROOT / "scripts" / "train_cpu.py"), "--processes", str(processes)]
            runs[processes].append(_train([*program, str(prepared), *flags], Path(folder) / "train.log", environment))
        operations = _operations(prepared, size)
    return [_speed(f"{n} process{'es' * (n > 1)} of one thread", runs[n], runs[1], operations) for n in runs]


def prepare(data: Path | None, folder: Path) -> Path:
    """``data`` if it is already prepared, otherwise a folder in ``folder`` with the prepared data.

    Raises:
        OSError, ValueError: ``data`` is neither prepared data nor the Penn Treebank.
    """
    if data is not None and (data / "dict.txt").is_file():
        return data
    if data is not None:
        script = ["prepare_ptb.py", "--level", "word", "--source", str(data)]
    else:
        from pydoc_data.topics import topics

        text = folder / "text.txt"
        text.write_text("\n\n".join(topics.values()), encoding="utf-8")
        script = ["prepare_text.py", str(text), "--by", "paragraph", "--lower"]
    prepared = folder / "data"
    command = [sys.executable, str(ROOT / "scripts" / script[0]), *script[1:], "--dest", str(prepared)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise failure(script[0], done.returncode, done.stderr)
    return prepared


def _updates(updates: int | None) -> int:
    if updates is None:
        return 400 if torch.cuda.is_available() else 50
    if updates < 2 * INTERVAL:
        raise ValueError(f"at least {2 * INTERVAL} updates are needed, got {updates}")
    return updates


def _compare(
    data: Path,
    flags: list[str],
    models: dict[str, list[str]],
    repetitions: int,
    threads: int | None,
    operations: int | None = None,
) -> list[Speed]:
    """Train the models in turn; the first one is the baseline."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    where = ["--distributed-world-size", "1"] if torch.cuda.is_available() else ["--cpu"]
    baseline = next(iter(models))
    runs: dict[str, list[float]] = {name: [] for name in models}
    plan = [(name, model) for _ in range(repetitions) for name, model in models.items()]
    with tempfile.TemporaryDirectory() as folder:
        for name, model in progress_bar(plan, desc="fairseq-train", unit=" runs"):
            if name not in runs:
                continue
            command = ["-m", "fairseq_cli.train", str(data), *flags, *where, *model]
            try:
                speed = _train(command, Path(folder) / "train.log", environment)
            except ValueError as error:
                if name == baseline:
                    raise
                del runs[name]  # the other models are still worth measuring
                tqdm.write(f"  {name}: {error}", file=sys.stdout)
                continue
            runs[name].append(speed)
            # Print it now, in case the benchmark is interrupted.
            tqdm.write(f"  {speed:9.0f} words/s  {name}", file=sys.stdout)
    return [_speed(name, speeds, runs[baseline], operations) for name, speeds in runs.items()]


def _flags(size: int, rows: int, updates: int) -> list[str]:
    """The flags that all runs have in common."""
    return (
        f"--batch-size {rows} --required-batch-size-multiple 1 --sentence-avg --optimizer "
        f"sgd --lr 0.1 --clip-norm 10 --max-update {updates} --disable-validation --no-save --seed 1 --log-format json "
        f"--log-interval {INTERVAL} --decoder-embed-dim {size} --decoder-hidden-size {size}"
    ).split()


def _operations(data: Path, size: int) -> int:
    vocabulary = len(Dictionary.load(str(data / "dict.txt")))
    return 3 * 2 * size * (4 * 2 * size + vocabulary)


def _speed(name: str, speeds: list[float], baselines: list[float], operations: int | None) -> Speed:
    return Speed(name, median(speeds), median_ratio(speeds, baselines), operations, speeds)


def _train(arguments: list[str], log: Path, environment: dict[str, str]) -> float:
    """Run Python with ``arguments``, and return the median of the words per second in its log."""
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise failure(" ".join(arguments), done.returncode, log.read_text(encoding="utf-8"))
    speeds = [float(entry["wps"]) for entry in entries(log) if "wps" in entry]
    return median(speeds[1:])
