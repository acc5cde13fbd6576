"""Recurrent classifiers of sequences: lstm_rnndrop_classifier, gru_..., rnn_... and their presets."""

from dataclasses import dataclass

from fairseq.models import register_model
from torch import Tensor

from rnndrop_plugin import modules
from rnndrop_plugin.models.config import NonlinearityChoice, RecurrentConfig, ScalingChoice, build_recurrent
from rnndrop_plugin.models.sequence_model import SequenceModel, WordFeatures


@dataclass
class ClassifierConfig(RecurrentConfig):
    pass


class RecurrentClassifier(SequenceModel):
    """Predicts one label from what the last layer holds after a sequence's last step (sections 4.1 and 4.5)."""

    @classmethod
    def build_model(cls, cfg: ClassifierConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: flags that cannot be, or an unusable file of embeddings.
        """
        features = WordFeatures(cfg, task.dictionaries)
        rnn = build_recurrent(cls.recurrent, cfg, features.output_size)
        model = cls(cfg, features, rnn, len(task.classes))
        model.initialise(cfg, task.dictionaries["word"])
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **features: Tensor) -> Tensor:
        """The logits ``(batch, classes)``; the arguments are those of :meth:`read`."""
        _, last = self.read(src_tokens, src_lengths, **features)
        return self.output_projection(last)


@register_model("lstm_rnndrop_classifier", dataclass=ClassifierConfig)
class LSTMClassifier(RecurrentClassifier):
    recurrent = modules.LSTM


@register_model("gru_rnndrop_classifier", dataclass=ClassifierConfig)
class GRUClassifier(RecurrentClassifier):
    recurrent = modules.GRU


@register_model("rnn_rnndrop_classifier", dataclass=ClassifierConfig)
class RNNClassifier(RecurrentClassifier):
    recurrent = modules.RNN


@dataclass
class TemporalOrderConfig(ClassifierConfig):
    """Section 4.1; the four symbols are one-hot vectors (--decoder-embed-path DATA/vectors.txt), which stay so.

    The authors' code initialises in [-0.05, 0.05], which takes the net without dropout several times as long.
    """

    decoder_embed_dim: int = 4
    decoder_freeze_embed: bool = True
    decoder_hidden_size: int = 256
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_biases: int = 1
    init_range: float = 0.2


@dataclass
class SemEvalConfig(ClassifierConfig):
    """Section 4.5 of arXiv v2; the words' vectors have 50 numbers, and are static with --decoder-freeze-embed."""

    decoder_embed_dim: int = 50
    decoder_hidden_size: int = 500
    decoder_dropout_in: float = 0.2
    decoder_dropout_out: float = 0.5
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_nonlinearity: NonlinearityChoice = "relu"
    recurrent_biases: int = 1
    init_range: float = 0.05


@register_model("lstm_rnndrop_classifier_temporal_order", dataclass=TemporalOrderConfig)
class LSTMTemporalOrder(LSTMClassifier):
    pass


@register_model("gru_rnndrop_classifier_temporal_order", dataclass=TemporalOrderConfig)
class GRUTemporalOrder(GRUClassifier):
    pass


@register_model("rnn_rnndrop_classifier_temporal_order", dataclass=TemporalOrderConfig)
class RNNTemporalOrder(RNNClassifier):
    pass


@register_model("lstm_rnndrop_classifier_semeval", dataclass=SemEvalConfig)
class LSTMSemEval(LSTMClassifier):
    pass


@register_model("gru_rnndrop_classifier_semeval", dataclass=SemEvalConfig)
class GRUSemEval(GRUClassifier):
    pass


@register_model("rnn_rnndrop_classifier_semeval", dataclass=SemEvalConfig)
class RNNSemEval(RNNClassifier):
    pass
