import os
import subprocess
import sys

import pytest


@pytest.fixture
def passes_in_the_interpreter():
    """Has a file's tests pass in a process of their own, in which Triton interprets kernels on a CPU.

    The interpreter has to be chosen before Triton is imported.
    """

    def run(file: str, *flags: str) -> None:
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *flags, file]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout

    return run
