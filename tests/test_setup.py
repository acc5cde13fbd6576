"""The build of the compiled recurrence."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rnndrop_plugin.ops import c_library
from tests.conftest import needs_library

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "rnndrop_plugin" / "ops" / "csrc", tmp_path / "rnndrop_plugin" / "ops" / "csrc")
    return tmp_path


def build(tree, compiler):
    return subprocess.run(
        [sys.executable, "setup.py", "build_recurrence"],
        cwd=tree,
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
    )


def write_compiler(folder, *lines):
    path = folder / "compiler"
    path.write_text("\n".join(["#!/bin/sh", *lines, "exit 1", ""]))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (None, "there is no C compiler: .*'/no/such/compiler'"),
        ([], r".*/compiler ended with status 1"),
        (["echo 'x.c: In function f:' >&2", "echo 'x.c:7: error: no g' >&2", "echo >&2"], "x.c:7: error: no g"),
        (["echo 'cc1 is missing' >&2", "echo 'see there' >&2"], "cc1 is missing"),
    ],
)
def test_a_compiler_that_fails(tree, monkeypatch, lines, reason):
    """The build goes on without the library; the reason is in its warning and in that of the package."""
    compiler = "/no/such/compiler" if lines is None else write_compiler(tree, *lines)
    done = build(tree, compiler)
    assert done.returncode == 0
    assert re.search(f"the compiled recurrence was not built.*: {reason}\n", done.stderr)
    assert not list(tree.rglob("*.so")) and not list(tree.rglob("*.tmp"))
    (failure,) = tree.rglob(c_library.FAILURE)
    monkeypatch.setattr(c_library, "LIBRARY", failure.with_name(c_library.LIBRARY.name))
    c_library.load.cache_clear()
    try:
        assert re.fullmatch(f"it was not compiled when the package was installed: {reason}", c_library.unavailable())
    finally:
        c_library.load.cache_clear()


def test_a_build_that_succeeds_takes_back_the_reason(tree):
    build(tree, "false")
    assert list(tree.rglob(c_library.FAILURE))
    writes_its_output = 'while [ "$1" != -o ]; do shift; done; : >"$2"; exit 0'
    build(tree, write_compiler(tree, writes_its_output))
    assert list(tree.rglob("librecurrence.so")) and not list(tree.rglob(c_library.FAILURE))


@needs_library
def test_the_library_depends_on_the_c_library_alone():
    names = [b"libgomp", b"libtorch", b"libpython", b"libm.so"]
    assert not [name for name in names if name in c_library.LIBRARY.read_bytes()]
