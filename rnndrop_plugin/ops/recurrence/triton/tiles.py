"""How the kernels of ``loops`` are cut into blocks: one table, and what follows from it."""

import functools
from typing import NamedTuple

import torch

from rnndrop_plugin.ops.recurrence.reference import GATES

COLUMNS = {"lstm": 4, "gru": 2, "gru_reset_after": 4, "rnn": 1}  # columns per unit in the product of the forward pass
WARPS = 4  # of a block
STAGES = 5  # loads in flight where the weights are read again at every step
REGISTERS = 120  # of the 255 of a thread: those for sums and operands
RESERVED = 1024  # bytes of shared memory left to the compiler


#: The bytes of a number, and how many numbers it becomes: tf32x3 takes three products to be as exact as float32.
PRECISIONS = {"tf32": (4, 1), "tf32x3": (4, 2), "half": (2, 1)}


class Tiles(NamedTuple):
    """How a kernel is cut into blocks.

    Attributes:
        batch, units: the sequences and units of a block.
        split: the number of parts of the product's depth that are summed separately.
        depth: the depth of a chunk of one part; ``group`` chunks are loaded together.
        keep: whether the recurrent weights stay on the chip over all steps.
    """

    batch: int
    units: int
    split: int
    depth: int
    group: int
    keep: bool

    def grid(self, batch: int, hidden: int) -> tuple[int, int, int]:
        """The blocks, all of which have to be on the device at once."""
        return -(-hidden // self.units), -(-batch // self.batch), 1


# By direction and bytes of a number, the best first: (batch, units, split, KiB of weights that may be kept at most,
# depth of the product at most). The first one is taken whose blocks are all resident, whose kept weights are within the
# limit (0: the weights are read again at every step) and whose product is no deeper than the limit (None: any depth).
# They come from measurements on an H200 with LSTMs of 32 x 256, 20 x 650, 64 x 1152, 128 x 512 and 32 x 1024. Each of
# these gets the fastest of about ten that were tried, or one within a hundredth of it.
TABLE = {
    ("forward", 4): [
        (16, 8, 1, 180, 384),
        (16, 8, 4, 180, None),
        (16, 16, 4, 180, None),
        (32, 16, 1, 180, None),
        (32, 8, 1, 0, None),
        (64, 8, 1, 100, None),
        (64, 16, 1, 0, None),
    ],
    ("backward", 4): [
        (16, 8, 4, 180, None),
        (16, 16, 4, 180, None),
        (32, 8, 4, 180, None),
        (16, 16, 1, 0, None),
        (16, 32, 1, 0, None),
        (32, 32, 1, 0, None),
    ],
    ("forward", 2): [
        (16, 16, 1, 180, 384),
        (16, 8, 4, 180, None),
        (16, 16, 4, 180, None),
        (16, 32, 1, 180, None),
        (64, 16, 1, 100, None),
        (64, 16, 1, 0, None),
    ],
    ("backward", 2): [
        (16, 16, 4, 180, None),
        (16, 32, 2, 140, None),
        (64, 16, 1, 0, None),
    ],
}


def choose(
    direction: str, cell: str, batch: int, hidden: int, precision: str, processors: int, shared: int
) -> Tiles | None:
    """The tiles of a kernel, None if no tiles have all their blocks on the device at once.

    Args:
        direction: ``"forward"`` or ``"backward"``.
        precision: the precision of the products, a key of PRECISIONS.
        processors: the streaming multiprocessors of the device.
        shared: the bytes of shared memory that a block can have.
    """
    itemsize, copies = PRECISIONS[precision]
    depths = _depths(direction, cell, hidden)
    for rows, units, split, kept_kib, deepest in TABLE[direction, itemsize]:
        if deepest is not None and max(depths) > deepest:
            continue
        columns = units * (COLUMNS[cell] if direction == "forward" else 1)
        size = itemsize * copies
        if kept_kib:
            tiles = _keep(rows, units, columns, split, depths, size)
            kept = _padded(depths, split * tiles.depth) * columns * size
            room = (shared - RESERVED - kept) // (rows * split * tiles.depth * size)  # for parts of the left operand
            tiles = tiles._replace(group=min(tiles.group, room))
            fits = room > 0 and kept <= 1024 * kept_kib
        else:
            tiles = _stream(rows, units, columns, split, depths, size)
            fits = STAGES * tiles.depth * (rows + columns) * size <= shared - RESERVED
        blocks, slices, _ = tiles.grid(batch, hidden)
        if fits and blocks * slices <= processors:
            return tiles
    return None


def precision(dtype: torch.dtype) -> str:
    """The precision of products (:data:`PRECISIONS`); for float32 what torch's switch for recurrent layers says."""
    if dtype != torch.float32:
        return "half"
    rnn = getattr(torch.backends.cudnn, "rnn", None)  # since torch 2.9
    allowed = torch.backends.cudnn.allow_tf32 if rnn is None else rnn.fp32_precision == "tf32"
    return "tf32" if allowed else "tf32x3"


_chosen: dict[tuple, Tiles | None] = {}


def chosen(direction: str, cell: str, batch: int, hidden: int, precision: str, device: torch.device) -> Tiles | None:
    """:func:`choose` for ``device``, or None where the device has refused it (see :func:`refuse`)."""
    key = direction, cell, batch, hidden, precision, device
    if key not in _chosen:
        _chosen[key] = choose(*key[:-1], *device_limits(device))
    return _chosen[key]


def refuse(*key) -> None:
    """Note that the device has refused what :func:`chosen` gives for these arguments."""
    _chosen[key] = None


def is_persistent(cell: str, batch: int, hidden: int, precision: str, device: torch.device) -> bool:
    """Whether a kernel for all steps can run, forward and backward."""
    return all(chosen(direction, cell, batch, hidden, precision, device) for direction in ("forward", "backward"))


def _depths(direction: str, cell: str, hidden: int) -> list[int]:
    """The depths of a step's products."""
    if direction == "forward":
        return [hidden, hidden] if cell == "gru" else [hidden]
    return [2 * hidden, hidden] if cell.startswith("gru") else [GATES[cell] * hidden]


def _padded(depths: list[int], chunk: int) -> int:
    return sum(-(-depth // chunk) * chunk for depth in depths)


def _depth(depths: list[int], split: int, limit: int) -> int:
    """The largest depth of a chunk that pads the products by at most an eighth."""
    for depth in (256, 128, 64, 32):
        if depth <= limit and _padded(depths, split * depth) <= 1.13 * sum(depths):
            return depth
    return 16


def _keep(rows, units, columns, split, depths, itemsize) -> Tiles:
    threads = 32 * WARPS
    per_depth = rows * split * itemsize / 4 / threads  # a thread's registers for the left operand
    depth = _depth(depths, split, min(64 / per_depth, 256 / itemsize if split == 1 else 256))
    sums = rows * columns * split // threads
    chunks = max(-(-d // (split * depth)) for d in depths)
    group = max(1, min(chunks, int((REGISTERS - sums) / (per_depth * depth))))
    group = -(-chunks // -(-chunks // group))  # groups of equal size
    return Tiles(rows, units, split, depth, group, True)


def _stream(rows, units, columns, split, depths, itemsize) -> Tiles:
    depth = _depth(depths, split, 24 * 1024 / ((rows + columns) * itemsize))
    return Tiles(rows, units, split, depth, 1, False)


@functools.cache
def device_limits(device: torch.device) -> tuple[int, int]:
    """The streaming multiprocessors of a device, and the bytes of shared memory that a block can have there."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin
