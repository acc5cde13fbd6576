"""Style: ruff's verdict on the repository, and the public interface typed."""

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
