"""The memory part of the benchmark."""

import multiprocessing
import types

import torch

from benchmarks import layers, memory
from rnndrop_plugin.progress import progress_bar

TINY = layers.Shape(3, 2, 4, 5)


def test_the_peak_of_the_layer_that_is_asked_for(monkeypatch):
    """What a step takes and gives back counts."""
    made, sent = [], []

    def make_step(layer, shape):
        made.append(layer.name)
        return lambda: torch.ones(64, 2**18).sum()  # 64 MiB

    monkeypatch.setattr(memory, "make_step", make_step)
    memory.peak_memory(2, "LSTM", TINY, 1, types.SimpleNamespace(send=sent.append))
    assert set(made) == {"rnndrop LSTM, hidden dropout per step"}
    assert sent[0] > 48


def test_ratios_are_to_torchs_layer(monkeypatch):
    class Context:
        """Stands for processes whose layers take 10 MiB, 20, 30, ..."""

        Pipe = staticmethod(multiprocessing.Pipe)

        @staticmethod
        def Process(target, args):
            start = lambda: args[-1].send(10.0 * (args[0] + 1))  # noqa: E731
            return types.SimpleNamespace(start=start, join=lambda: None)

    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Context)
    with progress_bar(desc="memory", unit=" steps") as progress:
        figures = list(memory.memory(["LSTM"], [TINY], progress))
    assert [(figure.ratio, figure.value) for figure in figures] == [(1, 10), (2, 20), (3, 30), (4, 40)]
