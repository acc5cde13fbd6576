"""The examples in the docstrings of the modules run and show what is written."""

import doctest
import importlib
import pkgutil

import pytest

from rnndrop_plugin import modules

NAMES = [module.name for module in pkgutil.iter_modules(modules.__path__, "rnndrop_plugin.modules.")]
FINDER = doctest.DocTestFinder()
EXAMPLES = [example for name in NAMES for example in FINDER.find(importlib.import_module(name)) if example.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example):
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_recurrence_has_an_example():
    named = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"} <= named
