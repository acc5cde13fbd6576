"""Recurrent classifiers of sequences: lstm_rnndrop_classifier, gru_..., rnn_... and their presets."""

from dataclasses import dataclass

from torch import Tensor

from rnndrop_plugin.data.streams import WORD
from rnndrop_plugin.models.config import (
    NonlinearityChoice,
    RecurrentConfig,
    ScalingChoice,
    build_recurrent,
    register_architectures,
)
from rnndrop_plugin.models.sequence_model import SequenceModel, WordFeatures


class RecurrentClassifier(SequenceModel):
    """Predicts one label from the last layer's output at a sequence's last step (sections 4.1 and 4.5)."""

    pretrained = "PretrainedClassifier"
    task_name = "rnndrop_classification"

    @classmethod
    def build_model(cls, cfg: RecurrentConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: invalid flags, an unusable file of embeddings, or a task without classes.
        """
        cls.check_task(task)
        features = WordFeatures(cfg, task.dictionaries)
        rnn = build_recurrent(cls.rnn_class, cfg, features.output_size)
        model = cls(cfg, features, rnn, task.target_dictionary)
        model.initialise(cfg, task.dictionaries[WORD])
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **features: Tensor) -> Tensor:
        """The logits ``(batch, classes)``; the arguments are those of :meth:`read`."""
        _, last = self.read(src_tokens, src_lengths, **features)
        return self.output_projection(self.dropout_out(last))


@dataclass
class TemporalOrderConfig(RecurrentConfig):
    """Section 4.1. The four symbols are one-hot vectors (--decoder-embed-path DATA/vectors.txt), which are not trained.

    The authors' code initialises in [-0.05, 0.05]. The network without dropout then needs several times as long.
    """

    decoder_embed_dim: int = 4
    decoder_freeze_embed: bool = True
    decoder_hidden_size: int = 256
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_biases: int = 1
    init_range: float = 0.2


@dataclass
class SemEvalConfig(RecurrentConfig):
    """Section 4.5 of arXiv v2. The word vectors have 50 dimensions; --decoder-freeze-embed keeps them fixed."""

    decoder_embed_dim: int = 50
    decoder_hidden_size: int = 500
    decoder_dropout_in: float = 0.2
    decoder_dropout_out: float = 0.5
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_nonlinearity: NonlinearityChoice = "relu"
    recurrent_biases: int = 1
    init_range: float = 0.05


register_architectures("rnndrop_classifier", RecurrentClassifier, RecurrentConfig)
register_architectures("rnndrop_classifier_temporal_order", RecurrentClassifier, TemporalOrderConfig)
register_architectures("rnndrop_classifier_semeval", RecurrentClassifier, SemEvalConfig)
