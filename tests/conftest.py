import gzip
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import rnndrop_plugin
from rnndrop_plugin.ops import c_library

needs_library = pytest.mark.skipif(c_library.unavailable() is not None, reason=str(c_library.unavailable()))

# How long an example takes is the machine's affair, and what a fixture makes for a test may serve all its examples.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--poison", action="store_true", help="fill the memory of fresh tensors with NaN (torch.empty)")
    parser.addoption("--package", type=Path, metavar="FOLDER", help="refuse to test the package of another folder")


def pytest_configure(config):
    """Hide the GPUs from all tests but those marked ``gpu``, which are chosen by ``-m gpu``. Let what the tests start
    hear Ctrl-C, which a shell's background job and its children ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expected, package = config.getoption("package"), Path(next(iter(rnndrop_plugin.__path__)))
    if expected and package != expected:
        raise pytest.UsageError(f"the tests would import {package}, not {expected}")
    if "gpu" not in config.getoption("markexpr"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def reproducible(request):
    """The same random numbers in each test, alone or in company; one thread, the tensors being tiny."""
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if request.config.getoption("poison"):
        torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty gives
    yield
    torch.set_num_threads(threads)


def write_stream_data(folder: Path, sizes: dict[str, int], types: int = 20, seed: int = 1) -> Path:
    """A data folder of random sentences over the words w0, w1, ...: dict.txt and the splits, by fairseq's builders.

    Args:
        sizes: the sentences of each split, of 1 to 8 words.
        types: the words of the dictionary, fairseq's four symbols not counted.
    """
    from fairseq.data import Dictionary, indexed_dataset

    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    dictionary = Dictionary()
    for i in range(types):
        dictionary.add_symbol(f"w{i}", n=types - i)
    dictionary.save(str(folder / "dict.txt"))
    for split, sentences in sizes.items():
        builder = indexed_dataset.make_builder(f"{folder / split}.bin", "mmap", vocab_size=len(dictionary))
        for length in torch.randint(1, 9, (sentences,), generator=generator):
            words = torch.randint(dictionary.nspecial, len(dictionary), (int(length),), generator=generator)
            builder.add_item(torch.cat([words, torch.tensor([dictionary.eos()])]))
        builder.finalize(f"{folder / split}.idx")
    return folder


def write_sequences(folder: Path, splits: dict[str, list[list[str]]]) -> None:
    """A stream of sequences as the scripts write it: dict.txt and each split, ``</s>`` after each sequence."""
    from fairseq.data import Dictionary, indexed_dataset

    folder.mkdir(parents=True)
    dictionary = Dictionary()
    for symbol in sorted({symbol for sequences in splits.values() for sequence in sequences for symbol in sequence}):
        dictionary.add_symbol(symbol)
    dictionary.save(str(folder / "dict.txt"))
    for split, sequences in splits.items():
        builder = indexed_dataset.make_builder(f"{folder / split}.bin", "mmap", vocab_size=len(dictionary))
        for sequence in sequences:
            builder.add_item(torch.tensor([*map(dictionary.index, sequence), dictionary.eos()]))
        builder.finalize(f"{folder / split}.idx")


def write_tagging_data(folder: Path, sizes: dict[str, int], seed: int = 1, longest: int = 9) -> Path:
    """Sentences whose tags can be learnt: capitalised words are entities, their last letter tells the type.

    An entity goes on for as long as its letter does. With the tags there is a label for each sentence, of the
    type that is most frequent in it, so that the folder serves classification, too.
    """
    generator = torch.Generator().manual_seed(seed)

    def choose(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    streams = {name: {split: [] for split in sizes} for name in ("word", "capitalisation", "tag", "label")}
    for split, count in sizes.items():
        for _ in range(count):
            words, tags = [], []
            for _ in range(1 + choose(longest)):
                kind = choose(4)
                words.append(f"{'w' if kind < 2 else 'W'}{choose(5)}{'xy'[kind % 2]}")
                type = ("PER", "LOC")[kind % 2]
                inside = kind >= 2 and bool(tags) and tags[-1][2:] == type
                tags.append("O" if kind < 2 else f"{'I' if inside else 'B'}-{type}")
            streams["word"][split].append(words)
            streams["capitalisation"][split].append(["title" if word[0] == "W" else "lower" for word in words])
            streams["tag"][split].append(tags)
            people, places = (sum(tag.endswith(type) for tag in tags) for type in ("PER", "LOC"))
            streams["label"][split].append(["people" if people > places else "places" if places > people else "none"])
    streams["characters"] = {
        split: [list(word) for words in sentences for word in words] for split, sentences in streams["word"].items()
    }
    for name, splits in streams.items():
        write_sequences(folder / name, splits)
    return folder


@pytest.fixture(scope="session")
def tagging_data(tmp_path_factory) -> Path:
    """A folder of :func:`write_tagging_data` that many tests read and none writes."""
    return write_tagging_data(tmp_path_factory.mktemp("data") / "tagging", {"train": 120, "valid": 30, "test": 31})


@pytest.fixture(scope="session")
def stream_data(tmp_path_factory) -> Path:
    """A folder of :func:`write_stream_data` that many tests read and none writes."""
    return write_stream_data(tmp_path_factory.mktemp("data") / "stream", {"train": 60, "valid": 20, "test": 15})


class Logged(list):
    """The log records of a command."""

    def text(self) -> str:
        return "\n".join(record.getMessage() for record in self)

    def metrics(self, name: str, tag: str) -> list[str]:
        """The values of a metric as fairseq prints them, in all lines of ``tag`` (train, train_inner, valid)."""
        lines = [json.loads(record.getMessage()) for record in self if record.name == tag]
        prefix = "" if tag == "train_inner" else f"{tag}_"
        return [line[prefix + name] for line in lines]


class _Keep(logging.Handler):
    def __init__(self, records: Logged):
        super().__init__(logging.INFO)
        self.emit = records.append


@pytest.fixture(scope="session")
def command():
    """Run one of fairseq's commands in this process: ``command("train", *arguments)`` returns what it logs."""
    import rnndrop_plugin
    from rnndrop_plugin.compat import versions

    rnndrop_plugin.register()

    def run(name: str, *arguments) -> Logged:
        module = importlib.import_module(f"fairseq_cli.{name}")
        records = Logged()
        handler = _Keep(records)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(sys, "argv", [f"fairseq-{name}", *map(str, arguments)])
            if hasattr(module, "reset_logging"):
                patch.setattr(module, "reset_logging", lambda: None)
            versions.silence_warnings()
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.INFO)
            for logger in ("fairseq", "rnndrop_plugin"):
                logging.getLogger(logger).setLevel(logging.NOTSET)  # which scripts have set higher
            root.addHandler(handler)
            try:
                module.cli_main()
            finally:
                root.removeHandler(handler)
                root.setLevel(level)
        return records

    return run


@pytest.fixture
def refuse(command, capsys):
    """``refuse(*arguments)`` runs a command that must end before any training, with status 2 and one line on stderr;
    returns the line."""
    from fairseq.trainer import Trainer

    def refuse(*arguments) -> str:
        capsys.readouterr()
        started = []
        with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", lambda *_: started.append(1))
            command(*arguments)
        lines = capsys.readouterr().err.splitlines()
        assert (end.value.code, started, len(lines)) == (2, [], 1), lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return refuse


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main with arguments, as its command line does: (exit status, stdout, stderr)."""
    from rnndrop_plugin.cli.command import run

    def call(script, *args):
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, args)])
        capsys.readouterr()
        try:
            run(script.main)
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(params=[pytest.param(300, id="some"), pytest.param(10_000, id="many", marks=pytest.mark.slow)])
def fuzz(request):
    """Runs a check with many inputs: ``fuzz(check, name=strategy)`` calls ``check(name=input)`` for each.

    Where an input has many of what is checked, ``batch`` says how many, and there are as many fewer inputs.
    """

    def fuzz(check, batch=1, **strategies):
        settings(max_examples=request.param // batch)(given(**strategies)(check))()

    return fuzz


@pytest.fixture
def read_split():
    """Reads a split as the task does: its sentences as lists of symbols, with ``</s>`` as the last of each."""
    from fairseq.data import Dictionary, data_utils

    def read_split(folder, split):
        dictionary = Dictionary.load(str(folder / "dict.txt"))
        dataset = data_utils.load_indexed_dataset(str(folder / split), dictionary)
        return [[dictionary[i] for i in dataset[n].tolist()] for n in range(len(dataset))]

    return read_split


@pytest.fixture
def write():
    """Writes a file and its folder, gzip-compressed if its name says so."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    return write
