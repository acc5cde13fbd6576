"""The two commands of the README build their environment; here with interpreters that only say what they are asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "flock", "ls", "mkdir", "rm")
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c import sys"*) echo {version} ;;
    "-c import ensurepip"*) {ensurepip} ;;
    "-m venv .venv") mkdir .venv/bin && cp "$0" .venv/bin/python && echo "venv {version}" >>"$LOG" ;;
    "-m pip install"*) echo pip >>"$LOG" && eval "$PIP" ;;
    "-m pytest"*) echo "ran in $PWD: $*" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone of the project with what the test command needs of it."""
    (tmp_path / "clone" / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "scripts/venv.sh", "scripts/test.sh"):
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.fixture
def command(tmp_path, clone):
    """Runs the test command on a PATH with nothing but the basic tools and what ``python`` has put there."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    (tmp_path / "bin" / "env").symlink_to(shutil.which("env"))
    (tmp_path / "elsewhere").mkdir()

    def command(*args, pip=":"):
        env = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log"), "PIP": pip, "CDPATH": str(tmp_path)}
        line = ["bash", "../clone/scripts/test.sh", *args]
        return subprocess.run(line, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True)

    return command


@pytest.fixture
def python(tmp_path, command):
    """Puts an interpreter on the PATH."""

    def python(name, version, ensurepip="true"):
        path = tmp_path / "bin" / name
        path.write_text(PYTHON.format(version=version, ensurepip=ensurepip))
        path.chmod(0o755)

    return python


def log(tmp_path):
    path = tmp_path / "log"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_builds_once(command, python, clone, tmp_path):
    python("python3.11", "3.11")
    for lines in (["venv 3.11", "pip"], []):
        result = command("-m", "slow", "tests/a b.py")
        assert result.returncode == 0
        assert result.stdout.startswith(f"ran in {clone}: -m pytest ") and result.stdout.endswith(
            " -m slow tests/a b.py\n"
        )
        assert log(tmp_path) == lines
    assert result.stderr == ""
    with open(clone / "constraints.txt", "a") as file:
        file.write("another==1\n")
    assert command().returncode == 0
    assert log(tmp_path) == ["pip"]


def test_rebuilds_what_was_moved_or_lost_its_interpreter(command, python, clone, tmp_path):
    python("python3.11", "3.11")
    assert command().returncode == 0
    (clone / ".venv" / "bin" / "python").unlink()
    assert command().returncode == 0
    assert log(tmp_path) == ["venv 3.11", "pip"] * 2
    built = clone / ".venv" / "rnndrop"
    built.write_text(built.read_text().replace(str(clone), "/another/folder"))
    assert command().returncode == 0
    assert log(tmp_path) == ["venv 3.11", "pip"]


@pytest.mark.parametrize("pip", ["echo the reason >&2; false", "kill -9 $PPID"])
def test_unfinished_installation_is_not_taken_for_a_whole_one(command, python, tmp_path, pip):
    python("python3.11", "3.11")
    result = command(pip=pip)
    assert result.returncode != 0 and result.stdout == ""
    if "reason" in pip:
        assert result.returncode == 2
        assert result.stderr.splitlines()[-2:] == [
            "the reason",
            "rnndrop: cannot install into .venv, for the reason above; the next run begins anew",
        ]
    log(tmp_path)
    assert command().returncode == 0
    assert log(tmp_path) == ["venv 3.11", "pip"]


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3": "3.12"}, "3.12"),
        ({"python3": "3.13", "python3.12": "3.12"}, "3.12"),
        ({"python3": "3.12", "python3.12": "3.12", "python3.11": "3.11"}, "3.11"),
        ({"python3": "3.11", "python3.12": "; exit 127"}, "3.11"),  # a name that leads nowhere
    ],
)
def test_chooses_an_interpreter(command, python, tmp_path, interpreters, chosen):
    for name, version in interpreters.items():
        python(name, version)
    assert command().returncode == 0
    assert log(tmp_path) == [f"venv {chosen}", "pip"]


@pytest.mark.parametrize(
    ("interpreters", "words"),
    [
        ({}, "needs Python 3.11 or 3.12; there is no python3 on the PATH"),
        ({"python3": "3.10"}, "needs Python 3.11 or 3.12, not 3.10"),
        ({"python3": "3.13"}, "needs Python 3.11 or 3.12, not 3.13"),
    ],
)
def test_no_fitting_interpreter(command, python, clone, interpreters, words):
    for name, version in interpreters.items():
        python(name, version)
    result = command()
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"rnndrop: {words}\n")
    assert not os.path.lexists(clone / ".venv")


def test_interpreter_without_venv(command, python):
    python("python3", "3.11", ensurepip="false")
    result = command()
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "apt-get install python3.11-venv" in result.stderr


def test_environment_of_someone_else_is_left_alone(command, python, clone, tmp_path):
    python("python3.11", "3.11")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    result = command()
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{clone}/.venv was not built by this command" in result.stderr
    assert [path.name for path in (clone / ".venv").iterdir()] == ["mine"]
    assert log(tmp_path) == []
