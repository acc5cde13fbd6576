"""The loss of classifiers, and the scores of their labels."""

import math
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass

from rnndrop_plugin.criterions.scores import (
    check_task,
    count_classes,
    f1_score,
    log_loss_and_accuracy,
    log_scores,
    mean_f1,
)
from rnndrop_plugin.errors import InputError


@dataclass
class RnndropClassificationCriterionConfig(FairseqDataclass):
    f1_classes: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated labels whose mean F1 is logged as f1 (SemEval's score: positive,negative; "
            "default: all labels that are predicted or true)"
        },
    )
    ignore_absent_classes: bool = field(
        default=False,
        metadata={
            "help": "choose in training only between labels that the training data have; for pre-training on data that "
            "lack some labels, so that the model does not learn that these never occur"
        },
    )


@register_criterion("rnndrop_classification", dataclass=RnndropClassificationCriterionConfig)
class RnndropClassification(FairseqCriterion):
    """Cross entropy of a sequence's label.

    Logged: ``loss`` (base 2, per sequence) and, in percent, ``accuracy``, the ``f1_LABEL`` of each label, and ``f1``:
    the mean F1 of the labels of --f1-classes or, without this flag, of all labels that are predicted or true. The
    numbers of a training epoch are computed with dropout.

    Raises:
        InputError: --f1-classes names a label that the data do not have.
    """

    def __init__(self, task, f1_classes: str | None = None, ignore_absent_classes: bool = False):
        super().__init__(task)
        check_task(task, "classes", "rnndrop_classification")
        self.ignore_absent_classes = ignore_absent_classes
        self.classes = task.classes
        chosen = list(dict.fromkeys(f1_classes.split(","))) if f1_classes else []
        for name in chosen:
            if name not in self.classes:
                raise InputError(f"--f1-classes: {name!r} is not one of the labels, {', '.join(self.classes)}")
        self.chosen = [self.classes.index(name) for name in chosen]

    def forward(self, model, sample):
        """The summed loss, the number of sequences to divide its gradient by, and the sums to log."""
        logits = model(**sample["net_input"]).float()
        if self.ignore_absent_classes and self.training:
            absent = torch.tensor(self.task.absent_classes, dtype=torch.long)
            logits = logits.index_fill(1, absent.to(logits.device, non_blocking=True), -math.inf)
        target = sample["target"]
        loss = F.cross_entropy(logits, target, reduction="sum")
        predicted = logits.argmax(dim=1)
        logging_output = {
            "loss": loss.detach(),
            "correct": (predicted == target).sum(),
            "counts": count_classes(predicted, target, len(self.classes)),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample["nsentences"],
        }
        return loss, sample["nsentences"], logging_output

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the averages over ``logging_outputs``, one for each batch, or their sums over several processes."""
        log_loss_and_accuracy(logging_outputs, "nsentences")

    def log_scores(self, logging_outputs: list[dict]) -> None:
        """Log each label's F1 and the mean of the chosen ones."""

        def mean_of_chosen(counts):
            return sum(f1_score(counts[i]) for i in self.chosen) / len(self.chosen)

        log_scores(logging_outputs, self.classes, {"f1": mean_of_chosen if self.chosen else mean_f1})

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes, because all outputs are sums."""
        return True
