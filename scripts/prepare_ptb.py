"""Prepare the Penn Treebank, or three other text files laid out like it, for language modelling with fairseq."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from rnndrop_plugin.cli.command import run  # noqa: E402
from rnndrop_plugin.cli.prepare_ptb import main  # noqa: E402

if __name__ == "__main__":
    run(main)
