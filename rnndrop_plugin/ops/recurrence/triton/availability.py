"""Whether Triton's kernels can run here, and if not, why."""

import functools
import logging

import torch

OLDEST = (3, 6)  # the oldest Triton that the kernels are compiled with in the tests
CAPABILITY = (8, 0)  # the oldest GPUs whose products in TF32 and bfloat16 the kernels take

_logger = logging.getLogger(__name__)


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, None if they can.

    Triton builds a small launcher with a C compiler when it launches its first kernel. So a kernel that does nothing is
    launched here, once, to see that this works.
    """
    if device.type != "cuda":
        return f"its tensors are on {device.type}"
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"it needs an NVIDIA GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later"
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"Triton is {triton.__version__}, and the oldest that serves is {OLDEST[0]}.{OLDEST[1]}"
    try:
        _launch_nothing(device)
    except Exception as error:  # whatever the compilers, the driver and the cache folder say
        words = (str(error).strip() or repr(error)).splitlines()[-1]
        return f"Triton cannot build and launch a kernel (it needs a C compiler): {words}"
    return None


def _launch_nothing(device: torch.device) -> None:
    from rnndrop_plugin.ops.recurrence.triton.product import nothing

    with torch.cuda.device(device):
        nothing[(1,)](torch.empty(1, dtype=torch.int32, device=device))


@functools.cache
def warn_unavailable(reason: str) -> None:
    """Log once that slower torch operations serve instead."""
    _logger.warning(f"recurrent dropout runs on torch operations here, several times slower than on Triton: {reason}")
