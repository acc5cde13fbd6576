"""Compiles the recurrences for the CPU; everything else about the package is in pyproject.toml.

The result is a plain shared library that knows neither Python nor torch, so it has no version tags, and
the package works without it (on torch operations, slower): a compiler that is missing or fails does not
fail the installation.
"""

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

OPS = Path("rnndrop_plugin", "ops")
SOURCES = ("recurrence.c", "recurrence_kernel.h")
LIBRARY = "librecurrence.so"


class build_recurrence(Command):
    """Compile recurrence.c into the build, or into the source tree of an editable installation."""

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
        # The name is changed last, so that nobody loads half a library.
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        digest = hashlib.sha256(b"".join((OPS / "csrc" / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
        command = [
            *shlex.split(os.environ.get("CC", "cc")),
            *("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"),
            *(f'-DDIGEST="{digest}"', str(OPS / "csrc" / SOURCES[0]), "-o", str(unfinished)),
        ]
        try:
            subprocess.run(command, check=True)
            unfinished.replace(target)
        except (OSError, subprocess.CalledProcessError) as error:
            unfinished.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            print(
                f"warning: the compiled recurrence was not built, torch operations will serve: {error}", file=sys.stderr
            )

    # What setuptools asks of a build's sub-command.
    def get_source_files(self):
        return [str(OPS / "csrc" / name) for name in SOURCES]

    def get_outputs(self):
        target = Path(self.build_lib) / OPS / LIBRARY
        return [str(target)] if target.exists() else []

    def get_output_mapping(self):
        return {}


class build_all(build):
    sub_commands = [*build.sub_commands, ("build_recurrence", None)]


class platform_wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    """With the library it is of one kind of machine, but of no version of Python."""

    def has_ext_modules(self):
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": build_all, "build_recurrence": build_recurrence, "bdist_wheel": platform_wheel},
)
