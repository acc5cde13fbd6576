"""Recurrent taggers: lstm_rnndrop_tagger, gru_rnndrop_tagger, rnn_rnndrop_tagger and their presets."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn

from rnndrop_plugin import modules
from rnndrop_plugin.data.sequence_dataset import NO_TARGET
from rnndrop_plugin.data.streams import WORD
from rnndrop_plugin.models.config import (
    NonlinearityChoice,
    RecurrentConfig,
    ScalingChoice,
    build_recurrent,
    check_sizes,
    name_flags,
    register_architectures,
)
from rnndrop_plugin.models.sequence_model import SequenceModel, WordFeatures

ContextChoice = ChoiceEnum(["none", "conv", "concat"])


@dataclass
class TaggerConfig(RecurrentConfig):
    context: ContextChoice = field(
        default="none",
        metadata={
            "help": "what the recurrence reads of a word's neighbours: conv, a convolution over them (COLING 2016); "
            "concat, their features concatenated (arXiv v2)"
        },
    )
    context_width: int = field(
        default=5, metadata={"help": "number of words in --context, with the word itself in the middle; odd"}
    )
    context_filters: int = field(default=256, metadata={"help": "number of filters of --context conv"})
    character_filters: int = field(
        default=0,
        metadata={
            "help": "number of filters of a convolution over each word's characters; the largest value of each filter "
            "is appended to the word's embedding; 0 for no convolution"
        },
    )
    bidirectional: bool = field(default=False, metadata={"help": "read sentences in both directions"})
    crf: bool = field(
        default=False, metadata={"help": "score complete tag sequences with a conditional random field on the outputs"}
    )


class RecurrentTagger(SequenceModel):
    """Predicts a tag for each word (section 4.4).

    Args:
        crf: whether a conditional random field chooses all tags of a sentence together.

    The other arguments are those of :class:`SequenceModel`.
    """

    pretrained = "PretrainedTagger"
    task_name = "rnndrop_tagging"

    def __init__(self, *args, crf: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.crf = modules.CRF(self.output_projection.out_features) if crf else None

    @classmethod
    def build_model(cls, cfg: TaggerConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: invalid flags, an unusable file of embeddings, or a task without classes.
        """
        cls.check_task(task)
        features = WordFeatures(cfg, task.dictionaries, cfg.character_filters)
        context = _build_context(cfg, features.output_size)
        rnn = build_recurrent(cls.rnn_class, cfg, (context or features).output_size, cfg.bidirectional)
        model = cls(cfg, features, rnn, task.target_dictionary, context, crf=cfg.crf)
        model.initialise(cfg, task.dictionaries[WORD])
        return model

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, starts: Tensor | None = None, **features: Tensor
    ) -> Tensor:
        """The logits ``(batch, steps, tags)``; the arguments are those of :meth:`read`."""
        output, _ = self.read(src_tokens, src_lengths, starts, **features)
        return self.output_projection(self.dropout_out(output))

    def loss(self, logits: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """The negative log-likelihood of ``target`` ``(batch, steps)``, summed over words or, with a CRF, sentences."""
        if self.crf is not None:
            return self.crf(logits, target, lengths).sum()
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=NO_TARGET, reduction="sum"
        )

    def decode(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """The predicted tags ``(batch, steps)``; those after a sentence's end mean nothing."""
        return logits.argmax(dim=2) if self.crf is None else self.crf.decode(logits, lengths)


def _build_context(cfg: TaggerConfig, input_size: int) -> nn.Module | None:
    check_sizes(cfg, "context_filters")
    with name_flags(width="context_width"):
        if cfg.context == "conv":
            return modules.ConvContext(
                input_size, cfg.context_filters, cfg.context_width, str(cfg.recurrent_nonlinearity)
            )
        if cfg.context == "concat":
            return modules.ConcatContext(input_size, cfg.context_width)
    return None


@dataclass
class CoNLL2003Config(TaggerConfig):
    """Section 4.4 of COLING 2016. The word vectors have 50 dimensions; --decoder-freeze-embed keeps them fixed."""

    decoder_embed_dim: int = 50
    decoder_hidden_size: int = 1024
    context: ContextChoice = "conv"
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_nonlinearity: NonlinearityChoice = "relu"
    recurrent_biases: int = 1
    init_range: float = 0.05


@dataclass
class CoNLL2003ConcatConfig(CoNLL2003Config):
    """Section 4.4 of arXiv v2."""

    context: ContextChoice = "concat"


register_architectures("rnndrop_tagger", RecurrentTagger, TaggerConfig)
register_architectures("rnndrop_tagger_conll2003", RecurrentTagger, CoNLL2003Config)
register_architectures("rnndrop_tagger_conll2003_concat", RecurrentTagger, CoNLL2003ConcatConfig)
