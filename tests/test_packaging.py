import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]


def constraints():
    """name -> version, each pinned exactly."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", [Requirement(requirement) for requirement in DIRECT], ids=str)
def test_constraints_fit_the_requirements(requirement):
    assert constraints()[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_pin_what_the_requirements_bring():
    """Nothing that gets installed is left to chance, but what torch's builds for GPUs pin themselves."""
    missing, seen, todo = {}, set(), [Requirement(requirement) for requirement in DIRECT]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name not in constraints() and not re.match("nvidia|cuda|triton", name):
            missing[name] = str(requirement)
        try:
            todo += map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            pass  # of an extra that is not installed
    assert len(seen) > 40
    assert missing == {}
