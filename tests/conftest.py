import importlib
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible():
    """The same random numbers in each test, alone or in company; one thread, the tensors being tiny."""
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    from fairseq import checkpoint_utils
    from fairseq_cli import train

    from rnndrop_plugin import compat

    def run(name: str, *arguments) -> Logged:
        module = importlib.import_module(f"fairseq_cli.{name}")
        for function in (checkpoint_utils.save_checkpoint, train.should_stop_early):
            for name in {"best", "num_runs"} & vars(function).keys():  # where fairseq keeps the best score of a run
                delattr(function, name)
        records = Logged()
        handler = _Keep(records)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(sys, "argv", [f"fairseq-{name}", *map(str, arguments)])
            if hasattr(module, "reset_logging"):
                patch.setattr(module, "reset_logging", lambda: None)
            compat.silence_warnings()
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.INFO)
            logging.getLogger("fairseq").setLevel(logging.NOTSET)  # which scripts have set higher
            root.addHandler(handler)
            try:
                module.cli_main()
            finally:
                root.removeHandler(handler)
                root.setLevel(level)
        return records

    return run
