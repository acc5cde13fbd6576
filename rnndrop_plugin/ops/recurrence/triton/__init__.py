"""The recurrences as Triton kernels (backend ``"triton"``), for NVIDIA GPUs.

``cells`` has the equations of a step, forward and backward, and ``product`` the product with the recurrent weights and
the barrier. In ``loops`` one kernel runs through all steps of a pass; in ``steps`` there is a kernel for each step,
between products of torch. ``tiles`` has the table that chooses between them, and ``backend`` calls them.
``rnndrop_plugin.ops.availability`` says where they can run.

This module is a :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel` with the functions of ``backend``. Triton is
not installed everywhere, so it is imported when the first of these functions is used.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("forward", "saved_like", "backward", "raise_if_failed"):
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.backend"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
