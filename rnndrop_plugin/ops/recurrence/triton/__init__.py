"""The recurrences as Triton kernels (backend ``"triton"``), for NVIDIA GPUs.

``cells`` has the equations of a step, forward and backward; ``product`` the product with the recurrent weights and the
barrier; ``loops`` one kernel a direction for the whole sequence; ``steps`` one kernel a step between products of torch;
``tiles`` the table that chooses among them; ``backend`` calls them. ``rnndrop_plugin.ops.availability`` says where they
can run.

This module is a :class:`rnndrop_plugin.ops.recurrence.autograd.Kernel` with the functions of ``backend``. Triton is
imported with the first of them, since it is not everywhere.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("forward", "saved_like", "backward", "raise_if_failed"):
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.backend"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
