"""The loss of taggers, with the scores of the entities they find."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from rnndrop_plugin.criterions.scores import f1_score, log_scores, ratio
from rnndrop_plugin.data.sequence_dataset import NO_TARGET


@dataclass
class RnndropTaggingCriterionConfig(FairseqDataclass):
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("rnndrop_tagging", dataclass=RnndropTaggingCriterionConfig)
class RnndropTagging(FairseqCriterion):
    """Cross entropy of each word's tag, or with --crf of each sentence's path.

    Logged: ``loss`` (base 2, per word, or per sentence with --sentence-avg), ``accuracy`` of the tags, and in
    evaluation ``precision``, ``recall`` and ``f1`` of entities as conlleval counts them, and ``f1_TYPE`` of each
    type, in percent. An entity is correct where its type and both ends are.
    """

    def __init__(self, task, sentence_avg: bool):
        super().__init__(task)
        self.tags = task.classes
        self.types = entity_types(self.tags)
        self.sentence_avg = sentence_avg

    def forward(self, model, sample):
        """The summed loss, what to divide its gradient by, and the sums to log."""
        target, lengths = sample["target"], sample["net_input"]["src_lengths"]
        logits = model(**sample["net_input"])
        loss = model.loss(logits.float(), target, lengths)
        sample_size = sample["nsentences"] if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        with torch.no_grad():
            predicted = model.decode(logits, lengths) if not model.training else logits.argmax(dim=2)
        logging_output["correct"] = ((predicted == target) & (target != NO_TARGET)).sum()
        if not model.training:
            logging_output["counts"] = self.count(predicted, target, lengths)
        return loss, sample_size, logging_output

    def count(self, predicted: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """``(types, 3)``: the entities that are correct, predicted and there; the arguments are a batch's."""
        rows = zip(predicted.tolist(), target.tolist(), lengths.tolist(), strict=True)
        pairs = (([self.tags[i] for i in tags[:length]] for tags in (row, gold)) for row, gold, length in rows)
        counters = count_entities(pairs)
        return torch.tensor([[counter[type] for counter in counters] for type in self.types]).view(-1, 3)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the averages over ``logging_outputs``, one a batch or sums of several processes."""
        names = ("loss", "correct", "sample_size", "ntokens")
        loss, correct, size, words = (sum(log[name] for log in logging_outputs) for name in names)
        metrics.log_scalar("loss", loss / size / math.log(2), size, round=4)
        metrics.log_scalar("accuracy", 100 * correct / words, words, round=2)

    def log_scores(self, logging_outputs: list[dict]) -> None:
        """Log precision, recall and F1 of all entities, and each type's F1."""
        scores = {
            "precision": lambda counts: ratio(counts[:, 0].sum().item(), counts[:, 1].sum().item()),
            "recall": lambda counts: ratio(counts[:, 0].sum().item(), counts[:, 2].sum().item()),
            "f1": lambda counts: f1_score(counts.sum(0)),
        }
        log_scores(logging_outputs, self.types, scores)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: across processes the outputs are sums."""
        return True


def entity_types(tags: list[str]) -> list[str]:
    """The types of entities that ``tags`` can mark: PER of B-PER and I-PER."""
    return sorted({tag.partition("-")[2] for tag in tags if "-" in tag})


def count_entities(sentences: Iterable[tuple[list[str], list[str]]]) -> tuple[Counter, Counter, Counter]:
    """The entities by type that are correct, predicted and there, given each sentence's predicted and true tags."""
    correct, predicted, there = Counter(), Counter(), Counter()
    for own, gold in sentences:
        found, expected = entities(own), entities(gold)
        for counter, some in ((correct, found & expected), (predicted, found), (there, expected)):
            counter.update(type for type, _, _ in some)
    return correct, predicted, there


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """The entities that ``tags`` mark, as conlleval reads them: type, first and last word.

    An I- after another type or after O begins an entity, too.
    """
    from seqeval.metrics.sequence_labeling import get_entities  # takes a second to import, for scikit-learn

    return set(get_entities(tags))
