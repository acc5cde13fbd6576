"""Classify texts with a model that fairseq-train has trained for the task rnndrop_classification."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from rnndrop_plugin.cli.classify import main  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402

if __name__ == "__main__":
    run(main)
