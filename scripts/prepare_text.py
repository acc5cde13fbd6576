"""Prepare raw text for language modelling with fairseq: split it, tokenise it and cut off rare words."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from rnndrop_plugin.cli.command import run  # noqa: E402
from rnndrop_plugin.cli.prepare_text import main  # noqa: E402

if __name__ == "__main__":
    run(main)
