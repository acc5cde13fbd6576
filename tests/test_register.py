"""When the plugin is registered with fairseq, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS_FIRST = """
import logging, sys, warnings
from rnndrop_plugin.modules import LSTM
from rnndrop_plugin.ops import recurrence
from rnndrop_plugin.data import text
assert not {"fairseq", "hydra", "omegaconf"} & set(sys.modules), "what importing the layers brings"
assert logging.getLogger().level == logging.WARNING and not logging.getLogger().handlers

warnings.simplefilter("default")
import importlib.util
assert importlib.util.find_spec("fairseq") and "fairseq" not in sys.modules  # to look for it is not to import it
from fairseq import checkpoint_utils, tasks, utils
utils.import_user_module(type("flags", (), {"user_dir": "rnndrop_plugin"}))
assert "rnndrop_tagging" in tasks.TASK_REGISTRY
assert hasattr(checkpoint_utils.load_checkpoint, "__wrapped__")  # patched
"""


def test_layers_import_nothing_of_fairseq_which_registers_the_plugin_when_it_comes():
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", LAYERS_FIRST], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow  # each imports all of fairseq
@pytest.mark.parametrize("first", ["compat.resume", "data.indexed", "models.tagger", "optim.plateau", "tasks.tagging"])
def test_any_module_can_be_imported_first(first):
    code = f"import rnndrop_plugin.{first}, rnndrop_plugin\nrnndrop_plugin.register()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
