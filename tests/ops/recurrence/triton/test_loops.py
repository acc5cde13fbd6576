"""The kernels compile for GPUs of compute capability 8.0 and 9.0, without one, and fit there."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rnndrop_plugin.ops.recurrence.triton import backend, loops, steps  # noqa: E402
from rnndrop_plugin.ops.recurrence.triton.tiles import GATES, PRECISIONS, choose, precision  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LIMITS = {80: (108, 163 * 1024), 90: (132, 227 * 1024)}  # multiprocessors, bytes of shared memory (A100, H100)
SHAPES = [(32, 256), (20, 650), (64, 1152), (128, 512), (32, 1024)]  # batch and hidden of the benchmark
TYPES = {"tf32": "fp32", "tf32x3": "fp32", "half": "bf16"}
NUMBERS = {"T": "i32", "B": "i32", "t": "i32", "polls": "i32", "counters": "*i32", "failed": "*i32", "lengths": "*i64"}
STATES = ("h", "c", "dh", "dc", "carried")  # of the steps, in float32


def compiled(kernel, constants: dict, number: str, capability: int, **settings):
    """Machine code for ``capability``, the tensors being of ``number``."""
    signature, attributes = {}, {}
    for k, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = NUMBERS[name]
        elif name.startswith(("step_", "scale_")):
            signature[name] = "i32" if name.startswith("step_") else "fp32"
        else:
            state = kernel in (steps.forward_step, steps.backward_step) and name in STATES
            signature[name] = "*u8" if name.startswith("keep_") else "*fp32" if state else f"*{number}"
            if name not in loops.OUTSIDE:
                attributes[(k,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)


def machine_code(code, path: Path) -> str:
    path.write_bytes(code.asm["cubin"])
    return subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout


def spilled_in_loop(listing: str) -> float:
    """The share of accesses to spilled registers among the instructions of the loop over time."""
    instructions, labels, loops = [], {}, [range(0)]
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        if re.search(r"/\*[0-9a-f]{4,}\*/ ", line):
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if target and target[1] in labels:
                loops.append(range(labels[target[1]], len(instructions)))
            instructions.append(line)
    loop = max(loops, key=len)  # that over time has all others within it
    assert any("STRONG.GPU" in instructions[k] for k in loop), "there is no barrier in it"
    return sum(bool(re.search(r"\b(LDL|STL)\b", instructions[k])) for k in loop) / len(loop)


EVENTS = {  # in Triton's intermediate code, of 3.6 and of 3.9
    "block": r"ttg\.barrier all|gpu\.barrier",
    "release": r"tt\.atomic_rmw add, release, gpu",
    "acquire": r"tt\.atomic_rmw add, acquire, gpu",
    "read": r"(tt\.load|async_copy_global_to_local).*(cacheModifier|cache_modifier) = cg",
}


def check_exchange(code, listing: str, aligned: bool) -> None:
    """What a block writes for others is released after all its threads have written it, and what it reads of theirs is
    read by its threads after one of them has acquired it.

    Args:
        aligned: whether all rows that are read, the weights' among them, begin at 16 bytes. Copies of less are cached
            in L1, which an acquire at the scope of the device empties.
    """
    lines = code.asm["ttgir"].splitlines()
    events = [name for line in lines for name, pattern in EVENTS.items() if re.search(pattern, line)]
    assert set(events) == set(EVENTS)
    for k, name in enumerate(events):
        if name == "release":
            assert events[k - 1] == "block", events[:k]
        if name == "read":
            before = [x for x in events[:k] if x != "read"]
            assert before[-2:] == ["acquire", "block"], events[:k]
    ptx = code.asm["ptx"]
    assert "cp.async.ca" not in ptx or not aligned
    assert "ld.global.nc" not in ptx
    assert ptx.count("global.gpu.release") == events.count("release") <= listing.count("MEMBAR.ALL.GPU")
    assert ptx.count("global.gpu.acquire") == events.count("acquire") <= listing.count("CCTL.IVALL")  # empties L1


def constants(direction, cell, hidden, *, modes=(2, 0, 0), **flags) -> dict:
    names = {"CELL": cell, "RELU": False, "REVERSE": False, "BIAS": True, "LENGTHS": False, **flags}
    if direction == "backward":
        del names["BIAS"]
    modes = (0, modes[1] or 2 * any(modes), 0) if cell == "rnn" else modes
    return {**names, **dict(zip(("MU", "MH", "MC"), modes, strict=True)), "H": hidden, "LD": backend.padded(hidden)}


def check_loop(path, direction, cell, batch, hidden, precision, capability, **flags):
    processors, shared = LIMITS[capability]
    tiles = choose(direction, cell, batch, hidden, precision, processors, shared)
    if tiles is None:
        pytest.skip("this shape is taken step by step")
    code = compiled(
        getattr(loops, direction),
        constants(direction, cell, hidden, **flags) | backend.tile_constants(tiles, precision),
        TYPES[precision],
        capability,
        **backend.COMPILATION,
    )
    assert code.metadata.shared <= shared
    assert code.metadata.launch_cooperative_grid
    listing = machine_code(code, path / "kernel.cubin")
    assert spilled_in_loop(listing) < 0.04  # a few addresses, but no sums and no operands
    rows = (hidden, GATES[cell] * hidden) if direction == "backward" else (hidden,)  # those of h are padded
    check_exchange(code, listing, aligned=all(row * PRECISIONS[precision][0] % 16 == 0 for row in rows))


@pytest.mark.parametrize(
    "direction, cell, batch, hidden, precision, capability, flags",
    [
        ("forward", "lstm", 32, 256, "half", 90, {}),
        ("backward", "gru", 32, 256, "tf32", 80, {"modes": (2, 2, 2), "LENGTHS": True, "REVERSE": True}),
        ("backward", "gru", 20, 650, "tf32", 90, {}),
        ("forward", "gru_reset_after", 64, 1152, "tf32", 90, {}),
    ],
)
def test_compiles(tmp_path, direction, cell, batch, hidden, precision, capability, flags):
    check_loop(tmp_path, direction, cell, batch, hidden, precision, capability, **flags)


@pytest.mark.slow
@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch, hidden", SHAPES)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_all_shapes_of_the_benchmark_compile(tmp_path, direction, cell, batch, hidden, precision, capability):
    check_loop(tmp_path, direction, cell, batch, hidden, precision, capability)


VARIANTS = [
    {"modes": (0, 0, 0), "RELU": True, "BIAS": False},
    {"modes": (1, 1, 1), "LENGTHS": True},
    {"modes": (2, 2, 2), "LENGTHS": True, "REVERSE": True},
    {"modes": (0, 2, 0), "REVERSE": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_variant_compiles(tmp_path, direction, cell, variant):
    """The interpreter does not ask that a variable keeps its type; the compiler does."""
    check_loop(tmp_path, direction, cell, 16, 64, "half", 90, **variant)
    names = constants(direction, cell, 33, **variant) | {"RESET": False, "BLOCK": backend.BLOCK}
    compiled(getattr(steps, f"{direction}_step"), names, "fp16", 80)


@pytest.mark.slow
@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_steps_compile(direction, cell, capability):
    for reset in (True, False) if cell == "gru" else (False,):
        code = compiled(
            getattr(steps, f"{direction}_step"),
            constants(direction, cell, 650, modes=(2, 2, 2), LENGTHS=True) | {"RESET": reset, "BLOCK": backend.BLOCK},
            "bf16",
            capability,
        )
        assert code.metadata.shared < 1024


def test_a_kernel_is_cut_so_that_all_blocks_are_resident():
    sizes = [(batch, hidden) for batch in (1, 16, 20, 33, 128, 512) for hidden in (1, 7, 64, 200, 650, 1500, 4096)]
    chosen = []
    for direction in ("forward", "backward"):
        for batch, hidden in sizes:
            tiles = choose(direction, "lstm", batch, hidden, "tf32", 132, 227 * 1024)
            if tiles is None:
                continue
            units, slices, _ = tiles.grid(batch, hidden)
            assert units * slices <= 132
            assert units * tiles.units >= hidden and slices * tiles.batch >= batch
            assert tiles.units % backend.PADDING == 0  # a row's padding has a block that writes it
            chosen.append((batch, hidden))
    assert (16, 650) in chosen and (512, 4096) not in chosen


class Recorder:
    """Stands for a compiled kernel of any of ours."""

    def __init__(self, kernel):
        self.__name__, self.arg_names = kernel.__name__, kernel.arg_names
        self.bound, self.direct = 0, 0

    def __getitem__(self, grid):
        def launch_and_bind(**arguments):
            self.bound += 1
            settings = {"num_warps", "num_stages", "launch_cooperative_grid", "enable_fp_fusion"}
            assert arguments.keys() - settings == set(self.arg_names)
            return {grid: self.launch}

        return launch_and_bind

    def launch(self, *arguments):
        self.direct += 1
        assert len(arguments) == len(self.arg_names)
        for name, x in zip(self.arg_names, arguments, strict=True):
            assert isinstance(x, torch.Tensor) == (name.islower() and name not in loops.NUMBERS + steps.NUMBERS), name


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("form", ["loops", "steps"])
def test_a_second_launch_passes_all_arguments_in_the_kernels_order(monkeypatch, problem, cell, form):
    module, names = (loops, ("forward", "backward")) if form == "loops" else (steps, ("forward_step", "backward_step"))
    kernels = [Recorder(getattr(module, name)) for name in names]
    for name, kernel in zip(names, kernels, strict=True):
        monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(backend, "_launchers", {})
    monkeypatch.setattr(backend, "chosen", lambda *key: choose(*key[:-1], *LIMITS[90]) if form == "loops" else None)
    for _ in range(2):
        problem(cell, (3, 2, 4, 8), ("hidden",)).results(backend)
    for kernel in kernels:
        assert kernel.bound == (1 if form == "loops" or cell != "gru" else 2)
        assert kernel.direct >= kernel.bound


def test_types_agree_with_torchs_switch(monkeypatch):
    assert precision(torch.bfloat16) == "half"
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed, name in ((True, "tf32"), (False, "tf32x3")):
            torch.backends.cudnn.allow_tf32 = allowed
            assert precision(torch.float32) == name
    finally:
        torch.backends.cudnn.allow_tf32 = before
