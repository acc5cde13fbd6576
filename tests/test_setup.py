"""The build of the compiled recurrence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rnndrop_plugin.ops import c_library

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "rnndrop_plugin" / "ops" / "csrc").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in c_library.SOURCES:
        shutil.copy(ROOT / "rnndrop_plugin" / "ops" / "csrc" / name, tmp_path / "rnndrop_plugin" / "ops" / "csrc")
    return tmp_path


def build(tree, compiler):
    return subprocess.run(
        [sys.executable, "setup.py", "build_recurrence"],
        cwd=tree,
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_a_failing_compiler_does_not_fail_the_build(tree, compiler):
    done = build(tree, compiler)
    assert done.returncode == 0
    assert "the compiled recurrence was not built" in done.stderr
    assert not list(tree.rglob("*.so")) and not list(tree.rglob("*.tmp"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_library_depends_on_the_c_library_alone(tree, monkeypatch):
    assert build(tree, "cc -O0").returncode == 0
    (library,) = tree.rglob("librecurrence.so")
    for name in c_library.SOURCES:
        (library.parent / "csrc").mkdir(exist_ok=True)
        shutil.copy(tree / "rnndrop_plugin" / "ops" / "csrc" / name, library.parent / "csrc")
    monkeypatch.setattr(c_library, "LIBRARY", library)
    c_library.load.cache_clear()
    try:
        assert c_library.unavailable() is None
    finally:
        c_library.load.cache_clear()
    names = [b"libgomp", b"libtorch", b"libpython", b"libm.so"]
    assert not [name for name in names if name in library.read_bytes()]
