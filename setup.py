"""Compiles the recurrences for the CPU. Everything else about the package is in pyproject.toml.

The result is a plain shared library that uses neither Python nor torch, so it has no version tags. The package also
works without it, on torch operations, which are slower. So the installation does not fail if the compiler is missing
or fails.
"""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

OPS = Path("rnndrop_plugin", "ops")
SOURCES = sorted((OPS / "csrc").glob("*.[ch]"))
LIBRARY = "librecurrence.so"
FAILURE = "librecurrence.failure.txt"  # why there is no library, in one line; c_library.py reports it


TYPES = {"float": ["-DREAL=float"], "double": ["-DREAL=double", "-DDOUBLE"]}
# The instruction sets for which kernels are compiled: compiler flags, and sizes for kernel.c.
SETS = {"plain": ["-DVECTOR_BYTES=16", "-DMOST_ROWS=6", "-DTRANSPOSED_ROWS=4"]}
if platform.machine().lower() in ("x86_64", "amd64"):
    SETS["avx2"] = ["-mavx2", "-mfma", "-DVECTOR_BYTES=32", "-DMOST_ROWS=6", "-DTRANSPOSED_ROWS=4"]
    SETS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
        *("-DVECTOR_BYTES=64", "-DMOST_ROWS=12", "-DTRANSPOSED_ROWS=8"),
    ]


def compilation(digest, objects, library):
    """The commands that compile kernel.c for each type and instruction set, compile library.c, and link them all."""
    compiler = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC"),
        *shlex.split(os.environ.get("CFLAGS", "")),
    ]
    kernels = {f"{real}_{name}": TYPES[real] + SETS[name] for name in SETS for real in TYPES}
    for kernel, options in kernels.items():
        source = str(OPS / "csrc" / "kernel.c")
        yield [*compiler, *options, f"-DKERNEL=kernel_{kernel}", "-c", source, "-o", str(objects / f"{kernel}.o")]
    x86 = ["-DX86"] if "avx2" in SETS else []
    parts = [str(OPS / "csrc" / "library.c"), *(str(objects / f"{kernel}.o") for kernel in kernels)]
    yield [*compiler, *x86, digest, "-shared", *parts, "-o", str(library)]


def run_compiler(command):
    """Run a command. Returns None, or if it fails the first line of its output that reports an error."""
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        return f"there is no C compiler: {error}"
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines[:1]
    return errors[0].strip() if errors else f"{command[0]} ended with status {done.returncode}"


class build_recurrence(Command):
    """Compile the C sources into the build, or into the source tree of an editable installation."""

    description = "compile the recurrences for the CPU"
    user_options = []

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        target = (OPS if self.editable_mode else Path(self.build_lib) / OPS) / LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        # The library gets its name last, so that nobody loads half of it.
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        failure = target.with_name(FAILURE)
        failure.unlink(missing_ok=True)
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:16]
        with tempfile.TemporaryDirectory() as objects:
            commands = list(compilation(f'-DDIGEST="{digest}"', Path(objects), unfinished))
            reason = next(filter(None, map(run_compiler, commands)), None)
        if reason is None:
            unfinished.replace(target)
            return
        unfinished.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        failure.write_text(f"{reason}\n")
        print(
            f"warning: the compiled recurrence was not built; slower torch operations will be used: {reason}",
            file=sys.stderr,
        )

    # setuptools needs these methods of a build's sub-command.
    def get_source_files(self):
        return [str(source) for source in SOURCES]

    def get_outputs(self):
        targets = [Path(self.build_lib) / OPS / name for name in (LIBRARY, FAILURE)]
        return [str(target) for target in targets if target.exists()]

    def get_output_mapping(self):
        return {}


class build_all(build):
    sub_commands = [*build.sub_commands, ("build_recurrence", None)]


class platform_wheel(bdist_wheel):
    """A wheel for every Python. With the library it is for every Linux whose C library has the functions it calls."""

    def get_tag(self):
        library = Path(self.get_finalized_command("build").build_lib) / OPS / LIBRARY
        if not library.exists():
            return "py3", "none", "any"
        platform = super().get_tag()[2]
        versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
        if platform.startswith("linux_") and versions:
            newest = max((2, 17), *(tuple(map(int, version)) for version in versions))  # pip knows no tag before 2.17
            platform = f"manylinux_{newest[0]}_{newest[1]}_{platform.removeprefix('linux_')}"
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    """A distribution for one kind of machine, because of the library, but for any version of Python."""

    def has_ext_modules(self):
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": build_all, "build_recurrence": build_recurrence, "bdist_wheel": platform_wheel},
)
