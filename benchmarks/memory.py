"""The peak memory of a training step, measured in fresh processes for each layer."""

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from benchmarks.layers import Figure, Layer, Shape, make_step, median_ratio, ours, torchs
from rnndrop_plugin.ops import Masks

REPETITIONS = 2


def memory_layers(family: str) -> list[Layer]:
    """The layers whose memory is compared."""
    kinds = ["hidden"] if family == "RNN" else Masks._fields
    layers = [torchs(family), *(ours(family, kind) for kind in kinds)]
    return [*layers, ours("GRU", "update", reset_after=True)] if family == "GRU" else layers


def peak_memory(index: int, family: str, shape: Shape, threads: int, connection) -> None:
    """In a fresh process, send the peak resident size of two training steps minus the size before them, in MiB."""
    torch.set_num_threads(threads)
    layer = memory_layers(family)[index]
    make_step(layer, Shape(2, 2, 3, 4))()  # the first call loads libraries, which must not be counted
    step = make_step(layer, shape)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = _status("VmRSS")
    for _ in range(2):
        step()
    connection.send(max(4, _status("VmHWM") - before) / 1024)  # at least a page


def _status(field: str) -> int:
    """A field of this process's status in Linux, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status: has no {field}")


def memory(families: list[str], shapes: list[Shape], progress: tqdm) -> Iterator[Figure]:
    """Measure the peak memory of a training step, each layer in fresh processes."""
    context = multiprocessing.get_context("spawn")
    for shape in shapes:
        for family in families:
            layers = memory_layers(family)
            used: list[list[float]] = [[] for _ in layers]
            for _ in range(REPETITIONS):
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
                    median_ratio(sizes, used[0]),
                    median(sizes),
                    "MiB",
                    None,
                    sizes,
                )
