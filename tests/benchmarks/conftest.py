import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch) -> Callable[[str], ModuleType]:
    """Load a benchmark that is a script of its own, and undo what that does to this process."""

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setitem(sys.modules, "fairseq", sys.modules.get("fairseq"))
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Mode(torch.nn.Module):
    """A layer that notes whether it is trained or evaluated."""

    def __init__(self):
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, input):
        self.seen.append(self.training)
        return input, None


@pytest.fixture
def mode() -> Mode:
    return Mode()
