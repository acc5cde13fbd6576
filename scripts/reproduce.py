"""Run an experiment of the paper and write its table beside the paper's figures."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from experiments.reproduce import main  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402

if __name__ == "__main__":
    run(main)
