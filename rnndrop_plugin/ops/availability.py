"""Whether Triton's kernels can run here, and if not, why."""

import functools
import logging

import torch

OLDEST = (3, 6)  # the oldest Triton that the kernels are compiled with in the tests
CAPABILITY = (8, 0)  # of the oldest GPUs that have the products in TF32 and bfloat16 that the kernels use

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_logger = logging.getLogger(__name__)


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on tensors of ``dtype`` on ``device``, None if they can."""
    if device.type != "cuda":
        return f"its tensors are on {device.type}"
    index = device.index
    if index is None:
        if not torch.cuda.is_available():
            return "there is no GPU that torch can use"
        index = torch.cuda.current_device()
    if reason := _unavailable(index):
        return reason
    if dtype not in DTYPES:
        return f"its kernels are for float32, bfloat16 and float16, the input is of {dtype}"
    return None


@functools.cache
def _unavailable(index: int) -> str | None:
    """Why the kernels cannot run on the GPU of this number, None if they can.

    Triton builds a small launcher with a C compiler when it launches its first kernel. So a kernel that does nothing is
    launched here once, to see whether this works.
    """
    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    device = torch.device("cuda", index)
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"it needs an NVIDIA GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later"
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"Triton is {triton.__version__}, and the oldest supported version is {OLDEST[0]}.{OLDEST[1]}"
    try:
        _launch_nothing(device)
    except Exception as error:  # the compilers, the driver and the cache folder fail in many ways
        if "out of memory" in str(error):  # there may be enough at the next call
            raise
        words = (str(error).strip() or repr(error)).splitlines()[-1]
        return f"Triton cannot build and launch a kernel (it needs a C compiler): {words}"
    return None


def _launch_nothing(device: torch.device) -> None:
    from rnndrop_plugin.ops.recurrence.triton.product import nothing

    with torch.cuda.device(device):
        nothing[(1,)](0)


@functools.cache
def warn_once(reason: str) -> None:
    """Log, once for each reason, that slower torch operations run instead."""
    _logger.warning(f"recurrent dropout runs on torch operations here, several times slower than on Triton: {reason}")
