"""Part-of-speech tagging: rnndrop's tagger with a score of its own, the accuracy on words that the training lacks."""

from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from fairseq.tasks import register_task

from rnndrop_plugin.criterions.tagging import RnndropTagging, RnndropTaggingCriterionConfig
from rnndrop_plugin.data.sequence_dataset import NO_TARGET
from rnndrop_plugin.tasks.tagging import RnndropTaggingConfig, RnndropTaggingTask


@register_task("part_of_speech", dataclass=RnndropTaggingConfig)
class PartOfSpeechTask(RnndropTaggingTask):
    criterion = "part_of_speech"


@register_criterion("part_of_speech", dataclass=RnndropTaggingCriterionConfig)
class PartOfSpeech(RnndropTagging):
    """The loss and scores of rnndrop_tagging; an evaluation logs ``unknown_accuracy`` as well, in percent."""

    def __init__(self, task, sentence_avg: bool):
        super().__init__(task, sentence_avg)
        self.unk = task.source_dictionary.unk()

    def evaluate(self, sample, predicted):
        target = sample["target"]
        unknown = (sample["net_input"]["src_tokens"] == self.unk) & (target != NO_TARGET)
        sums = {"unknown": unknown.sum(), "unknown_correct": (unknown & (predicted == target)).sum()}
        return super().evaluate(sample, predicted) | sums

    @staticmethod
    def reduce_metrics(logging_outputs):
        RnndropTagging.reduce_metrics(logging_outputs)
        unknown, correct = (sum(log.get(name, 0) for log in logging_outputs) for name in ("unknown", "unknown_correct"))
        if unknown:
            metrics.log_scalar("unknown_accuracy", 100 * correct / unknown, unknown, round=2)
