"""Kill a training at random moments, start it again each time, and compare its results with an uninterrupted run's."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from experiments.soak import main  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402

if __name__ == "__main__":
    run(main)
