"""Plot the norm of an LSTM's cell over time under each recurrent dropout, for the nets of reproduce.py table1."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
from experiments.plot_cell_norms import main  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402

if __name__ == "__main__":
    run(main)
