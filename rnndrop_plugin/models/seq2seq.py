"""Recurrent sequence-to-sequence models: lstm_rnndrop_seq2seq, gru_rnndrop_seq2seq, rnn_rnndrop_seq2seq.

They are trained by fairseq's own task translation.
"""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel
from fairseq.tasks.translation import TranslationTask
from torch import Tensor, nn

import rnndrop_plugin
from rnndrop_plugin.data.indexed import check_identity, identity
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import (
    SamplingChoice,
    build_recurrent,
    init_embeddings,
    init_uniform,
    name_flags,
    register_architectures,
)
from rnndrop_plugin.models.decoder import Decoder, DecoderConfig
from rnndrop_plugin.models.loading import CheckedLoading
from rnndrop_plugin.modules import Dropout, EmbeddingDropout
from rnndrop_plugin.ops import Attention, State, attend, draw_mask, input_feeding
from rnndrop_plugin.ops.checks import check_rate
from rnndrop_plugin.ops.packing import pack, pad


@dataclass
class Seq2SeqConfig(DecoderConfig):
    dropout: float = field(default=0.0, metadata={"help": "default for the forward dropout flags below"})
    encoder_embed_dim: int = field(default=512, metadata={"help": "dimension of the source's embeddings"})
    encoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "like --decoder-embed-path, for the source"}
    )
    encoder_freeze_embed: bool = field(default=False, metadata={"help": "do not train the source's embeddings"})
    encoder_hidden_size: int = field(default=512, metadata={"help": "units per direction of each encoder layer"})
    encoder_layers: int = field(default=1, metadata={"help": "number of encoder layers"})
    encoder_bidirectional: bool = field(default=False, metadata={"help": "read the source in both directions"})
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "forward dropout of the source's embeddings (default: --dropout)"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "forward dropout of each encoder layer's outputs (default: --dropout)"}
    )
    encoder_dropout_sampling: SamplingChoice = field(
        default="step", metadata={"help": "like --decoder-dropout-sampling, for the encoder"}
    )
    encoder_embed_dropout: float = field(default=0.0, metadata={"help": "like --decoder-embed-dropout, for the source"})
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "forward dropout of the target's embeddings (default: --dropout)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None,
        metadata={
            "help": "forward dropout of the outputs of each decoder layer and of the attention (default: --dropout)"
        },
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={"help": "share the embeddings of source, target and output, which need a joined dictionary"},
    )
    no_input_feed: bool = field(
        default=False,
        metadata={
            "help": "do not feed the attention's output of the previous step to the decoder; all steps of a layer then "
            "run at once, which is faster"
        },
    )


class Encoded(NamedTuple):
    """The encoder's result for a batch of sources.

    Attributes:
        keys, values, padding: as in :class:`rnndrop_plugin.ops.Attention`, for sources padded at the right.
        left: ``(batch,)``, how much padding each source had at its left.
        state: the decoder's initial state, each tensor ``(layers, batch, hidden)``.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor
    left: Tensor
    state: State


class RecurrentEncoder(FairseqEncoder):
    """Embeddings and recurrent layers over the source, and projections of their outputs for the decoder's attention.

    Args:
        embed_tokens: the source's embeddings.
        rnn: recurrent layers of rnndrop_plugin.modules.
        hidden_size: the decoder's.
    """

    def __init__(
        self, cfg: Seq2SeqConfig, dictionary: Dictionary, embed_tokens: nn.Embedding, rnn: nn.Module, hidden_size: int
    ):
        super().__init__(dictionary)
        self.embed_tokens = embed_tokens
        self.rnn = rnn
        self.embed_dropout = EmbeddingDropout(cfg.encoder_embed_dropout, len(dictionary))
        self.dropout_in = Dropout(cfg.encoder_dropout_in, str(cfg.encoder_dropout_sampling))
        self.dropout_out = Dropout(cfg.encoder_dropout_out, str(cfg.encoder_dropout_sampling))
        outputs = rnn.hidden_size * (1 + rnn.bidirectional)
        self.keys = nn.Linear(outputs, hidden_size, bias=False)
        self.values = nn.Linear(outputs, hidden_size, bias=False)
        states = 2 if rnn.cell == "lstm" else 1
        self.state = nn.ModuleList(
            nn.Linear(outputs, hidden_size) for _ in range(states if outputs != hidden_size else 0)
        )

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **kwargs) -> Encoded:
        """Read sources ``(batch, source)``, padded at either side."""
        padding_idx = self.dictionary.pad()
        left = src_tokens.ne(padding_idx).int().argmax(1)
        # This moves padding to the right. fairseq's convert_padding_direction would make the host wait for a GPU.
        places = torch.arange(src_tokens.size(1), device=left.device) + left.unsqueeze(1)
        src_tokens = src_tokens.gather(1, places % src_tokens.size(1))
        x = self.dropout_in(self.embed_dropout(self.embed_tokens(src_tokens), src_tokens))
        x, state = self.rnn(pack(x, src_lengths, batch_first=True))
        x = pad(x, batch_first=True, total_length=src_tokens.size(1))
        x = self.dropout_out(x)
        state = state if isinstance(state, tuple) else (state,)
        if self.rnn.bidirectional:
            state = tuple(s.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for s in state)
        if self.state:
            state = tuple(project(s) for project, s in zip(self.state, state, strict=True))
        return Encoded(self.keys(x), self.values(x), src_tokens.eq(padding_idx), left, state)

    def reorder_encoder_out(self, encoder_out: Encoded, new_order: Tensor) -> Encoded:
        """Put the sources in ``new_order`` for beam search."""
        *attended, state = encoder_out
        return Encoded(
            *(x.index_select(0, new_order) for x in attended), tuple(s.index_select(1, new_order) for s in state)
        )

    def max_positions(self) -> int:
        """A recurrence reads inputs of any length."""
        return 10**9


class AttentionalDecoder(Decoder):
    """Embeddings, recurrent layers with an attention over the source (Luong et al. 2015), and an output layer.

    Args:
        embed_tokens: the target's embeddings.
        rnn: recurrent layers of rnndrop_plugin.modules; with input feeding they read the embedding and the
            attention's output of the previous step.

    Raises:
        InputError: flags that contradict each other.
    """

    def __init__(self, cfg: Seq2SeqConfig, dictionary: Dictionary, embed_tokens: nn.Embedding, rnn: nn.Module):
        super().__init__(cfg, dictionary, embed_tokens, rnn)
        self.feeds = not cfg.no_input_feed
        self.attention = nn.Linear(rnn.hidden_size, rnn.hidden_size, bias=False)
        self.add_output_layer(cfg, cfg.share_decoder_input_output_embed or cfg.share_all_embeddings)

    def forward(
        self, prev_output_tokens: Tensor, encoder_out: Encoded, incremental_state=None, features_only=False, **kwargs
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """Predict the next token at every step.

        Args:
            prev_output_tokens: ``(batch, time)``, token ids, padded at the right.
            encoder_out: the encoder's result.
            incremental_state: fairseq's cache for generation; once it is filled, only the last token is read.
            features_only: leave out the output layer.

        Returns:
            The logits ``(batch, time, vocabulary)`` or, with ``features_only``, the features
            ``(batch, time, out_embed_dim)``; and a dictionary whose ``attn`` has the attention's weights of the source
            words, ``(batch, time, source)``.
        """
        features, weights = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return features if features_only else self.output_layer(features), {"attn": [weights]}

    def extract_features(
        self, prev_output_tokens: Tensor, encoder_out: Encoded, incremental_state=None
    ) -> tuple[Tensor, Tensor]:
        """The output layer's input, ``(batch, time, out_embed_dim)``, and the attention's weights of source words."""
        keys, values, padding, left, state = encoder_out
        feed = keys.new_zeros(keys.size(0), keys.size(2))
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None:
                prev_output_tokens = prev_output_tokens[:, -1:]
                feed, state = cached["feed"], tuple(cached[f"state{i}"] for i in range(len(state)))

        attention = Attention(keys, values, padding, self.attention.weight)
        x = self.embed(prev_output_tokens)
        if self.feeds:
            x, weights, state = self._feed_input(x, feed, state, attention)
            feed = x[-1]
            x, weights = x.transpose(0, 1), weights.transpose(0, 1)
        else:
            x, state = self.run_layers(x, state)
            x, weights = attend(x.transpose(0, 1), attention)
            x = self.dropout_out(x)

        if incremental_state is not None:
            cached = {"feed": feed, **{f"state{i}": s for i, s in enumerate(state)}}
            self.set_incremental_state(incremental_state, "state", cached)
        places = (torch.arange(weights.size(2), device=left.device) - left.unsqueeze(1)) % weights.size(2)
        return self.project(x), weights.gather(2, places.unsqueeze(1).expand_as(weights))

    def _feed_input(self, x: Tensor, feed: Tensor, state: State, attention: Attention) -> tuple[Tensor, Tensor, State]:
        """Run the decoder with input feeding: the outputs ``(time, batch, hidden)``, the attention's weights and the
        final state.
        """
        time, batch, _ = x.shape
        rnn = self.rnn
        forward_masks = [
            draw_mask(
                self.dropout_out.rate,
                time,
                batch,
                rnn.hidden_size,
                sampling=self.dropout_out.sampling,
                training=self.training,
                device=x.device,
            )
            for _ in range(rnn.num_layers)
        ]
        outputs, weights, states = input_feeding(
            rnn.cell,
            x,
            feed,
            list(zip(*(s.unbind() for s in state), strict=True)),
            [rnn.draw_weights(k) for k in range(rnn.num_layers)],
            attention,
            rnn.draw_masks(time, batch),
            forward_masks[:-1],
            forward_masks[-1],
            nonlinearity=rnn.nonlinearity,
            backend=rnn.backend,
        )
        return outputs, weights, tuple(torch.stack(s) for s in zip(*states, strict=True))


class RecurrentSeq2Seq(CheckedLoading, FairseqEncoderDecoderModel):
    """A recurrent encoder, and a recurrent decoder that attends to it."""

    rnn_class: type[nn.Module]
    lengths_on_host = True  # see rnndrop_plugin.compat.batches

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file="checkpoint_best.pt", data_name_or_path=".", **kwargs):
        """See :meth:`fairseq.models.BaseFairseqModel.from_pretrained`.

        Raises:
            FileNotFoundError: a checkpoint or the data folder is not there.
        """
        rnndrop_plugin.register()
        folder = Path(model_name_or_path)
        for checkpoint in checkpoint_file.split(os.pathsep):
            if not (folder / checkpoint).is_file():
                raise FileNotFoundError(f"{folder / checkpoint}: no such file")
        data = folder / data_name_or_path if str(data_name_or_path).startswith(".") else Path(data_name_or_path)
        if not data.is_dir():
            raise FileNotFoundError(f"{data}: no such folder")
        return super().from_pretrained(str(folder), checkpoint_file, str(data_name_or_path), **kwargs)

    @classmethod
    def build_model(cls, cfg: Seq2SeqConfig, task):
        """Build the model of ``cfg``.

        Raises:
            InputError: invalid flags, an unusable file of embeddings, or a task that does not translate.
        """
        if not isinstance(task, TranslationTask):
            raise InputError(f"this model is for --task translation, got the task {type(task).__name__}")
        _keep_dictionaries(task)
        cfg = copy.copy(cfg)
        with name_flags():
            check_rate("dropout", cfg.dropout)
        for name in ("encoder_dropout_in", "encoder_dropout_out", "decoder_dropout_in", "decoder_dropout_out"):
            if getattr(cfg, name) is None:
                setattr(cfg, name, cfg.dropout)
        if cfg.encoder_layers != cfg.decoder_layers:
            raise InputError(
                "--encoder-layers must equal --decoder-layers, because the encoder's final states start the decoder, "
                f"got {cfg.encoder_layers} and {cfg.decoder_layers}"
            )
        source, target = task.source_dictionary, task.target_dictionary
        encoder_rnn = build_recurrent(
            cls.rnn_class, cfg, cfg.encoder_embed_dim, cfg.encoder_bidirectional, part="encoder"
        )
        feed_size = 0 if cfg.no_input_feed else cfg.decoder_hidden_size
        decoder_rnn = build_recurrent(cls.rnn_class, cfg, cfg.decoder_embed_dim + feed_size)
        source_embedding = nn.Embedding(len(source), cfg.encoder_embed_dim, source.pad())
        if cfg.share_all_embeddings:
            _check_shared(cfg, source, target)
            target_embedding = source_embedding
        else:
            target_embedding = nn.Embedding(len(target), cfg.decoder_embed_dim, target.pad())
        model = cls(
            RecurrentEncoder(cfg, source, source_embedding, encoder_rnn, cfg.decoder_hidden_size),
            AttentionalDecoder(cfg, target, target_embedding, decoder_rnn),
        )
        init_uniform(model, cfg.init_range)
        init_embeddings(source_embedding, cfg, source, part="encoder")
        if not cfg.share_all_embeddings:
            init_embeddings(target_embedding, cfg, target)
        return model

    def describe(self) -> str:
        types = len(self.encoder.dictionary), len(self.decoder.dictionary)
        return f"{type(self.decoder.rnn).__name__}, dictionaries of {types[0]} and {types[1]} types"


def check_dictionaries(task: TranslationTask, saved: dict) -> None:
    """Check that a checkpoint's model was trained with the dictionaries of ``task``.

    Args:
        saved: what :func:`_keep_dictionaries` has kept of the checkpoint's.

    Raises:
        InputError: it was not.
    """
    for part, own in _identities(task).items():
        check_identity(f"{part} dictionary", saved.get(part), own, task.cfg.data)


def _keep_dictionaries(task: TranslationTask) -> None:
    """Have a checkpoint keep which dictionaries it was trained with, as rnndrop_plugin.tasks.RnndropTask does.

    Raises:
        InputError: a checkpoint is being loaded, and it has others.
    """
    saved = task.state_dict().get("dictionaries")  # fairseq gives a task the checkpoint's state before it has a model
    if saved is not None:
        check_dictionaries(task, saved)
    task.load_state_dict({"dictionaries": _identities(task)})


def _identities(task: TranslationTask) -> dict[str, dict]:
    return {"source": identity(task.source_dictionary), "target": identity(task.target_dictionary)}


def _check_shared(cfg: Seq2SeqConfig, source: Dictionary, target: Dictionary) -> None:
    if cfg.decoder_freeze_embed and not cfg.encoder_freeze_embed:
        raise InputError("--share-all-embeddings with --decoder-freeze-embed needs --encoder-freeze-embed, too")
    if source != target:
        raise InputError(
            "--share-all-embeddings needs one dictionary of source and target (fairseq-preprocess "
            f"--joined-dictionary), got two, of {len(source)} and {len(target)} types"
        )
    if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise InputError(
            f"--share-all-embeddings needs --encoder-embed-dim {cfg.encoder_embed_dim} to be --decoder-embed-dim, "
            f"got {cfg.decoder_embed_dim}"
        )
    if cfg.decoder_embed_path not in (None, cfg.encoder_embed_path):
        raise InputError(
            "--share-all-embeddings takes the embeddings of --encoder-embed-path, "
            f"got --decoder-embed-path {cfg.decoder_embed_path}"
        )


register_architectures("rnndrop_seq2seq", RecurrentSeq2Seq, Seq2SeqConfig)
