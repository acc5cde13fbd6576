import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Which Triton there is depends on torch's build, so constraints.txt must not pin it.
DIRECT = [*PROJECT["dependencies"], *(r for name, extra in EXTRAS.items() if name != "triton" for r in extra)]


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


BUILD_SDIST = "from setuptools import build_meta; build_meta.build_sdist('dist')"
INSTALLED = """
import rnndrop_plugin, sys
from rnndrop_plugin.ops import c_library
assert rnndrop_plugin.__file__.startswith(sys.prefix), rnndrop_plugin.__file__
assert c_library.unavailable() is None
"""


def run(*command, cwd, **environment) -> str:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the wheel that was built from the source distribution, which was built from a copy.

    Torch and the other packages are those of this environment; the project's own files are not found through it.
    """
    folder = tmp_path_factory.mktemp("packaging")
    files = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in files:
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    run(sys.executable, "-c", BUILD_SDIST, cwd=folder / "copy")
    (sdist,) = (folder / "copy" / "dist").iterdir()
    shutil.rmtree(folder / "copy" / "rnndrop_plugin")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in files if name not in packed and not name.startswith(".")] == []
    assert [name for name in packed if name.endswith((".so", ".pyc"))] == []
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder / "wheels", sdist, cwd=folder)
    (wheel,) = (folder / "wheels").iterdir()
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # a path in a .pth file makes its packages importable, and does not read its .pth files: no editable installation
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "--python", python, "install", *offline, wheel, cwd=folder)
    return folder / "venv", wheel


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("git") is None, reason="needs a C compiler and git")
def test_the_wheel_of_the_sdist_trains_in_an_empty_folder(environment, tmp_path):
    folder, wheel = environment
    assert re.fullmatch(r"rnndrop_plugin-[\d.]+-py3-none-manylinux_2_\d+_\w+\.whl", wheel.name)
    run(folder / "bin" / "python", "-c", INSTALLED, cwd=tmp_path)
    rnndrop = (folder / "bin" / "rnndrop",)
    assert "prepare text" in run(*rnndrop, "--help", cwd=tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe dog sat on the cat\n" * 20)
    run(*rnndrop, "prepare", "text", "text.txt", "--dest", "data", cwd=tmp_path)
    flags = "data --arch lstm_rnndrop --cpu --optimizer sgd --lr 1 --batch-size 4 --tokens-per-sample 8 --max-update 3"
    sizes = "--decoder-embed-dim 8 --decoder-hidden-size 8 --update-dropout 0.25".split()
    log = run(*rnndrop, "train", *flags.split(), *sizes, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "done training" in log
    run(*rnndrop, "eval", "data", "--path", "checkpoints/checkpoint_best.pt", "--cpu", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("git") is None, reason="needs a C compiler and git")
def test_without_fairseq_the_modules_work(environment, tmp_path):
    folder, _ = environment
    hidden = "import sys; sys.modules.update(dict.fromkeys(('fairseq', 'fairseq_cli', 'hydra', 'omegaconf')))\n"
    train = "import torch; from rnndrop_plugin.modules import LSTM; LSTM(2, 3, update_dropout=0.5)(torch.ones(4, 2))"
    run(folder / "bin" / "python", "-c", hidden + train, cwd=tmp_path)
