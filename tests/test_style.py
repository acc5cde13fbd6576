"""Style: ruff's verdict on the repository, and the public interface typed."""

import ast
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from rnndrop_plugin import modules, ops

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    ruff = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


PUBLIC = [
    pytest.param(item, id=f"{package.__name__}.{name}")
    for package in (modules, ops)
    for name in package.__all__
    if inspect.isfunction(item := getattr(package, name)) or inspect.isclass(item)
]


def called(item):
    """The functions that a user calls of a public name: of a class its constructor, its call and its public methods."""
    if inspect.isfunction(item):
        return [item]
    ours = [base for base in item.__mro__ if base.__module__.startswith("rnndrop_plugin")]
    names = {name for base in ours for name in vars(base) if name in ("__init__", "__call__") or name[0] != "_"}
    return [getattr(item, name) for name in sorted(names) if inspect.isfunction(getattr(item, name))]


@pytest.mark.parametrize("item", PUBLIC)
def test_the_public_interface_is_typed(item):
    for function in called(item):
        hints = typing.get_type_hints(function)  # every name in them resolves
        assert {"return", *inspect.signature(function).parameters} - {"self"} <= hints.keys(), function.__qualname__


def test_what_is_checked():
    functions = {function.__qualname__ for param in PUBLIC for function in called(*param.values)}
    assert {
        "GRUForm.__init__",
        "_Layer.forward",
        "_Cell.draw_masks",
        "CRF.decode",
        "Mask.at",
        "recurrence",
    } <= functions


# Each folder of the package imports only from itself and from those before it.
LAYERS = "errors files progress ops modules data training_log optim models criterions tasks compat cli".split()
SOURCES = [path for path in (ROOT / "rnndrop_plugin").rglob("*") if path.suffix in (".py", ".c", ".h")]


def imports(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_folders_import_from_those_below():
    wrong = []
    for path in SOURCES:
        folder = path.relative_to(ROOT / "rnndrop_plugin").parts[0].removesuffix(".py")
        if path.suffix != ".py" or folder not in LAYERS:
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            above = package == "rnndrop_plugin" and other in LAYERS and LAYERS.index(other) > LAYERS.index(folder)
            if above or (package.startswith("fairseq") and folder in ("ops", "modules")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    # A method of the models, where users look for it, hands over to the tasks when it is called.
    assert wrong == ["rnndrop_plugin/models/loading.py imports rnndrop_plugin.tasks.pretrained"]


def test_no_file_is_long():
    assert len(SOURCES) > 60
    assert [path.name for path in SOURCES if len(path.read_text().splitlines()) > 400] == []
