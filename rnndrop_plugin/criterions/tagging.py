"""The loss of taggers, and the scores of the spans or tags that they find."""

from dataclasses import dataclass

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from omegaconf import II
from torch import Tensor

from rnndrop_plugin.criterions.scores import (
    check_task,
    count_classes,
    f1_score,
    log_loss_and_accuracy,
    log_scores,
    mean_f1,
    ratio,
)
from rnndrop_plugin.data.sequence_dataset import NO_TARGET


@dataclass
class RnndropTaggingCriterionConfig(FairseqDataclass):
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("rnndrop_tagging", dataclass=RnndropTaggingCriterionConfig)
class RnndropTagging(FairseqCriterion):
    """Cross entropy of each word's tag or, with --crf, of each sentence's complete tag sequence.

    Logged: ``loss`` (base 2, per word, or per sentence with --sentence-avg) and, in percent, ``accuracy`` of the tags.
    If the tags mark spans, an evaluation also logs ``precision``, ``recall`` and ``f1`` of the spans as conlleval
    counts them, and the ``f1_TYPE`` of each type. If they mark none, such as parts of speech, it logs as ``f1`` the
    mean F1 of the tags that are predicted or true.
    """

    def __init__(self, task, sentence_avg: bool):
        super().__init__(task)
        check_task(task, "span_tags", "rnndrop_tagging")
        self.tags = task.classes
        self.span_tags = task.span_tags
        self.sentence_avg = sentence_avg

    def forward(self, model, sample):
        """The summed loss, what to divide its gradient by, and the sums to log."""
        target, lengths = sample["target"], sample["net_input"]["src_lengths"]
        logits = model(**sample["net_input"]).float()
        loss = model.loss(logits, target, lengths)
        sample_size = sample["nsentences"] if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        with torch.no_grad():  # in training with --crf take the best tag of each word: a search would take too long
            predicted = model.decode(logits, lengths) if not model.training else logits.argmax(dim=2)
        logging_output["correct"] = (predicted == target).sum()  # NO_TARGET is no tag
        if not model.training:
            logging_output |= self.evaluate(sample, predicted)
        return loss, sample_size, logging_output

    def evaluate(self, sample: dict, predicted: Tensor) -> dict[str, Tensor]:
        """The sums that an evaluation logs for a batch; a subclass with a score of its own adds its sums here.

        Args:
            predicted: the predicted tags, ``(batch, time)``.
        """
        return {"counts": self.count(predicted, sample["target"], sample["net_input"]["src_lengths"])}

    def count(self, predicted: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """How many spans or tags are correct, predicted and true in a batch, ``(types, 3)`` or ``(tags, 3)``."""
        if self.span_tags is None:
            predicted, target = predicted.flatten(), target.flatten()
            return count_classes(predicted, target, len(self.tags), target != NO_TARGET)
        rows = zip(predicted.tolist(), target.tolist(), lengths.tolist(), strict=True)
        counters = self.span_tags.count(
            ([self.tags[i] for i in tags[:length]] for tags in (own, gold)) for own, gold, length in rows
        )
        return torch.tensor([[counter[type] for counter in counters] for type in self.span_tags.types])

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the averages over ``logging_outputs``, one for each batch, or their sums over several processes."""
        log_loss_and_accuracy(logging_outputs, "ntokens")

    def log_scores(self, logging_outputs: list[dict]) -> None:
        """Log precision, recall and F1 of all spans and the F1 of each type, or else the mean F1 of the tags."""
        if self.span_tags is None:
            log_scores(logging_outputs, [], {"f1": mean_f1})
            return
        scores = {
            "precision": lambda counts: ratio(counts[:, 0].sum().item(), counts[:, 1].sum().item()),
            "recall": lambda counts: ratio(counts[:, 0].sum().item(), counts[:, 2].sum().item()),
            "f1": lambda counts: f1_score(counts.sum(0)),
        }
        types = self.span_tags.types
        log_scores(logging_outputs, types if types != [""] else [], scores)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes, because all outputs are sums."""
        return True
