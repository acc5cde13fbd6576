"""Recurrent language models: lstm_rnndrop, gru_rnndrop, rnn_rnndrop and their presets."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.models import FairseqLanguageModel
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import (
    SamplingChoice,
    ScalingChoice,
    build_recurrent,
    check_sizes,
    init_embeddings,
    init_uniform,
    register_architectures,
)
from rnndrop_plugin.models.decoder import Decoder, DecoderConfig
from rnndrop_plugin.models.evaluation import Evaluation
from rnndrop_plugin.models.loading import CheckedLoading, FromPretrained


@dataclass
class LanguageModelConfig(DecoderConfig):
    decoder_output_bias: bool = field(
        default=False,
        metadata={
            "help": "with shared embeddings: give the output layer a trained bias for each word, which starts at 0 "
            "(without shared embeddings it always has biases)"
        },
    )
    decoder_ffn_embed_dim: Optional[int] = field(
        default=None,
        metadata={
            "help": "before the output layer, add to the recurrent output what a feed-forward layer of this size "
            "computes from it and from the word's embedding (default: none)"
        },
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={"help": "comma-separated cutoffs of an adaptive softmax, for --criterion adaptive_loss"},
    )


class _AdaptiveSoftmax(AdaptiveSoftmax):
    """fairseq's adaptive softmax, with one correction: fairseq's adaptive_loss ignores the padding's index in every
    cluster of words, though it stands for padding in the first cluster only. In the other clusters we insert a class
    at this index that no word has.
    """

    def __init__(self, *args, padding_idx: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.padding_idx = padding_idx

    def forward(self, input: Tensor, target: Tensor):
        outputs, targets = super().forward(input, target)
        for i in range(1, len(targets)):
            if targets[i] is not None:
                before, after = outputs[i][:, : self.padding_idx], outputs[i][:, self.padding_idx :]
                never = outputs[i].new_full((len(outputs[i]), 1), -torch.inf)
                outputs[i] = torch.cat([before, never, after], dim=1)
                targets[i] = targets[i] + (targets[i] >= self.padding_idx)
        return outputs, targets


class RecurrentDecoder(Decoder):
    r"""Embeddings, recurrent layers and an output layer over the vocabulary.

    With ``decoder_ffn_embed_dim`` the output layer reads, instead of the recurrent output h of a word with embedding x,

    .. math:: h + W_2 \max(0, W_1 [h, x] + b_1) + b_2

    with forward dropout of x, of h and of what is added to h ("deep output", Pascanu et al. 2014, section 3.2.2, with
    the residual connection of transformers).

    The state at the end of a batch is kept, detached, for the next batch of the same stream: one state
    for training and one for evaluation, so that a validation in the middle of an epoch disturbs nothing.

    Args:
        rnn: recurrent layers over ``(time, batch, decoder_embed_dim)``.

    Raises:
        InputError: flags that contradict each other, or an unusable file of embeddings.
    """

    def __init__(self, cfg: LanguageModelConfig, dictionary, rnn: nn.Module):
        vocabulary, hidden, shared = len(dictionary), cfg.decoder_hidden_size, cfg.share_decoder_input_output_embed
        if cfg.decoder_output_bias and not shared:
            raise InputError("--decoder-output-bias needs --share-decoder-input-output-embed")
        if cfg.adaptive_softmax_cutoff and (shared or cfg.decoder_out_embed_dim not in (None, hidden)):
            raise InputError(
                "--adaptive-softmax-cutoff cannot be combined with --share-decoder-input-output-embed "
                "or --decoder-out-embed-dim"
            )
        embed_tokens = nn.Embedding(vocabulary, cfg.decoder_embed_dim, dictionary.pad())
        super().__init__(cfg, dictionary, embed_tokens, rnn)
        self.feed_forward = None
        if cfg.decoder_ffn_embed_dim is not None:
            check_sizes(cfg, "decoder_ffn_embed_dim")
            size = cfg.decoder_ffn_embed_dim
            read = nn.Linear(hidden + cfg.decoder_embed_dim, size)
            self.feed_forward = nn.Sequential(read, nn.ReLU(), nn.Linear(size, hidden))
        if cfg.adaptive_softmax_cutoff:
            self.adaptive_softmax = _AdaptiveSoftmax(
                vocabulary,
                hidden,
                _parse_cutoffs(cfg.adaptive_softmax_cutoff, dictionary, hidden),
                dropout=cfg.decoder_dropout_out,
                padding_idx=dictionary.pad(),
            )
        else:
            self.add_output_layer(cfg, shared)
        init_uniform(self, cfg.init_range)
        if cfg.decoder_output_bias:
            self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        init_embeddings(self.embed_tokens, cfg, dictionary)
        # The key is self.training.
        self.carried: dict[bool, tuple[Tensor, ...] | None] = {True: None, False: None}

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out=None,
        incremental_state=None,
        src_lengths: Tensor | None = None,
        starts_stream: bool | None = None,
        features_only: bool = False,
    ):
        """Predict the next token at every step.

        Args:
            prev_output_tokens: ``(batch, time)``, token ids.
            encoder_out: not used, because language models have no encoder.
            incremental_state: fairseq's cache for generation; once it is filled, only the last token is read.
            src_lengths: not used, because padding at the end of a row does not change the outputs before it.
            starts_stream: whether the rows begin here (True) or continue those of the last batch (False); None
                for independent sequences, which neither read nor leave a state.
            features_only: leave the output layer to the caller, see :meth:`output_weights`.

        Returns:
            The logits ``(batch, time, vocabulary)``, or the features ``(batch, time, out_embed_dim)`` with
            ``features_only`` or an adaptive softmax; and the dictionary of :meth:`extract_features`.
        """
        features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state, starts_stream)
        return features if features_only else self.output_layer(features), extra

    def extract_features(
        self, prev_output_tokens: Tensor, encoder_out=None, incremental_state=None, starts_stream: bool | None = None
    ):
        """The inputs of the output layer.

        Returns:
            The features ``(batch, time, out_embed_dim)``, and a dictionary with the last recurrent layer's outputs
            ``(batch, time, hidden)`` before forward dropout (``outputs``) and after it (``dropped_outputs``). Its
            ``attn``, which fairseq reads, is None.
        """
        state = None
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None:
                prev_output_tokens = prev_output_tokens[:, -1:]
                state = tuple(cached[name] for name in sorted(cached))
        elif starts_stream is False:
            state = self.carried[self.training]

        embedded = self.embed(prev_output_tokens)
        x, state = self.run_layers(embedded, state)
        state = tuple(s.detach() for s in state)

        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "state", {str(i): s for i, s in enumerate(state)})
        elif starts_stream is not None:
            self.carried[self.training] = state
        outputs = x.transpose(0, 1)
        dropped = features = self.dropout_out(outputs)
        if self.feed_forward is not None:
            read = torch.cat([dropped, embedded.transpose(0, 1)], dim=2)
            features = dropped + self.dropout_out(self.feed_forward(read))
        return self.project(features), {"attn": None, "outputs": outputs, "dropped_outputs": dropped}


class RecurrentLanguageModel(FromPretrained, CheckedLoading, FairseqLanguageModel):
    """A language model over streams; each subclass sets ``rnn_class``, the class of its recurrent layers."""

    rnn_class: type[nn.Module]  # of rnndrop_plugin.modules
    decoder_class = RecurrentDecoder
    pretrained = "PretrainedLanguageModel"
    evaluation: Evaluation | None = None  # how fairseq-eval-lm evaluates it; None for its own probabilities

    @classmethod
    def build_model(cls, cfg: LanguageModelConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: invalid flags, or a task that does not carry the state from batch to batch.
        """
        if not getattr(task, "carries_state", False):
            raise InputError(
                f"this model carries its state from batch to batch, and the task {type(task).__name__} does not: "
                "pass --task rnndrop_language_modeling"
            )
        rnn = build_recurrent(cls.rnn_class, cfg, cfg.decoder_embed_dim)
        return cls(cls.decoder_class(cfg, task.target_dictionary, rnn))

    def get_normalized_probs(self, net_output, log_probs: bool, sample: dict | None = None) -> Tensor:
        """The probabilities of the next tokens, or their logarithms, changed by ``evaluation`` if there is one."""
        if self.evaluation is None:
            return super().get_normalized_probs(net_output, log_probs, sample)
        logs = self.evaluation.log_probs(self.decoder, *net_output, sample)
        return logs if log_probs else logs.exp()

    def describe(self) -> str:
        return f"{type(self.decoder.rnn).__name__}, {len(self.decoder.dictionary)} types in the dictionary"


def _parse_cutoffs(text: str, dictionary, hidden: int) -> list[int]:
    first, last = dictionary.nspecial, len(dictionary)
    try:
        cutoffs = [int(cutoff) for cutoff in text.split(",")]
    except ValueError:
        cutoffs = []
    if not cutoffs or sorted(set(cutoffs)) != cutoffs or not first <= cutoffs[0] <= cutoffs[-1] <= last:
        raise InputError(
            f"--adaptive-softmax-cutoff must be increasing numbers from {first} to the dictionary's {last}, "
            f"got {text!r}"
        )
    tails = len(cutoffs) if cutoffs[-1] < last else len(cutoffs) - 1
    if hidden < 4**tails:
        raise InputError(
            f"--adaptive-softmax-cutoff {text}: each cutoff divides the features by 4, "
            f"and --decoder-hidden-size {hidden} is too small for {tails} of them"
        )
    return cutoffs


@dataclass
class PTBWordConfig(LanguageModelConfig):
    """Section 4.2, the upper half of Table 2: no forward dropout."""

    decoder_embed_dim: int = 256
    decoder_hidden_size: int = 256
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_biases: int = 1
    init_range: float = 0.05


@dataclass
class PTBCharConfig(LanguageModelConfig):
    """Section 4.3, the upper half of Table 3: no forward dropout."""

    decoder_embed_dim: int = 256
    decoder_hidden_size: int = 1024
    recurrent_dropout_scaling: ScalingChoice = "expected"
    recurrent_biases: int = 1
    init_range: float = 0.01


@dataclass
class PTBWord256Config(LanguageModelConfig):
    """A stronger model for Table 2's text, with 256 units and 3.1 million parameters (examples/ptb_word/recipe.md)."""

    decoder_embed_dim: int = 256
    decoder_hidden_size: int = 256
    share_decoder_input_output_embed: bool = True
    decoder_output_bias: bool = True
    decoder_dropout_sampling: SamplingChoice = "sequence"
    decoder_dropout_in: float = 0.25
    decoder_dropout_out: float = 0.4
    decoder_embed_dropout: float = 0.1
    weight_dropout: float = 0.2
    recurrent_biases: int = 1
    init_range: float = 0.05


register_architectures("rnndrop", RecurrentLanguageModel, LanguageModelConfig)
register_architectures("rnndrop_ptb_word", RecurrentLanguageModel, PTBWordConfig)
register_architectures("rnndrop_ptb_word_256", RecurrentLanguageModel, PTBWord256Config, cells=("lstm",))
register_architectures("rnndrop_ptb_char", RecurrentLanguageModel, PTBCharConfig, cells=("lstm",))
