"""Pure functions on tensors: dropout masks and the recurrences that read them."""

from rnndrop_plugin.ops.dispatch import BACKENDS, choose_backend, recurrence
from rnndrop_plugin.ops.masks import NO_MASKS, SAMPLINGS, SCALINGS, Mask, Masks, draw_mask
from rnndrop_plugin.ops.reference import NONLINEARITIES, State, Weights

__all__ = [
    "BACKENDS",
    "NONLINEARITIES",
    "NO_MASKS",
    "SAMPLINGS",
    "SCALINGS",
    "Mask",
    "Masks",
    "State",
    "Weights",
    "choose_backend",
    "draw_mask",
    "recurrence",
]
