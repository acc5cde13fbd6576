"""The output layer and its loss in C, in float32 and float64."""

import ctypes

import torch
from torch import Tensor

from rnndrop_plugin.ops import c_library


class _LossArguments(ctypes.Structure):
    """``struct loss_arguments`` of interface.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "rows", "features", "classes")),
        *((name, ctypes.c_void_p) for name in ("x", "w", "b", "target")),
        *((name, ctypes.c_double) for name in ("share", "target_share")),
        *((name, ctypes.c_void_p) for name in ("largest", "sum_of_exp", "sum_of_logits", "of_target")),
        *((name, ctypes.c_void_p) for name in ("d_x", "d_w", "d_b")),
    ]


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, the negative log-likelihood and the gradients that are wanted of the first three arguments.

    See :func:`rnndrop_plugin.ops.linear_cross_entropy`; here ``features`` is ``(rows, features)``, and every
    row counts and has a class. The working storage holds two reordered copies of the weight and up to 512 rows of
    logits.

    Raises:
        MemoryError: there is not enough memory for the working storage.
    """
    (rows, size), classes = features.shape, weight.size(0)
    share = label_smoothing / max(classes - 1, 1)
    inputs = features, weight, bias, target
    keep_alive: list[Tensor] = []
    gradients = [x.new_empty(x.shape) if want else None for x, want in zip(inputs, wanted, strict=False)]
    largest, sum_of_exp, sum_of_logits, of_target = rows_of = features.new_empty(4, rows)
    arguments = _LossArguments(
        c_library.threads(),
        rows,
        size,
        classes,
        *(x if x is None else c_library.address(x, keep_alive) for x in inputs),
        share,
        1 - label_smoothing - share,
        *(x.data_ptr() for x in rows_of),
        *(x if x is None else x.data_ptr() for x in gradients),
    )
    if c_library.load()[0].rnndrop_loss(ctypes.byref(arguments), features.dtype == torch.float64):
        raise MemoryError("not enough memory for the working storage of an output layer")
    normaliser = largest + sum_of_exp.log()
    nll = (normaliser - of_target).sum()
    # the sum of the logits is -inf where a class is impossible, and 0 * -inf would be NaN
    smoothing = share * (classes * normaliser - sum_of_logits).sum() if share else 0
    return (1 - label_smoothing - share) * nll + smoothing, nll, gradients
