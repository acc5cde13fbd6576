"""What the criteria share: the check of their task, means of what is logged, and precision, recall and F1 from counts.

All are of sums over batches and processes, which are divided last.
"""

import math
from collections.abc import Callable, Sequence

import torch
from fairseq.logging import metrics
from torch import Tensor

from rnndrop_plugin.errors import InputError


def check_task(task, attribute: str, name: str) -> None:
    """Raise InputError unless ``task`` has ``attribute``, as the task that the criterion ``name`` is for has."""
    if not hasattr(task, attribute):
        raise InputError(f"--criterion {name} is for --task {name}, got the task {type(task).__name__}")


def totals(logging_outputs: list[dict], *names: str) -> list[float]:
    """The sums of what is logged by these names, as numbers of Python.

    On a GPU each scalar tensor that is logged costs ten kernels, as each of fairseq's aggregators adds it up there.
    fairseq reads it all the same, right after an update.
    """
    return [sum(number(log[name]) for log in logging_outputs) for name in names]


def number(x: float | Tensor) -> float:
    """``x`` as a number of Python."""
    return x.item() if isinstance(x, Tensor) else x


def mean(total: float, count: float) -> float:
    """``total`` over ``count``, nan of nothing, as torch has it."""
    return total / count if count else math.nan


def log_loss_and_accuracy(logging_outputs: list[dict], items: str) -> None:
    """Log the mean loss in bits, and of how many ``items`` ("ntokens", say) the class is correct, in percent."""
    loss, correct, size, count = totals(logging_outputs, "loss", "correct", "sample_size", items)
    metrics.log_scalar("loss", mean(loss, size) / math.log(2), size, round=4)
    metrics.log_scalar("accuracy", 100 * mean(correct, count), count, round=2)


def f1_score(counts: Tensor) -> float:
    """The harmonic mean of precision and recall in percent, 0 where nothing is correct.

    Args:
        counts: ``(3,)``, how many are correct, predicted and true.
    """
    correct, predicted, gold = counts.tolist()
    return ratio(2 * correct, predicted + gold)


def ratio(part: float, whole: float) -> float:
    """``part`` of ``whole`` in percent, 0 of nothing."""
    return 100 * part / whole if whole else 0.0


def count_classes(predicted: Tensor, target: Tensor, classes: int, counted: Tensor | None = None) -> Tensor:
    """``(classes, 3)``: how often each class is correct, predicted and true.

    torch.bincount and a selection of items would have the host wait for a GPU.

    Args:
        predicted, target: classes, ``(items,)``.
        counted: bool, ``(items,)``, False for items to leave out, whose target may be anything; None to take all.
    """
    counted = torch.ones_like(target, dtype=torch.bool) if counted is None else counted
    target = target.where(counted, 0)
    counts = target.new_zeros(classes, 3)
    for column, found, which in ((0, target, predicted == target), (1, predicted, counted), (2, target, counted)):
        counts[:, column].scatter_add_(0, found, (counted & which).to(counts.dtype))
    return counts


def mean_f1(counts: Tensor) -> float:
    """The mean F1 of the classes that are predicted or true, in percent (macro F1 as scikit-learn has it).

    Args:
        counts: ``(classes, 3)``, see :func:`count_classes`.
    """
    scores = [f1_score(row) for row in counts if row.any()]
    return sum(scores) / len(scores) if scores else 0.0


def log_scores(logging_outputs: list[dict], names: Sequence[str], scores: dict[str, Callable[[Tensor], float]]) -> None:
    """Log ``f1_NAME`` of each name, and ``scores``, functions of all counts.

    Args:
        logging_outputs: those that have ``"counts"``, ``(names, 3)``: correct, predicted and true.
        scores: how to make each score from the sum of the counts.
    """
    counts = [log["counts"] for log in logging_outputs if "counts" in log]
    if not counts:
        return
    metrics.log_scalar_sum("_counts", torch.stack([torch.as_tensor(c) for c in counts]).sum(0).double().cpu())
    by_name = {f"f1_{name}": (lambda counts, i=i: f1_score(counts[i])) for i, name in enumerate(names)}
    for key, score in {**scores, **by_name}.items():
        metrics.log_derived(key, lambda meters, score=score: round(score(meters["_counts"].sum), 2))
