"""What the decoders of language models and of sequence-to-sequence models share."""

from dataclasses import dataclass, field
from typing import Optional

import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import RecurrentConfig, check_sizes
from rnndrop_plugin.modules import Dropout, EmbeddingDropout
from rnndrop_plugin.ops import State


@dataclass
class DecoderConfig(RecurrentConfig):
    """Flags for the output layer after the recurrent layers."""

    decoder_out_embed_dim: Optional[int] = field(
        default=None,
        metadata={
            "help": "project the decoder's output to this dimension before the output layer (default: the hidden size "
            "or, with shared embeddings, their dimension)"
        },
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share the embeddings of the decoder's input and output"}
    )


class Decoder(FairseqIncrementalDecoder):
    """Embeddings, recurrent layers and forward dropout around them; :meth:`add_output_layer` adds the output layer.

    Args:
        embed_tokens: the target's embeddings.
        rnn: recurrent layers of rnndrop_plugin.modules.
    """

    def __init__(self, cfg: DecoderConfig, dictionary: Dictionary, embed_tokens: nn.Embedding, rnn: nn.Module):
        super().__init__(dictionary)
        self.embed_tokens = embed_tokens
        self.rnn = rnn
        self.embed_dropout = EmbeddingDropout(cfg.decoder_embed_dropout, len(dictionary))
        self.dropout_in = Dropout(cfg.decoder_dropout_in, str(cfg.decoder_dropout_sampling))
        self.dropout_out = Dropout(cfg.decoder_dropout_out, str(cfg.decoder_dropout_sampling))
        self.projection = None
        self.output_projection = None  # stays None if the embeddings are shared or the softmax is adaptive
        self.output_bias = None  # only used if the output layer shares the embeddings
        self.adaptive_softmax = None  # only used by language models

    def add_output_layer(self, cfg: DecoderConfig, shared: bool) -> None:
        """Add the output layer, and a projection before it where --decoder-out-embed-dim asks for one.

        Args:
            shared: whether its weights are the embeddings.

        Raises:
            InputError: a dimension that does not fit.
        """
        hidden, embed = self.rnn.hidden_size, self.embed_tokens.embedding_dim
        if cfg.decoder_out_embed_dim is not None:
            check_sizes(cfg, "decoder_out_embed_dim")
        out_embed = cfg.decoder_out_embed_dim or (embed if shared else hidden)
        if shared and out_embed != embed:
            raise InputError(
                f"shared embeddings of input and output need --decoder-out-embed-dim {embed} (= --decoder-embed-dim), "
                f"got {out_embed}"
            )
        if out_embed != hidden:
            self.projection = nn.Linear(hidden, out_embed)
        if not shared:
            self.output_projection = nn.Linear(out_embed, len(self.dictionary))

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings of ``(batch, time)`` after forward dropout, ``(time, batch, embed_dim)``."""
        return self.dropout_in(self.embed_dropout(self.embed_tokens(tokens), tokens)).transpose(0, 1)

    def run_layers(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Run the recurrent layers over ``(time, batch, embed_dim)``.

        Returns:
            Their output ``(time, batch, hidden)``, and the final state. Like ``state`` it is a tuple for every cell.
        """
        x, state = self.rnn(x, state[0] if state is not None and len(state) == 1 else state)
        return x, state if isinstance(state, tuple) else (state,)

    def project(self, x: Tensor) -> Tensor:
        """The output layer's input: the outputs themselves, or their projection after forward dropout."""
        return x if self.projection is None else self.dropout_out(self.projection(x))

    @property
    def is_linear(self) -> bool:
        """Whether the probabilities are the softmax of a product with :meth:`output_weights`.

        A loss may then compute them itself. They are not with an adaptive softmax, or if a subclass has its own output
        layer or probabilities.
        """
        cls = type(self)
        own = (cls.output_layer, cls.get_normalized_probs) != (Decoder.output_layer, Decoder.get_normalized_probs)
        return self.adaptive_softmax is None and not own

    def output_layer(self, features: Tensor, **kwargs) -> Tensor:
        """The logits of ``features``; with an adaptive softmax the features themselves."""
        return features if self.adaptive_softmax is not None else F.linear(features, *self.output_weights())

    def output_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(vocabulary, out_embed_dim)`` and bias of the output layer, if the softmax is not adaptive."""
        if self.output_projection is not None:
            return self.output_projection.weight, self.output_projection.bias
        return self.embed_tokens.weight, self.output_bias

    def reorder_incremental_state(self, incremental_state, new_order: Tensor) -> None:
        """Put the cached rows in ``new_order`` for beam search; rows are each tensor's second-to-last dimension."""
        cached = self.get_incremental_state(incremental_state, "state")
        if cached is not None:
            cached = {name: s.index_select(s.dim() - 2, new_order) for name, s in cached.items()}
            self.set_incremental_state(incremental_state, "state", cached)

    def max_positions(self) -> int:
        """A recurrence reads inputs of any length."""
        return 10**9
