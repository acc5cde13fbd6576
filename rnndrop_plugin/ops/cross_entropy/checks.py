"""Checks of the arguments of an output layer with its loss, before one of its forms is chosen."""

from numbers import Real

from torch import Tensor

from rnndrop_plugin.ops.checks import check_device, check_integers, check_like, check_tensor
from rnndrop_plugin.ops.context import values_are_known


def check_linear_cross_entropy(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, float]:
    """The targets as int64, and the label smoothing as a float.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit.
        TypeError: an argument that is not a tensor.
        IndexError: a target that is not a class.
    """
    check_tensor("features", features)
    if features.dim() == 0 or not features.is_floating_point():
        raise ValueError(
            f"the features must be (..., features) of a floating-point dtype, got {tuple(features.shape)} of "
            f"{features.dtype}"
        )
    check_tensor("weight", weight)
    if weight.dim() != 2 or weight.size(0) == 0:
        raise ValueError(f"the weight must be (vocabulary, features), got {tuple(weight.shape)}")
    classes = weight.size(0)
    check_like("weight", weight, (classes, features.size(-1)), "features", features)
    if bias is not None:
        check_like("bias", bias, (classes,), "features", features)
    check_integers("target", target, features.shape[:-1])
    check_device("target", target, "features", features)
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing!r}")
    if label_smoothing and classes == 1:
        raise ValueError("label_smoothing needs at least two classes, got one")
    target = target.long()
    if values_are_known():
        check_classes(target, classes, ignore_index)
    return target, float(label_smoothing)


def check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise IndexError unless every target is a class or ``ignore_index``.

    Targets on a GPU are not read, since the host would have to wait for them. There, assertions of torch or of the
    kernel catch wrong ones.
    """
    if target.numel() == 0 or target.device.type != "cpu":
        return
    low, high = map(int, target.aminmax())
    if low >= 0 and high < classes:
        return
    wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if len(wrong) > 0:
        raise IndexError(f"target {int(wrong[0])} is out of bounds: there are {classes} classes")
