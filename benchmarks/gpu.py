"""What recurrent dropout costs on a GPU: each layer is compared with torch.nn's without dropout (cuDNN).

    python benchmarks/gpu.py --json figures.json

Training steps (forward and backward, with the gradients of input and weights) are timed when they are called several
times in succession, and again as a CUDA graph, which shows the time of the GPU's work only. Matrix products in float32
may use TF32 in all layers (--ieee: in none).
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.modules["fairseq"] = None  # takes seconds to import, and layers do not need it

from rnndrop_plugin import modules  # noqa: E402
from rnndrop_plugin.cli.arguments import positive_number  # noqa: E402
from rnndrop_plugin.files import write_text  # noqa: E402

DEVICE = "cuda"
RATE = 0.25
RUN = 8  # how many calls are timed in succession
SHAPES = [(35, 32, 256, 256), (35, 20, 650, 650), (70, 64, 400, 1152), (35, 128, 512, 512), (100, 32, 256, 1024)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LAYERS = {  # the layers of each family that are measured after torch.nn's own
    "LSTM": [{"update_dropout": RATE}, {"update_dropout": RATE, "scaling": "expected"}, {"hidden_dropout": RATE}],
    "GRU": [{"update_dropout": RATE}, {"update_dropout": RATE, "reset_after": True}],
    "RNN": [{"hidden_dropout": RATE}],
}
#: The LSTMs that are also measured in evaluation.
EVALUATED = [{"update_dropout": RATE}, {"update_dropout": RATE, "scaling": "expected"}]


class Case(NamedTuple):
    """A layer at a size; ``options`` are None for torch.nn's own layer."""

    family: str
    options: dict | None
    shape: tuple[int, int, int, int]
    dtype: str
    training: bool

    @property
    def name(self) -> str:
        """The layer's name and options."""
        if self.options is None:
            return f"torch.nn.{self.family}"
        return " ".join(["rnndrop", self.family, *(f"{key}={value}" for key, value in self.options.items())])

    def step(self) -> Callable[[], None]:
        """A function that runs one training step, or a forward pass without gradient."""
        torch.manual_seed(0)
        time, batch, features, hidden = self.shape
        where = {"device": DEVICE, "dtype": DTYPES[self.dtype]}
        build = getattr(nn if self.options is None else modules, self.family)
        module = build(features, hidden, **(self.options or {}), **where).train(self.training)
        input = torch.randn(time, batch, features, **where, requires_grad=self.training)
        gradient = torch.randn(time, batch, hidden, **where)
        leaves = [input, *module.parameters()]

        def step() -> None:
            with torch.set_grad_enabled(self.training):
                output, _ = module(input)
            if self.training:
                torch.autograd.grad(output, leaves, gradient)

        return step

    def operations(self) -> int:
        """The number of multiplications and additions in the matrix products."""
        time, batch, features, hidden = self.shape
        return 2 * time * batch * GATES[self.family] * hidden * (features + hidden) * (3 if self.training else 1)


class Figure(NamedTuple):
    """The measurements of a case.

    Attributes:
        ratio: the ratio of its time, called without a graph, to torch.nn's, measured in turn in the same run.
        graph_ratio: the same ratio in CUDA graphs.
        share: the time that its matrix products alone would take at the card's best rate / its time in a graph.
        memory: the MiB that a step needs at its peak, besides the layer and its input.
    """

    case: Case
    milliseconds: float
    ratio: float
    graph_milliseconds: float | None
    graph_ratio: float | None
    share: float | None
    memory: float

    def __str__(self) -> str:
        graph = "        -      -     -"
        if self.graph_milliseconds is not None:
            graph = f"{self.graph_milliseconds:9.3f} {self.graph_ratio:6.2f} {self.share:5.0%}"
        return f"  {self.milliseconds:9.3f} {self.ratio:6.2f} {graph} {self.memory:8.0f}  {self.case.name}"


def timed(calls: list[Callable[[], None]], seconds: float) -> list[list[float]]:
    """The milliseconds of each call, in repetitions that take turns. A repetition is RUN calls in succession: as in
    training, the host launches work while the GPU is still busy."""
    for call in calls:
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    repetitions = max(5, min(50, round(seconds / RUN / (time.perf_counter() - start))))
    marks = [[tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in calls] for _ in range(repetitions)]
    for row in marks:
        for call, (begin, end) in zip(calls, row, strict=True):
            torch.cuda.synchronize()
            begin.record()
            for _ in range(RUN):
                call()
            end.record()
    torch.cuda.synchronize()
    return [[begin.elapsed_time(end) / RUN for begin, end in column] for column in zip(*marks, strict=True)]


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak_memory(step: Callable[[], None]) -> float:
    """The MiB that a step needs at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(cases: list[Case], seconds: float, rate: float) -> list[Figure]:
    """Measure all cases in turn, and compare them with the first one."""
    steps = [case.step() for case in cases]
    eager = timed(steps, seconds)
    memory = [peak_memory(step) for step in steps]
    try:
        graphs: list | None = timed([captured(step) for step in steps], seconds)
    except RuntimeError as error:
        print(f"  not captured: {error}", file=sys.stderr)
        graphs = None
    figures = []
    for k, case in enumerate(cases):
        ratio = median(x / y for x, y in zip(eager[k], eager[0], strict=True))
        graph = graph_ratio = share = None
        if graphs:
            graph = median(graphs[k])
            graph_ratio = median(x / y for x, y in zip(graphs[k], graphs[0], strict=True))
            share = 1000 * case.operations() / rate / graph
        figures.append(Figure(case, median(eager[k]), ratio, graph, graph_ratio, share, memory[k]))
    return figures


def product_rate(dtype: torch.dtype) -> float:
    """The best rate of torch's matrix product, in operations per second."""
    best = 0.0
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        (times,) = timed([lambda a=a, b=b: torch.mm(a, b)], 0.5)
        best = max(best, 2 * size**3 / min(times) * 1000)
    return best


def comparisons(shapes: list, dtypes: list[str], families: list[str]) -> Iterator[tuple[str, list[Case]]]:
    """The title and the cases of each table."""
    for dtype in dtypes:
        for shape in shapes:
            for family in families:
                options = [None, *LAYERS[family]]
                yield f"training, {dtype}, {shape}", [Case(family, o, shape, dtype, True) for o in options]
            if "LSTM" in families:
                cases = [Case("LSTM", o, shape, dtype, False) for o in (None, *EVALUATED)]
                yield f"evaluation, {dtype}, {shape}", cases
    if "LSTM" in families:
        first = shapes[0]
        for k, size in {0: "time", 1: "batch", 3: "hidden"}.items():
            grown = tuple(2 * n if j == k else n for j, n in enumerate(first))
            cases = [Case("LSTM", LAYERS["LSTM"][0], shape, dtypes[0], True) for shape in (first, grown)]
            yield f"growth, {dtypes[0]}, twice the {size} of {first}: the ratio is to the layer's own figure", cases


def switch_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 matrix products."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def warm(case: Case, tf32: bool) -> None:
    """Compile the kernels of a case. Triton keeps them on disk, so this can be done in another process."""
    switch_tf32(tf32)
    case.step()()
    torch.cuda.synchronize()


def compile_ahead(cases: list[Case], tf32: bool, seconds: float) -> None:
    """Compile the kernels of all cases in parallel processes, for at most this many seconds."""
    pool = ProcessPoolExecutor(min(12, os.cpu_count() or 1), multiprocessing.get_context("spawn"))
    done, late = wait([pool.submit(warm, case, tf32) for case in cases], seconds)
    for future in done:
        if future.exception() is not None:
            print(f"not compiled: {future.exception()}", file=sys.stderr)
    if late:
        print(f"not compiled in {seconds:.0f} s: {len(late)} of {len(cases)} layers", file=sys.stderr)
    pool.shutdown(wait=False, cancel_futures=True)


def shape(text: str) -> tuple[int, ...]:
    """An argparse type: TIME,BATCH,INPUT,HIDDEN."""
    sizes = tuple(int(x) for x in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise ValueError
    return sizes


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="TIME,BATCH,INPUT,HIDDEN")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--families", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--ieee", action="store_true", help="float32 without TF32")
    parser.add_argument("--seconds", type=positive_number, default=0.4, help="for each comparison (default: 0.4)")
    parser.add_argument("--budget", type=float, default=280, help="seconds after which no more comparisons begin")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"{args.json}: no such folder")
    start = time.perf_counter()
    switch_tf32(not args.ieee)
    plan = list(comparisons(args.shapes, args.dtypes, args.families))
    versions = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton") if find_spec("triton") else None,
        "tf32": not args.ieee,
    }
    print(", ".join(f"{name}: {value}" for name, value in versions.items()), flush=True)
    ours = [case for _, cases in plan for case in cases if case.options is not None]
    compile_ahead(ours, not args.ieee, args.budget / 3)
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
    rates = {name: product_rate(DTYPES[name]) for name in args.dtypes}
    for name, rate in rates.items():
        print(f"torch's product in {name}: {rate / 1e12:.0f} TFLOP/s at best")
    print("Columns: ms, ratio to torch.nn; in a CUDA graph ms, ratio, share of the card's rate; MiB at the peak; layer")
    figures = []
    for title, cases in plan:
        if time.perf_counter() - start > args.budget:
            print(f"\nno time was left for {title}, {cases[0].family}")
            continue
        print(f"\n{title}", flush=True)
        try:
            found = compare(cases, args.seconds, rates[cases[0].dtype])
        except RuntimeError as error:  # go on, as the other tables are still worth having
            print(f"  not measured: {error}", file=sys.stderr, flush=True)
            continue
        for figure in found:
            print(figure, flush=True)
            figures.append(figure)
        if args.json:  # write after each table, so that an interrupted run keeps its figures
            records = [figure._asdict() | {"case": figure.case._asdict()} for figure in figures]
            write_text(args.json, json.dumps(versions | {"rates": rates, "figures": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
