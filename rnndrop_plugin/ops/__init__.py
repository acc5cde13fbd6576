"""Pure functions on tensors: dropout masks, the recurrences that use them, and output layers with their losses."""

from rnndrop_plugin.ops.crf.dispatch import crf_decode, crf_nll
from rnndrop_plugin.ops.cross_entropy.dispatch import linear_cross_entropy, linear_cross_entropy_ref
from rnndrop_plugin.ops.input_feeding.dispatch import input_feeding
from rnndrop_plugin.ops.input_feeding.reference import Attention, attend
from rnndrop_plugin.ops.masks import NO_MASKS, SAMPLINGS, SCALINGS, Mask, Masks, draw_mask
from rnndrop_plugin.ops.recurrence.dispatch import BACKENDS, choose_backend, recurrence
from rnndrop_plugin.ops.recurrence.reference import NONLINEARITIES, State, Weights

__all__ = [
    "Attention",
    "BACKENDS",
    "NONLINEARITIES",
    "NO_MASKS",
    "SAMPLINGS",
    "SCALINGS",
    "Mask",
    "Masks",
    "State",
    "Weights",
    "attend",
    "choose_backend",
    "crf_decode",
    "crf_nll",
    "draw_mask",
    "input_feeding",
    "linear_cross_entropy",
    "linear_cross_entropy_ref",
    "recurrence",
]
