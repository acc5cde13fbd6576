"""Prepare CoNLL-2003, or other files with a word and its entity tag on each line, for tagging with fairseq."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from rnndrop_plugin.cli.command import run  # noqa: E402
from rnndrop_plugin.cli.prepare_conll import main  # noqa: E402

if __name__ == "__main__":
    run(main)
