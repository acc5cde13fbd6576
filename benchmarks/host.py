"""The host's time for a recurrence on Triton's kernels, in microseconds, without the launches and the GPU's work.

    python benchmarks/host.py

It needs no GPU. The tensors are tiny and on the CPU, and nothing is launched. The figures are minima of many short
repetitions, so that other work of the machine does not change them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.modules["fairseq"] = None  # takes seconds to import, and layers do not need it

from rnndrop_plugin.cli.arguments import positive  # noqa: E402
from rnndrop_plugin.modules import GRU, LSTM, RNN  # noqa: E402
from rnndrop_plugin.ops import availability, masks  # noqa: E402
from rnndrop_plugin.ops.recurrence.triton import backend, loops, tiles  # noqa: E402

SIZE = (2, 2, 4, 8)  # time, batch, input, hidden: so small that the CPU hardly computes anything
LAYERS = {
    "LSTM update_dropout": lambda: LSTM(*SIZE[2:], update_dropout=0.25, backend="triton"),
    "LSTM hidden_dropout": lambda: LSTM(*SIZE[2:], hidden_dropout=0.25, backend="triton"),
    "GRU update_dropout": lambda: GRU(*SIZE[2:], update_dropout=0.25, backend="triton"),
    "GRU reset_after update_dropout": lambda: GRU(*SIZE[2:], reset_after=True, update_dropout=0.25, backend="triton"),
    "RNN hidden_dropout": lambda: RNN(*SIZE[2:], hidden_dropout=0.25, backend="triton"),
}


class Unlaunched:
    """A kernel that does nothing."""

    def __init__(self, kernel):
        self.__name__, self.arg_names = kernel.__name__, kernel.arg_names

    def __getitem__(self, grid):
        return lambda **arguments: {grid: lambda *arguments: None}


@contextmanager
def nothing_launched() -> Iterator[None]:
    """Make the backend believe that there is a GPU, and launch nothing."""
    with (
        patch.object(availability, "obstacle", lambda device, dtype: None),
        patch.object(tiles, "device_limits", lambda device: (132, 227 * 1024)),
        patch.object(tiles, "_chosen", {}),
        patch.object(backend, "_launchers", {}),
        patch.object(masks, "_draw", lambda p, shape, *_: torch.empty(shape, dtype=torch.bool)),  # not drawn
        patch.object(loops, "forward", Unlaunched(loops.forward)),
        patch.object(loops, "backward", Unlaunched(loops.backward)),
    ):
        yield


def least(call: Callable[[], object], repetitions: int) -> float:
    """The microseconds of a call, as the minimum of means over 20 calls."""
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        for _ in range(20):
            call()
        best = min(best, (time.perf_counter() - start) / 20)
    return 1e6 * best


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repetitions", type=positive, default=300, help="of 20 calls (default: 300)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}. Columns: the module forward, the gradients of input and weights backward; us")
    with nothing_launched():
        for name, build in LAYERS.items():
            layer, input = build(), torch.randn(*SIZE[:3], requires_grad=True)
            forward = least(lambda layer=layer, input=input: layer(input), args.repetitions)
            output, _ = layer(input)
            gradient = torch.ones_like(output)
            backward = least(
                lambda output=output, gradient=gradient: output.backward(gradient, retain_graph=True), args.repetitions
            )
            print(f"  {forward:6.1f} {backward:6.1f}  {name}", flush=True)


if __name__ == "__main__":
    main()
