"""Classification: one label for each sequence, predicted after its last step."""

from fairseq.tasks import register_task
from torch import Tensor

from rnndrop_plugin.data.sequence_dataset import LabelledSequences
from rnndrop_plugin.data.streams import LABEL
from rnndrop_plugin.models.classifier import RecurrentClassifier
from rnndrop_plugin.tasks.sequence_task import SequencesConfig, SequencesTask


@register_task("rnndrop_classification", dataclass=SequencesConfig)
class RnndropClassificationTask(SequencesTask):
    """Train and evaluate recurrent classifiers of sequences (sections 4.1 and 4.5)."""

    target_stream = LABEL
    model_class = RecurrentClassifier
    model_kind = "a classifier"
    criterion = "rnndrop_classification"

    def targets_of(self, words: Tensor) -> int:
        return 1

    def make_dataset(self, words, features, targets, split) -> LabelledSequences:
        return LabelledSequences(words, features, targets, self.source_dictionary.pad())
