"""What all models share: the flags for embeddings and recurrent layers, and the functions that build these."""

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import nn

from rnndrop_plugin import modules
from rnndrop_plugin.data.vectors import read_vectors
from rnndrop_plugin.errors import InputError, flag_of
from rnndrop_plugin.ops import BACKENDS, NONLINEARITIES, SAMPLINGS, SCALINGS, choose_backend
from rnndrop_plugin.ops.checks import ArgumentError, check_rate

logger = logging.getLogger(__name__)

CELLS = {"lstm": modules.LSTM, "gru": modules.GRU, "rnn": modules.RNN}

SamplingChoice = ChoiceEnum(list(SAMPLINGS))
ScalingChoice = ChoiceEnum(list(SCALINGS))
NonlinearityChoice = ChoiceEnum(list(NONLINEARITIES))


@dataclass
class RecurrentConfig(FairseqDataclass):
    """Flags for embeddings and recurrent layers. Flags that fairseq has, too, keep fairseq's names."""

    decoder_embed_dim: int = field(default=512, metadata={"help": "dimension of the embeddings"})
    decoder_embed_path: Optional[str] = field(
        default=None,
        metadata={"help": "file of pretrained embeddings: word2vec (text or binary) or GloVe, may be compressed (.gz)"},
    )
    decoder_freeze_embed: bool = field(default=False, metadata={"help": "do not train the embeddings"})
    decoder_hidden_size: int = field(default=512, metadata={"help": "number of units in each recurrent layer"})
    decoder_layers: int = field(default=1, metadata={"help": "number of recurrent layers"})
    decoder_dropout_in: float = field(default=0.0, metadata={"help": "forward dropout of the embeddings"})
    decoder_dropout_out: float = field(
        default=0.0, metadata={"help": "forward dropout of each recurrent layer's outputs"}
    )
    decoder_dropout_sampling: SamplingChoice = field(
        default="step",
        metadata={
            "help": "draw the masks of forward dropout (before, between and after the layers) anew at each step, or "
            "once per sequence (BPTT window), as Gal (2015) does"
        },
    )
    decoder_embed_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout of words: a word is dropped everywhere in a sequence (BPTT window), Gal 2015"},
    )
    update_dropout: float = field(
        default=0.0,
        metadata={"help": "recurrent dropout of the update g (Semeniuta et al. 2016, Eq. 9 and 13); LSTM and GRU only"},
    )
    hidden_dropout: float = field(
        default=0.0, metadata={"help": "recurrent dropout of h(t-1) where the gates read it (Gal 2015, Eq. 7 and 2)"}
    )
    cell_dropout: float = field(
        default=0.0, metadata={"help": "recurrent dropout of the new cell (Moon et al. 2015, Eq. 8); LSTM and GRU only"}
    )
    weight_dropout: float = field(
        default=0.0,
        metadata={
            "help": "dropout of single weights of the recurrent matrices, the same ones at all steps of a sequence "
            "(BPTT window): DropConnect, Wan et al. 2013; Merity et al. 2018"
        },
    )
    recurrent_dropout_sampling: SamplingChoice = field(
        default="step", metadata={"help": "draw recurrent masks anew at each step, or once per sequence (BPTT window)"}
    )
    update_dropout_sampling: Optional[SamplingChoice] = field(
        default=None, metadata={"help": "like --recurrent-dropout-sampling, for --update-dropout only"}
    )
    hidden_dropout_sampling: Optional[SamplingChoice] = field(
        default=None, metadata={"help": "like --recurrent-dropout-sampling, for --hidden-dropout only"}
    )
    cell_dropout_sampling: Optional[SamplingChoice] = field(
        default=None, metadata={"help": "like --recurrent-dropout-sampling, for --cell-dropout only"}
    )
    recurrent_dropout_scaling: ScalingChoice = field(
        default="inverted",
        metadata={
            "help": "inverted: divide by 1-p in training (Eq. 18 of arXiv v2); expected: multiply by 1-p in evaluation "
            "(Eq. 3, as in the paper's experiments)"
        },
    )
    recurrent_nonlinearity: NonlinearityChoice = field(
        default="tanh", metadata={"help": "nonlinearity of the candidate and of the LSTM's cell"}
    )
    recurrent_backend: ChoiceEnum(list(BACKENDS)) = field(
        default="auto",
        metadata={"help": "implementation of the recurrence; auto takes the fastest that can run it"},
    )
    recurrent_biases: int = field(
        default=2,
        metadata={
            "help": "number of trained biases per gate: 2 as in torch.nn, or 1 as in the paper's equations (the other "
            "bias stays 0). With SGD two biases learn twice as fast"
        },
    )
    init_range: float = field(default=0.1, metadata={"help": "initialise all parameters uniformly in [-R, R]"})


def register_architectures(
    name: str, base: type[BaseFairseqModel], config: type[RecurrentConfig], cells: Iterable[str] = CELLS
) -> None:
    """Register the architectures ``lstm_NAME``, ``gru_NAME`` and ``rnn_NAME``: a subclass of ``base`` for each cell.

    fairseq keeps the configuration as an attribute of the class, so each architecture needs a class of its own.

    Args:
        base: a model that builds its recurrent layers from its attribute ``rnn_class``.
        config: the flags with their defaults.
        cells: the cells of ``CELLS`` to register it for.
    """
    _inherit_help(config)
    for cell in cells:
        rnn_class = CELLS[cell]
        class_name = rnn_class.__name__ + base.__name__.removeprefix("Recurrent")
        architecture = f"{cell}_{name}"
        module = sys.modules[base.__module__]
        names = {"__module__": base.__module__, "__qualname__": architecture, "__doc__": base.__doc__}
        cls = type(class_name, (base,), {"rnn_class": rnn_class, "add_args": _adder(config), **names})
        setattr(module, architecture, cls)  # where pickle looks for it
        register_model(architecture, dataclass=config)(cls)


def _adder(config: type[RecurrentConfig]) -> classmethod:
    """A method that adds the flags of ``config`` to a parser, as that of fairseq's models does, with one difference.

    Where a preset turns a setting on, fairseq's ``--FLAG`` would turn it off, and no flag would turn it on. Here
    ``--FLAG`` always turns it on, and ``--no-FLAG`` turns it off.
    """

    class Parser:
        def __init__(self, parser):
            self.parser = parser

        def add_argument(self, *args, **kwargs):
            if kwargs.get("action") == "store_false":
                kwargs["action"] = argparse.BooleanOptionalAction
            self.parser.add_argument(*args, **kwargs)

    return classmethod(lambda cls, parser: gen_parser_from_dataclass(Parser(parser), config(), delete_default=True))


def _inherit_help(config: type[RecurrentConfig]) -> None:
    """Copy the help of flags whose default a preset changes from the preset's base class."""
    for own in dataclasses.fields(config):
        for base in config.__mro__[1:]:
            if not own.metadata and own.name in getattr(base, "__dataclass_fields__", ()):
                own.metadata = base.__dataclass_fields__[own.name].metadata


@contextmanager
def name_flags(**flags: str) -> Iterator[None]:
    """Turn a module's ValueError into an InputError that names the flag by which the user set the argument.

    Args:
        flags: the configuration's name of each of the module's arguments that has another name there.
    """
    try:
        yield
    except ArgumentError as error:
        raise InputError(f"{flag_of(flags.get(error.argument, error.argument))} {error.problem}") from error
    except ValueError as error:
        raise InputError(str(error)) from error


def build_recurrent(
    cls: type[nn.Module], cfg: RecurrentConfig, input_size: int, bidirectional: bool = False, part: str = "decoder"
):
    """Build the recurrent layers of ``cfg`` as a ``cls`` (LSTM, GRU or RNN of rnndrop_plugin.modules).

    Args:
        part: whose sizes and forward dropout to use, those of the ``"decoder"`` or of the ``"encoder"``.

    Raises:
        InputError: a rate outside [0, 1), a size below 1, a kind of dropout that the cell does not have, or
            a backend that cannot run it.
    """
    with name_flags():
        for name in ("dropout_in", "dropout_out", "embed_dropout"):
            check_rate(f"{part}_{name}", getattr(cfg, f"{part}_{name}"))
    check_sizes(cfg, f"{part}_embed_dim", f"{part}_hidden_size", f"{part}_layers")
    layers = getattr(cfg, f"{part}_layers")
    if cfg.recurrent_biases not in (1, 2):
        raise InputError(f"--recurrent-biases must be 1 or 2, got {cfg.recurrent_biases}")
    with name_flags(backend="recurrent_backend"):
        rnn = cls(
            input_size,
            getattr(cfg, f"{part}_hidden_size"),
            layers,
            dropout=getattr(cfg, f"{part}_dropout_out") if layers > 1 else 0.0,
            bidirectional=bidirectional,
            update_dropout=cfg.update_dropout,
            hidden_dropout=cfg.hidden_dropout,
            cell_dropout=cfg.cell_dropout,
            sampling=str(cfg.recurrent_dropout_sampling),
            update_sampling=_optional_str(cfg.update_dropout_sampling),
            hidden_sampling=_optional_str(cfg.hidden_dropout_sampling),
            cell_sampling=_optional_str(cfg.cell_dropout_sampling),
            scaling=str(cfg.recurrent_dropout_scaling),
            nonlinearity=str(cfg.recurrent_nonlinearity),
            backend=str(cfg.recurrent_backend),
            weight_dropout=cfg.weight_dropout,
            dropout_sampling=str(getattr(cfg, f"{part}_dropout_sampling")),
        )
        _try_backend(rnn)
    if cfg.recurrent_biases == 1:
        for name, parameter in rnn.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(parameter.requires_grad_(False))
    return rnn


def check_sizes(cfg: RecurrentConfig, *names: str) -> None:
    """Raise InputError unless the fields ``names`` of ``cfg`` are at least 1."""
    for name in names:
        size = getattr(cfg, name)
        if size < 1:
            raise InputError(f"{flag_of(name)} must be at least 1, got {size}")
        if size >= 2**63:
            raise InputError(f"{flag_of(name)} must be less than 2**63, got {size}")


@torch.no_grad()
def _try_backend(rnn: nn.Module) -> None:
    """Raise ValueError if the backend asked for cannot run ``rnn`` in training or in evaluation."""
    if rnn.backend == "auto":
        return
    if rnn.backend == "triton":  # it supports all options, but the model is not on the GPU yet and cannot be run
        choose_backend(rnn.cell, device="cuda", backend="triton")
        return
    with torch.random.fork_rng(devices=[]):  # so that all backends start from the same parameters
        for training in (False, True):
            rnn.train(training)(torch.zeros(1, 1, rnn.input_size))


def init_uniform(model: nn.Module, init_range: float) -> None:
    """Initialise all trained parameters uniformly in [-init_range, init_range], and the embedding of padding with zero.

    Raises:
        InputError: the range is negative or not finite.
    """
    if not 0 <= init_range < math.inf:
        raise InputError(f"--init-range must be a number of at least 0, got {init_range}")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.uniform_(parameter, -init_range, init_range)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


def init_embeddings(
    embedding: nn.Embedding, cfg: RecurrentConfig, dictionary: Dictionary, part: str = "decoder"
) -> None:
    """Read --decoder-embed-path into ``embedding``, and freeze it with --decoder-freeze-embed.

    Args:
        part: whose flags to use, those of the ``"decoder"`` or of the ``"encoder"``.

    Raises:
        InputError: the file cannot be used.
    """
    path = getattr(cfg, f"{part}_embed_path")
    if path is not None:
        words = set(dictionary.symbols) - {dictionary.pad_word}  # padding stays zero, whatever the file has for it
        names = {"name": f"--{part}-embed-path {path}", "size_name": f"--{part}-embed-dim"}
        vectors = read_vectors(path, words, embedding.embedding_dim, **names)
        with torch.no_grad():
            for word, vector in vectors.items():
                embedding.weight[dictionary.index(word)] = vector
        logger.info(f"{path}: vectors of {len(vectors)} of the dictionary's {len(dictionary)} types")
    if getattr(cfg, f"{part}_freeze_embed"):
        embedding.weight.requires_grad_(False)


def _optional_str(choice) -> str | None:
    return None if choice is None else str(choice)
