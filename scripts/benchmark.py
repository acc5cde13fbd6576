"""Measure what recurrent dropout costs, compared with torch.nn without dropout in the same run."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
if __name__ in ("__main__", "__mp_main__"):  # the script or a process of it
    sys.modules["fairseq"] = None  # takes seconds to import, and layers do not need it

from benchmarks.benchmark import main  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402

if __name__ == "__main__":
    run(main)
