"""What the criteria share: the check of their task, means of logged values, and precision, recall and F1 from counts.

Sums and counts are added up over batches and processes before anything is divided.
"""

import math
from collections.abc import Callable, Sequence

import torch
from fairseq.logging import metrics
from torch import Tensor

from rnndrop_plugin.errors import InputError


def check_task(task, attribute: str, name: str) -> None:
    """Raise InputError unless ``task`` has ``attribute``, as the task of the criterion ``name`` has."""
    if not hasattr(task, attribute):
        raise InputError(f"--criterion {name} is for --task {name}, got the task {type(task).__name__}")


def totals(logging_outputs: list[dict], *names: str) -> list[float]:
    """The sums of the logged values with these names, as Python numbers.

    On a GPU a logged scalar tensor would cost ten kernels, because each of fairseq's aggregators adds it up there.
    fairseq needs the number on the host right after an update anyway.
    """
    return [sum(number(log[name]) for log in logging_outputs) for name in names]


def number(x: float | Tensor) -> float:
    """``x`` as a Python number."""
    return x.item() if isinstance(x, Tensor) else x


def mean(total: float, count: float) -> float:
    """``total`` over ``count``; nan if ``count`` is 0, as in torch."""
    return total / count if count else math.nan


def log_loss_and_accuracy(logging_outputs: list[dict], items: str) -> None:
    """Log the mean loss in bits, and the percentage of ``items`` (such as "ntokens") whose class is correct."""
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
    """``part`` of ``whole`` in percent; 0 if ``whole`` is 0."""
    return 100 * part / whole if whole else 0.0


def count_classes(predicted: Tensor, target: Tensor, classes: int, counted: Tensor | None = None) -> Tensor:
    """How often each class is correct, predicted and true, ``(classes, 3)``.

    This avoids torch.bincount and a selection of items, which would make the host wait for a GPU.

    Args:
        predicted, target: classes, ``(items,)``.
        counted: bool, ``(items,)``, False for items to leave out, whose target may be anything; None to count all.
    """
    counted = torch.ones_like(target, dtype=torch.bool) if counted is None else counted
    target = target.where(counted, 0)
    counts = target.new_zeros(classes, 3)
    for column, found, which in ((0, target, predicted == target), (1, predicted, counted), (2, target, counted)):
        counts[:, column].scatter_add_(0, found, (counted & which).to(counts.dtype))
    return counts


def mean_f1(counts: Tensor) -> float:
    """The mean F1 of the classes that are predicted or true, in percent (the macro F1 of scikit-learn).

    Args:
        counts: ``(classes, 3)``, see :func:`count_classes`.
    """
    scores = [f1_score(row) for row in counts if row.any()]
    return sum(scores) / len(scores) if scores else 0.0


def log_scores(logging_outputs: list[dict], names: Sequence[str], scores: dict[str, Callable[[Tensor], float]]) -> None:
    """Log ``f1_NAME`` for each name, and each of ``scores``.

    Args:
        logging_outputs: some may have ``"counts"``, ``(names, 3)``, of what is correct, predicted and true.
        scores: functions that compute a score from the sum of the counts, by the name of the score.
    """
    counts = [log["counts"] for log in logging_outputs if "counts" in log]
    if not counts:
        return
    metrics.log_scalar_sum("_counts", torch.stack([torch.as_tensor(c) for c in counts]).sum(0).double().cpu())
    by_name = {f"f1_{name}": (lambda counts, i=i: f1_score(counts[i])) for i, name in enumerate(names)}
    for key, score in {**scores, **by_name}.items():
        metrics.log_derived(key, lambda meters, score=score: round(score(meters["_counts"].sum), 2))
