"""Measure what recurrent dropout costs: against torch.nn without dropout, side by side in one run."""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

if __name__ in ("__main__", "__mp_main__"):  # the script or a process of it
    sys.modules["fairseq"] = None  # takes seconds to import, and layers do without it

from rnndrop_plugin import modules  # noqa: E402
from rnndrop_plugin.cli.arguments import positive  # noqa: E402
from rnndrop_plugin.cli.command import run  # noqa: E402
from rnndrop_plugin.ops import Mask, Masks, c_library, choose_backend  # noqa: E402

RATE = 0.25
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SHAPES = [(35, 32, 256, 256), (100, 32, 256, 1024), (15, 32, 256, 1024), (30, 32, 4, 256), (70, 64, 400, 1152)]
SECTIONS = ("training", "evaluation", "memory", "growth")


class Shape(NamedTuple):
    """The size of a layer's work."""

    time: int
    batch: int
    input: int
    hidden: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Layer(NamedTuple):
    """One layer to compare.

    Attributes:
        name: says what it is and what it drops.
        family: "LSTM", "GRU" or "RNN", the one of torch.nn that it is compared with.
        backend: what runs it.
        build: makes the module from the sizes of the input and the state.
    """

    name: str
    family: str
    backend: str
    build: Callable[[int, int], nn.Module]


class Figure(NamedTuple):
    """One measurement.

    Attributes:
        ratio: to torch.nn's own layer without dropout in the same repetition, median; below 1 is better. Growth: to the
            layer's own figure before doubling.
        value: median over the repetitions, in ``unit``.
        share: the time that the products alone would take at the machine's rate / the time taken; None for memory.
        repetitions: each repetition's value.
    """

    section: str
    shape: Shape
    family: str
    name: str
    backend: str
    ratio: float
    value: float
    unit: str
    share: float | None
    repetitions: list[float]


def torchs(family: str) -> Layer:
    return Layer(f"torch.nn.{family}, no dropout", family, "torch.nn", getattr(nn, family))


def ours(
    family: str,
    kind: str = "",
    sampling: str = "step",
    backend: str = "auto",
    batch: int = 32,
    training: bool = True,
    **options,
) -> Layer:
    """Our layer with one kind of dropout, none if ``kind`` is empty; ``batch`` is what it will run on."""
    if kind:
        options.update({f"{kind}_dropout": RATE, "sampling": sampling})
    cell = family.lower() if family != "GRU" or not options.get("reset_after") else "gru_reset_after"
    keep = Mask(torch.ones(1, 1, dtype=torch.bool), 1 / (1 - RATE)) if training else Mask(None, 1 - RATE)
    masks = Masks(**{kind: keep} if kind else {})
    name = {"GRU": "GRU (paper's)", "gru_reset_after": "GRU (reset_after)"}.get(cell if "_" in cell else family, family)
    drops = f"{kind} dropout per {sampling}" if kind else "no dropout"
    if backend == "reference":
        return Layer(
            f"a plain step loop of the {name}, {drops}",
            family,
            backend,
            lambda i, h: getattr(modules, family)(i, h, backend=backend, **options),
        )
    chosen = choose_backend(cell, masks, backend=backend, batch=batch, training=training)
    return Layer(
        f"rnndrop {name}, {drops}",
        family,
        "torch.nn" if chosen == "vendor" else chosen,
        lambda i, h: getattr(modules, family)(i, h, backend=backend, **options),
    )


def keras_lstm() -> list[Layer]:
    """Keras' LSTM with its recurrent_dropout (of h, one mask for all steps), if Keras is installed."""
    if importlib.util.find_spec("keras") is None:
        return []
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    if keras.backend.backend() != "torch":
        return []

    class KerasLSTM(nn.Module):
        def __init__(self, input_size: int, hidden_size: int):
            super().__init__()
            self.layer = keras.layers.LSTM(hidden_size, return_sequences=True, recurrent_dropout=RATE)
            self.layer.build((None, None, input_size))
            self.kernels = nn.ParameterList(v.value for v in self.layer.trainable_variables)

        def forward(self, input):
            return self.layer(input.transpose(0, 1), training=self.training).transpose(0, 1), None

    return [Layer(f"Keras {keras.__version__} LSTM, recurrent_dropout", "LSTM", "Keras on torch", KerasLSTM)]


def training_layers(family: str, batch: int = 32) -> list[Layer]:
    """What is compared in training, torch.nn's own layer first."""
    if family == "RNN":
        return [
            torchs("RNN"),
            ours("RNN", batch=batch),
            ours("RNN", "hidden"),
            ours("RNN", "hidden", "sequence"),
            ours("RNN", "hidden", backend="reference"),
        ]
    every = [(kind, sampling) for kind in Masks._fields for sampling in ("step", "sequence")]
    if family == "LSTM":
        return [
            torchs("LSTM"),
            ours("LSTM", batch=batch),
            *(ours("LSTM", kind, sampling) for kind, sampling in every),
            ours("LSTM", "update", backend="reference"),
            *keras_lstm(),
        ]
    return [
        torchs("GRU"),
        ours("GRU", reset_after=True, batch=batch),
        ours("GRU", "update", reset_after=True),
        ours("GRU", "hidden", reset_after=True),
        ours("GRU", "cell", reset_after=True),
        ours("GRU"),
        ours("GRU", "update"),
        ours("GRU", "hidden"),
        ours("GRU", "cell"),
        ours("GRU", "update", backend="reference"),
    ]


def evaluation_layers(family: str) -> list[Layer]:
    """What is compared in evaluation. Inverted scaling drops and scales nothing then, expected scaling does."""
    kind = "hidden" if family == "RNN" else "update"
    layers = [torchs(family)]
    for scaling in ("inverted", "expected"):
        layer = ours(family, kind, training=False, scaling=scaling, **{"reset_after": True} if family == "GRU" else {})
        backend = "torch.nn" if scaling == "inverted" else layer.backend
        layers.append(layer._replace(name=f"{layer.name}, {scaling} scaling", backend=backend))
    return layers


def operations(family: str, shape: Shape, training: bool) -> float:
    """The multiplications and additions of a layer's products; the gradient takes twice as many again."""
    forward = 2 * shape.time * shape.batch * GATES[family] * shape.hidden * (shape.input + shape.hidden)
    return forward * (3 if training else 1)


def product_rate(seconds: float) -> float:
    """The best rate of torch's matrix product in float32, operations a second; ``seconds`` for each size."""
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 256, 1120), (4096, 1024, 1120)):
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            torch.mm(a, b, out=c)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def make_step(layer: Layer, shape: Shape, training: bool = True) -> Callable[[], None]:
    """One forward pass, with the gradients of input and weights in training."""
    torch.manual_seed(0)
    module = layer.build(shape.input, shape.hidden).train(training)
    input = torch.randn(shape.time, shape.batch, shape.input, requires_grad=training)
    gradient = torch.randn(shape.time, shape.batch, shape.hidden)
    leaves = [input, *module.parameters()]

    def step() -> None:
        with torch.set_grad_enabled(training):
            output, _ = module(input)
        if training:
            torch.autograd.grad(output, leaves, gradient)

    return step


def compare(
    layers: list[Layer], shapes: list[Shape], training: bool, seconds: float, progress: tqdm
) -> list[list[float]]:
    """The seconds that a step of each layer takes at its shape, in repetitions that take turns."""
    steps = [make_step(layer, shape, training) for layer, shape in zip(layers, shapes, strict=True)]
    start = time.perf_counter()
    for step in steps:
        step()
    once = time.perf_counter() - start
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(max(5, min(100, round(seconds / once)))):
        for step, times in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
            progress.update()
    return taken


def ratios(times: list[float], baseline: list[float]) -> float:
    return median(x / y for x, y in zip(times, baseline, strict=True))


def timings(
    section: str, families: list[str], shapes: list[Shape], seconds: float, rate: float, progress: tqdm
) -> Iterator[Figure]:
    """Every layer of a section against torch.nn's own at each shape."""
    training = section == "training"
    for shape in shapes:
        for family in families:
            layers = training_layers(family, shape.batch) if training else evaluation_layers(family)
            taken = compare(layers, [shape] * len(layers), training, seconds, progress)
            for layer, times in zip(layers, taken, strict=True):
                yield Figure(
                    section,
                    shape,
                    family,
                    layer.name,
                    layer.backend,
                    ratios(times, taken[0]),
                    1000 * median(times),
                    "ms",
                    operations(family, shape, training) / rate / median(times),
                    [1000 * t for t in times],
                )


def growth(families: list[str], shape: Shape, seconds: float, rate: float, progress: tqdm) -> list[Figure]:
    """How the time of a training step grows when the time steps, the batch or the hidden size double."""
    figures = []
    for family in families:
        kind = "hidden" if family == "RNN" else "update"
        for layer in (torchs(family), ours(family, kind)):
            grown = [shape._replace(**{size: 2 * getattr(shape, size)}) for size in ("time", "batch", "hidden")]
            taken = compare([layer] * 4, [shape, *grown], True, seconds, progress)
            for size, times in zip(grown, taken[1:], strict=True):
                figures.append(
                    Figure(
                        "growth",
                        size,
                        family,
                        layer.name,
                        layer.backend,
                        ratios(times, taken[0]),
                        1000 * median(times),
                        "ms",
                        operations(family, size, True) / rate / median(times),
                        [1000 * t for t in times],
                    )
                )
    return sorted(figures, key=lambda figure: (list(GATES).index(figure.family), figure.shape))


def memory_layers(family: str) -> list[Layer]:
    """What is compared in memory."""
    kinds = ["hidden"] if family == "RNN" else Masks._fields
    layers = [torchs(family), *(ours(family, kind) for kind in kinds)]
    return [*layers, ours("GRU", "update", reset_after=True)] if family == "GRU" else layers


def peak_memory(index: int, family: str, shape: Shape, threads: int, connection) -> None:
    """Send the peak resident size of two training steps less the size before them, in MiB (in a fresh process)."""
    torch.set_num_threads(threads)
    layer = memory_layers(family)[index]
    make_step(layer, Shape(2, 2, 3, 4))()  # what the first call loads is not counted
    step = make_step(layer, shape)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = _status("VmRSS")
    for _ in range(2):
        step()
    connection.send(max(4, _status("VmHWM") - before) / 1024)  # a page at least


def _status(field: str) -> int:
    """A field of Linux's account of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status: has no {field}")


def memory(families: list[str], shapes: list[Shape], progress: tqdm, repetitions: int = 2) -> Iterator[Figure]:
    """The peak memory of a training step, each layer in fresh processes."""
    context = multiprocessing.get_context("spawn")
    for shape in shapes:
        for family in families:
            layers = memory_layers(family)
            used: list[list[float]] = [[] for _ in layers]
            for _ in range(repetitions):
                for index in range(len(layers)):
                    receiver, sender = context.Pipe(duplex=False)
                    arguments = (index, family, shape, torch.get_num_threads(), sender)
                    process = context.Process(target=peak_memory, args=arguments)
                    process.start()
                    sender.close()
                    try:
                        used[index].append(receiver.recv())
                    except EOFError:
                        raise ValueError(f"the process that measures {layers[index].name} failed") from None
                    finally:
                        process.join()
                    progress.update()
            for layer, sizes in zip(layers, used, strict=True):
                yield Figure(
                    "memory",
                    shape,
                    family,
                    layer.name,
                    layer.backend,
                    ratios(sizes, used[0]),
                    median(sizes),
                    "MiB",
                    None,
                    sizes,
                )


TITLES = {
    "training": "Training: forward and backward pass / that of torch.nn without dropout",
    "evaluation": "Evaluation: forward pass / that of torch.nn",
    "memory": "Peak memory of a training step / that of torch.nn without dropout",
    "growth": "Growth: a training step with one size doubled / one at {}",
}


def table(figures: list[Figure]) -> str:
    """The figures of one section, the ratios first."""
    lines = []
    shape = None
    for figure in figures:
        if (figure.shape, figure.family) != shape:
            shape = (figure.shape, figure.family)
            lines.append(f"\n  (time, batch, input, hidden) = ({figure.shape})")
        share = "" if figure.share is None else f"{figure.share:7.0%} "
        lines.append(
            f"  {figure.ratio:6.2f} {figure.value:9.1f} {figure.unit} {share} {figure.name} [{figure.backend}]"
        )
    return "\n".join(lines)


def plot(figures: list[Figure], path: Path) -> None:
    """Bars of the training ratios, one panel a shape."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figures = [figure for figure in figures if figure.section == "training" and figure.backend != "reference"]
    if not figures:
        raise ValueError("--plot needs the section training")
    shapes = list(dict.fromkeys(figure.shape for figure in figures))
    rows = max(sum(figure.shape == shape for figure in figures) for shape in shapes)
    picture, panels = pyplot.subplots(
        1,
        len(shapes),
        figsize=(4 + 2.2 * len(shapes), 1.5 + 0.25 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, shape in zip(panels[0], shapes, strict=True):
        bars = [figure for figure in figures if figure.shape == shape][::-1]
        colours = [f"C{list(GATES).index(figure.family)}" for figure in bars]
        axes.barh([figure.name for figure in bars], [figure.ratio for figure in bars], color=colours)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(f"({shape})", fontsize="small")
    picture.suptitle("Time of a training step / that of torch.nn without dropout; (time, batch, input, hidden)")
    write(path, picture.savefig)


def write(path: Path, save: Callable) -> None:
    """Write a file that takes its name when it is whole."""
    new = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def machine() -> dict:
    """What the figures were measured on."""
    instructions = None if c_library.unavailable() else c_library.instructions()
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiled recurrence": instructions or f"not available: {c_library.unavailable()}",
    }


def shape_type(text: str) -> Shape:
    try:
        sizes = [int(x) for x in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not TIME,BATCH,INPUT,HIDDEN")
    return Shape(*sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare layers with recurrent dropout with those of torch.nn without, and with the step loop that "
        "recurrent dropout takes otherwise. Repetitions take turns and medians are printed, yet only an idle machine "
        "gives figures worth keeping."
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--families", nargs="+", choices=GATES, default=list(GATES), help="default: all")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape_type,
        metavar="TIME,BATCH,INPUT,HIDDEN",
        default=[Shape(*shape) for shape in SHAPES],
        help="sizes of the work (default: those of the README's table)",
    )
    parser.add_argument("--threads", type=positive, help="default: torch's choice")
    parser.add_argument(
        "--seconds", type=float, default=15, help="for each comparison, at least 5 repetitions (default: 15)"
    )
    parser.add_argument(
        "--end-to-end",
        type=Path,
        nargs="?",
        const=True,
        metavar="DATA",
        help="also compare fairseq-train's words per second, and those of two processes of one thread with one's, on "
        "a prepared folder or the Penn Treebank's, without DATA on Python's reference manual",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the training ratios (.png, .svg)")
    args = parser.parse_args()
    for path in (args.json, args.plot):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path}: no such folder")
    if args.plot and "training" not in args.sections:
        parser.error("--plot needs the section training")
    if args.threads:
        torch.set_num_threads(args.threads)

    rate = product_rate(min(1, args.seconds))
    print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    print(f"torch's matrix product: {rate / 1e9:.0f} GFLOP/s at best")
    print("Columns: ratio, median, share (time of the products alone at that rate / time), layer [backend]")
    figures: list[Figure] = []
    for section in args.sections:
        with tqdm(desc=section, unit=" steps", leave=False, disable=None) as progress:
            if section == "memory":
                found = list(memory(args.families, args.shapes, progress))
            elif section == "growth":
                found = growth(args.families, args.shapes[0], args.seconds, rate, progress)
            else:
                found = list(timings(section, args.families, args.shapes, args.seconds, rate, progress))
        print(f"\n{TITLES[section].format(f'({args.shapes[0]})')}{table(found)}", flush=True)
        figures += found

    speeds = []
    if args.end_to_end:
        del sys.modules["fairseq"]  # which this part does need
        from _end_to_end import end_to_end, scaling

        data = None if args.end_to_end is True else args.end_to_end
        for title, found in (
            ("fairseq-train: words per second / those of fairseq's lstm_lm", end_to_end(data, threads=args.threads)),
            ("train_cpu.py, update dropout: words per second / those of one process", scaling(data)),
        ):
            print(f"\n{title}\n")
            for speed in found:
                share = speed.words_per_second * speed.operations / rate
                print(f"  {speed.ratio:6.2f} {speed.words_per_second:9.0f} words/s {share:7.0%}  {speed.name}")
            speeds += found
    if args.json:
        result = {
            **machine(),
            "product rate": rate,
            "figures": [figure._asdict() | {"shape": list(figure.shape)} for figure in figures],
            "end to end": [speed._asdict() for speed in speeds],
        }
        write(args.json, lambda new: new.write_text(json.dumps(result, indent=1) + "\n"))
    if args.plot:
        plot(figures, args.plot)


if __name__ == "__main__":
    run(main)
