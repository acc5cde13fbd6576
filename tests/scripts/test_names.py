"""The scripts that README and recipes name: thin files around the package's commands and the experiments."""

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

from rnndrop_plugin.cli.main import COMMANDS

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = {
    "prepare_ptb": "rnndrop_plugin.cli.prepare_ptb",
    "prepare_text": "rnndrop_plugin.cli.prepare_text",
    "prepare_conll": "rnndrop_plugin.cli.prepare_conll",
    "prepare_semeval": "rnndrop_plugin.cli.prepare_semeval",
    "make_temporal_order": "rnndrop_plugin.cli.prepare_temporal_order",
    "tag": "rnndrop_plugin.cli.tag",
    "classify": "rnndrop_plugin.cli.classify",
    "train_cpu": "rnndrop_plugin.cli.train_cpu",
    "plot_log": "rnndrop_plugin.cli.plot",
    "reproduce": "experiments.reproduce",
    "plot_cell_norms": "experiments.plot_cell_norms",
    "soak": "experiments.soak",
}


@pytest.mark.parametrize(("name", "module"), NAMES.items())
def test_a_script_is_a_command_under_its_old_name(monkeypatch, name, module):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", "--help"])
    script = runpy.run_path(str(SCRIPTS / f"{name}.py"))
    assert script["main"].__module__ == module
    assert sys.path[0] == str(SCRIPTS.parent)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        script["main"]()
    assert out.getvalue().startswith(f"usage: {name}.py ")


def test_every_command_that_was_a_script_is_one_still():
    modules = {f"rnndrop_plugin.cli.{command.module}" for command in COMMANDS.values()}
    assert {module for module in NAMES.values() if module.startswith("rnndrop_plugin")} <= modules
