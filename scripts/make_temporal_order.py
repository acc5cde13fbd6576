"""Make the data of the paper's Temporal Order task: classify a sequence by the order of its two meaningful symbols."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from rnndrop_plugin.cli.command import run  # noqa: E402
from rnndrop_plugin.cli.prepare_temporal_order import main  # noqa: E402

if __name__ == "__main__":
    run(main)
