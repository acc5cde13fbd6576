"""Recurrent language models: lstm_rnndrop, gru_rnndrop, rnn_rnndrop and their presets."""

from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel, register_model
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from rnndrop_plugin import modules
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.recurrent import RecurrentConfig, build_recurrent, init_uniform


@dataclass
class LanguageModelConfig(RecurrentConfig):
    decoder_embed_dim: int = field(default=512, metadata={"help": "dimension of the embeddings"})
    decoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "file of pretrained embeddings in word2vec's text format"}
    )
    decoder_freeze_embed: bool = field(default=False, metadata={"help": "do not train the embeddings"})
    decoder_out_embed_dim: Optional[int] = field(
        default=None,
        metadata={
            "help": "project the recurrent output to this dimension before the output layer "
            "(default: the hidden size; with shared embeddings their dimension)"
        },
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share the embeddings of input and output"}
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={"help": "comma-separated cutoffs of an adaptive softmax, for --criterion adaptive_loss"},
    )


class RecurrentDecoder(FairseqIncrementalDecoder):
    """Embeddings, recurrent layers and an output layer over the vocabulary.

    The state at the end of a batch is kept, detached, for the next batch of the same stream: one state
    for training and one for evaluation, so that a validation in the middle of an epoch disturbs nothing.

    Args:
        rnn: recurrent layers over ``(time, batch, decoder_embed_dim)``.

    Raises:
        InputError: flags that contradict each other, or an unusable file of embeddings.
    """

    def __init__(self, cfg: LanguageModelConfig, dictionary, rnn: nn.Module):
        super().__init__(dictionary)
        vocabulary, hidden, embed = len(dictionary), cfg.decoder_hidden_size, cfg.decoder_embed_dim
        shared = cfg.share_decoder_input_output_embed
        out_embed = cfg.decoder_out_embed_dim or (embed if shared else hidden)
        if shared and out_embed != embed:
            raise InputError(
                f"--share-decoder-input-output-embed needs --decoder-out-embed-dim {embed} "
                f"(= --decoder-embed-dim), got {out_embed}"
            )
        if cfg.adaptive_softmax_cutoff and (shared or out_embed != hidden):
            raise InputError(
                "--adaptive-softmax-cutoff cannot be combined with --share-decoder-input-output-embed "
                "or --decoder-out-embed-dim"
            )
        self.embed_tokens = nn.Embedding(vocabulary, embed, dictionary.pad())
        self.rnn = rnn
        self.dropout_in = nn.Dropout(cfg.decoder_dropout_in)
        self.dropout_out = nn.Dropout(cfg.decoder_dropout_out)
        self.projection = nn.Linear(hidden, out_embed) if out_embed != hidden else None
        self.adaptive_softmax = None
        self.output_projection = None
        if cfg.adaptive_softmax_cutoff:
            cutoffs = _parse_cutoffs(cfg.adaptive_softmax_cutoff, vocabulary)
            self.adaptive_softmax = AdaptiveSoftmax(vocabulary, hidden, cutoffs, dropout=cfg.decoder_dropout_out)
        elif not shared:
            self.output_projection = nn.Linear(out_embed, vocabulary)
        init_uniform(self, cfg.init_range)
        if cfg.decoder_embed_path:
            _load_embeddings(self.embed_tokens, cfg.decoder_embed_path, dictionary)
        if cfg.decoder_freeze_embed:
            self.embed_tokens.weight.requires_grad_(False)
        self.carried: dict[bool, tuple[Tensor, ...] | None] = {True: None, False: None}  # by self.training

    def forward(
        self, prev_output_tokens: Tensor, encoder_out=None, incremental_state=None, starts_stream: bool | None = None
    ):
        """Predict the next token at every step.

        Args:
            prev_output_tokens: ``(batch, time)``, token ids.
            encoder_out: not used, language models have no encoder.
            incremental_state: fairseq's cache for generation; only the last token is read once it is filled.
            starts_stream: whether the rows begin here (True) or go on from the last batch (False); None
                for sequences of their own, which neither read nor leave a state.

        Returns:
            The logits ``(batch, time, vocabulary)``, or the features ``(batch, time, hidden)`` under an
            adaptive softmax, and None.
        """
        features = self.extract_features(prev_output_tokens, incremental_state, starts_stream)
        return self.output_layer(features), None

    def extract_features(
        self, prev_output_tokens: Tensor, incremental_state=None, starts_stream: bool | None = None
    ) -> Tensor:
        """The inputs of the output layer, ``(batch, time, out_embed_dim)``."""
        state = None
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None:
                prev_output_tokens = prev_output_tokens[:, -1:]
                state = tuple(cached[name] for name in sorted(cached))
        elif starts_stream is False:
            state = self.carried[self.training]

        x = self.dropout_in(self.embed_tokens(prev_output_tokens)).transpose(0, 1)
        is_lstm = isinstance(self.rnn, modules.LSTM)
        x, state = self.rnn(x, state if state is None or is_lstm else state[0])
        state = tuple(s.detach() for s in (state if is_lstm else (state,)))

        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "state", {str(i): s for i, s in enumerate(state)})
        elif starts_stream is not None:
            self.carried[self.training] = state
        x = self.dropout_out(x.transpose(0, 1))
        if self.projection is not None:
            x = self.dropout_out(self.projection(x))
        return x

    def output_layer(self, features: Tensor) -> Tensor:
        """The logits of ``features``; with an adaptive softmax the features themselves."""
        if self.adaptive_softmax is not None:
            return features
        if self.output_projection is not None:
            return self.output_projection(features)
        return F.linear(features, self.embed_tokens.weight)

    def reorder_incremental_state(self, incremental_state, new_order: Tensor) -> None:
        """Take the cached rows in ``new_order``, as beam search asks for."""
        cached = self.get_incremental_state(incremental_state, "state")
        if cached is not None:
            cached = {name: state.index_select(1, new_order) for name, state in cached.items()}
            self.set_incremental_state(incremental_state, "state", cached)

    def max_positions(self) -> int:
        """A recurrence has no longest input."""
        return 10**9


class RecurrentLanguageModel(FairseqLanguageModel):
    """A language model over streams; the subclasses say which recurrent layer."""

    rnn: type[nn.Module]

    @classmethod
    def build_model(cls, cfg: LanguageModelConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: flags that cannot be, or a task that does not carry the state.
        """
        if not getattr(task, "carries_state", False):
            raise InputError(
                f"this model carries its state from batch to batch, and the task {type(task).__name__} does not: "
                "pass --task rnndrop_language_modeling"
            )
        rnn = build_recurrent(cls.rnn, cfg, cfg.decoder_embed_dim)
        return cls(RecurrentDecoder(cfg, task.target_dictionary, rnn))

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load parameters, as torch.nn.Module does.

        Raises:
            InputError: they are of another architecture, of other sizes or of another dictionary.
        """
        try:
            return super().load_state_dict(state_dict, strict, model_cfg, args)
        except RuntimeError as error:
            details = [line.strip() for line in str(error).splitlines()[1:]]
            raise InputError(
                f"the checkpoint does not fit this model ({type(self.decoder.rnn).__name__}, dictionary of "
                f"{len(self.decoder.dictionary)}): {details[0]}"
            ) from error


def _parse_cutoffs(text: str, vocabulary: int) -> list[int]:
    try:
        cutoffs = [int(cutoff) for cutoff in text.split(",")]
    except ValueError:
        cutoffs = []
    if not cutoffs or sorted(set(cutoffs)) != cutoffs or not 0 < cutoffs[0] <= cutoffs[-1] <= vocabulary:
        raise InputError(
            f"--adaptive-softmax-cutoff must be increasing numbers up to the dictionary's {vocabulary}, got {text!r}"
        )
    return cutoffs


def _load_embeddings(embedding: nn.Embedding, path: str, dictionary) -> None:
    try:
        vectors = utils.parse_embedding(path)
    except (OSError, ValueError, StopIteration) as error:
        raise InputError(f"--decoder-embed-path {path}: {error or 'the file is empty'}") from error
    found = {word: vector for word, vector in vectors.items() if word in dictionary}
    for word, vector in found.items():
        if len(vector) != embedding.embedding_dim:
            raise InputError(
                f"--decoder-embed-path {path}: the vector of {word!r} has {len(vector)} numbers, "
                f"expected --decoder-embed-dim {embedding.embedding_dim}"
            )
    if not found:
        raise InputError(f"--decoder-embed-path {path}: no word of the dictionary is in it")
    with torch.no_grad():
        utils.load_embedding(found, dictionary, embedding)
    utils.print_embed_overlap(vectors, dictionary)


@register_model("lstm_rnndrop", dataclass=LanguageModelConfig)
class LSTMLanguageModel(RecurrentLanguageModel):
    rnn = modules.LSTM


@register_model("gru_rnndrop", dataclass=LanguageModelConfig)
class GRULanguageModel(RecurrentLanguageModel):
    rnn = modules.GRU


@register_model("rnn_rnndrop", dataclass=LanguageModelConfig)
class RNNLanguageModel(RecurrentLanguageModel):
    rnn = modules.RNN


@dataclass
class PTBWordConfig(LanguageModelConfig):
    """Section 4.2, the upper half of Table 2: no forward dropout."""

    decoder_embed_dim: int = 256
    decoder_hidden_size: int = 256
    recurrent_dropout_scaling: str = "expected"
    init_range: float = 0.05


@dataclass
class PTBCharConfig(LanguageModelConfig):
    """Section 4.3, the upper half of Table 3: no forward dropout."""

    decoder_embed_dim: int = 256
    decoder_hidden_size: int = 1024
    recurrent_dropout_scaling: str = "expected"
    init_range: float = 0.01


@register_model("lstm_rnndrop_ptb_word", dataclass=PTBWordConfig)
class LSTMPTBWord(LSTMLanguageModel):
    pass


@register_model("gru_rnndrop_ptb_word", dataclass=PTBWordConfig)
class GRUPTBWord(GRULanguageModel):
    pass


@register_model("rnn_rnndrop_ptb_word", dataclass=PTBWordConfig)
class RNNPTBWord(RNNLanguageModel):
    pass


@register_model("lstm_rnndrop_ptb_char", dataclass=PTBCharConfig)
class LSTMPTBChar(LSTMLanguageModel):
    pass
