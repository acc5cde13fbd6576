"""The origin of a result: the commit of this checkout, and the device."""

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit() -> str | None:
    """The commit of the checkout, followed by "-dirty" if files were changed; None if there is no git."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # ignores a repository around this one
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def device(cpu: bool) -> str:
    """The name of the GPU, or of the processor."""
    if not cpu:
        import torch  # takes seconds

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"one thread of {names[0] if names else platform.machine()}"
