"""The layers that are compared, and the time of their steps compared with torch.nn's own layers without dropout."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from rnndrop_plugin import modules
from rnndrop_plugin.ops import Masks, choose_backend, draw_mask

RATE = 0.25
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SHAPES = [(35, 32, 256, 256), (100, 32, 256, 1024), (15, 32, 256, 1024), (30, 32, 4, 256), (70, 64, 400, 1152)]
ROWS = (1, 4, 17, 20, 33)  # small numbers, some of them just above one that fills vectors or tiles
KINDS = {"LSTM": "update", "GRU": "update", "RNN": "hidden"}  # the dropout that is measured if it is only one
TORCHS_FORM = {"LSTM": {}, "GRU": {"reset_after": True}, "RNN": {}}  # the options with which a layer equals torch.nn's


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
        name: a name with its kind of cell and its dropout.
        family: "LSTM", "GRU" or "RNN", the layer of torch.nn that it is compared with.
        backend: the backend that runs it.
        build: makes the module, given the sizes of the input and the state.
    """

    name: str
    family: str
    backend: str
    build: Callable[[int, int], nn.Module]


class Figure(NamedTuple):
    """One measurement.

    Attributes:
        ratio: the median ratio to torch.nn's own layer without dropout in the same repetition; below 1 is better. In
            the section "growth" it is the ratio to the layer's own figure before doubling.
        value: the median over the repetitions, in ``unit``.
        share: the time that the matrix products alone would take at the machine's rate / the time taken; None for
            memory.
        repetitions: the value of each repetition.
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
    time: int | None = None,
    training: bool = True,
    **options,
) -> Layer:
    """Our layer with one kind of dropout, or without dropout if ``kind`` is empty; it will run ``time`` steps."""
    cell = "gru_reset_after" if options.get("reset_after") else family.lower()
    scaling = options.get("scaling", "inverted")
    masks = Masks()
    if kind:
        options.update({f"{kind}_dropout": RATE, "sampling": sampling})
        masks = Masks(**{kind: draw_mask(RATE, 1, 1, 1, sampling=sampling, scaling=scaling, training=training)})
    name = {"gru": "GRU (paper's)", "gru_reset_after": "GRU (reset_after)"}.get(cell, family)
    chosen = choose_backend(cell, masks, backend=backend, time=time, training=training)
    return Layer(
        f"{'a plain step loop of the' if chosen == 'reference' else 'rnndrop'} {name}, "
        + (f"{kind} dropout per {sampling}" if kind else "no dropout"),
        family,
        "torch.nn" if chosen == "vendor" else chosen,
        lambda i, h: getattr(modules, family)(i, h, backend=backend, **options),
    )


def keras_lstm() -> list[Layer]:
    """Keras's LSTM with its recurrent_dropout (of h, with one mask for all steps), if Keras is installed."""
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


def training_layers(family: str, time: int | None = None) -> list[Layer]:
    """The layers that are compared in training, torch.nn's own layer first."""
    if family == "RNN":
        return [
            torchs("RNN"),
            ours("RNN", time=time),
            ours("RNN", "hidden"),
            ours("RNN", "hidden", "sequence"),
            ours("RNN", "hidden", backend="reference"),
        ]
    every = [(kind, sampling) for kind in Masks._fields for sampling in ("step", "sequence")]
    if family == "LSTM":
        return [
            torchs("LSTM"),
            ours("LSTM", time=time),
            *(ours("LSTM", kind, sampling) for kind, sampling in every),
            ours("LSTM", "update", backend="reference"),
            *keras_lstm(),
        ]
    return [
        torchs("GRU"),
        ours("GRU", reset_after=True, time=time),
        ours("GRU", "update", reset_after=True),
        ours("GRU", "hidden", reset_after=True),
        ours("GRU", "cell", reset_after=True),
        ours("GRU"),
        ours("GRU", "update"),
        ours("GRU", "hidden"),
        ours("GRU", "cell"),
        ours("GRU", "update", backend="reference"),
    ]


def evaluation_layers(family: str, time: int | None = None) -> list[Layer]:
    """The layers that are compared in evaluation. There expected scaling scales, and inverted scaling does nothing."""
    layers = [torchs(family)]
    for scaling in ("inverted", "expected"):
        layer = ours(family, KINDS[family], time=time, training=False, scaling=scaling, **TORCHS_FORM[family])
        layers.append(layer._replace(name=f"{layer.name}, {scaling} scaling"))
    return layers


def operations(family: str, shape: Shape, training: bool) -> float:
    """The number of multiplications and additions in a layer's products. The gradient adds twice as many."""
    forward = 2 * shape.time * shape.batch * GATES[family] * shape.hidden * (shape.input + shape.hidden)
    return forward * (3 if training else 1)


def clock_of_work() -> Callable[[], float]:
    """A clock in seconds. With one thread it is the thread's own, which stops while the machine runs something else."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def product_rate(seconds: float) -> float:
    """The best rate of torch's matrix product in float32, in operations per second, tried ``seconds`` for each size."""
    best, clock = 0.0, clock_of_work()
    for m, k, n in ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 256, 1120), (4096, 1024, 1120)):
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        end = clock() + seconds
        while (start := clock()) < end:
            torch.mm(a, b, out=c)
            best = max(best, 2 * m * k * n / (clock() - start))
    return best


def make_step(layer: Layer, shape: Shape, training: bool = True) -> Callable[[], None]:
    """A function that runs a forward pass and, in training, computes the gradients of input and weights."""
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
    """The seconds of a step of each layer at its shape, in repetitions that take turns."""
    clock = clock_of_work()
    steps = [make_step(layer, shape, training) for layer, shape in zip(layers, shapes, strict=True)]
    start = clock()
    for step in steps:
        step()
    once = clock() - start
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(max(5, min(100, round(seconds / once)))):
        for step, times in zip(steps, taken, strict=True):
            start = clock()
            step()
            times.append(clock() - start)
            progress.update()
    return taken


def median_ratio(times: list[float], baseline: list[float]) -> float:
    """The median ratio to the baseline, repetition by repetition."""
    return median(x / y for x, y in zip(times, baseline, strict=True))


def timing(
    section: str, shape: Shape, layer: Layer, times: list[float], baseline: list[float], training: bool, rate: float
) -> Figure:
    """The figure of a layer's repetitions, which took ``times`` seconds, compared with those of ``baseline``."""
    share = operations(layer.family, shape, training) / rate / median(times)
    ratio, milliseconds = median_ratio(times, baseline), [1000 * t for t in times]
    value = median(milliseconds)
    return Figure(section, shape, layer.family, layer.name, layer.backend, ratio, value, "ms", share, milliseconds)


def measure(
    section: str, shape: Shape, layers: list[Layer], training: bool, seconds: float, rate: float, progress: tqdm
) -> list[Figure]:
    """The figures of layers at one shape. The first layer is that of torch.nn."""
    taken = compare(layers, [shape] * len(layers), training, seconds, progress)
    return [
        timing(section, shape, layer, times, taken[0], training, rate)
        for layer, times in zip(layers, taken, strict=True)
    ]


def timings(
    section: str, families: list[str], shapes: list[Shape], seconds: float, rate: float, progress: tqdm
) -> Iterator[Figure]:
    """Every layer of a section, compared with torch.nn's own at each shape."""
    training = section == "training"
    for shape in shapes:
        for family in families:
            layers = (training_layers if training else evaluation_layers)(family, shape.time)
            yield from measure(section, shape, layers, training, seconds, rate, progress)


def rows(families: list[str], shapes: list[Shape], seconds: float, rate: float, progress: tqdm) -> Iterator[Figure]:
    """Batches of few rows at each shape's other sizes, in training and in evaluation with either scaling."""
    for shape in dict.fromkeys(shape._replace(batch=batch) for shape in shapes for batch in ROWS):
        for family in families:
            training = [torchs(family), ours(family, KINDS[family], **TORCHS_FORM[family])]
            for in_training, layers in ((True, training), (False, evaluation_layers(family, shape.time))):
                mode = "training" if in_training else "evaluation"
                layers = [layer._replace(name=f"{mode}: {layer.name}") for layer in layers]
                yield from measure("rows", shape, layers, in_training, seconds, rate, progress)


def growth(families: list[str], shape: Shape, seconds: float, rate: float, progress: tqdm) -> list[Figure]:
    """How the time of a training step grows when the time steps, the batch or the hidden size double."""
    figures = []
    for family in families:
        for layer in (torchs(family), ours(family, KINDS[family])):
            grown = [shape._replace(**{size: 2 * getattr(shape, size)}) for size in ("time", "batch", "hidden")]
            taken = compare([layer] * 4, [shape, *grown], True, seconds, progress)
            for size, times in zip(grown, taken[1:], strict=True):
                figures.append(timing("growth", size, layer, times, taken[0], True, rate))
    return sorted(figures, key=lambda figure: (list(GATES).index(figure.family), figure.shape))
