"""What taggers and classifiers share: features of words, and recurrent layers that read them."""

import torch
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from rnndrop_plugin import modules
from rnndrop_plugin.data.indexed import count_made_up, real_symbols
from rnndrop_plugin.data.streams import CAPITALISATION, CHARACTERS, WORD
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import RecurrentConfig, check_sizes, init_embeddings, init_uniform
from rnndrop_plugin.models.loading import CheckedLoading, FromPretrained
from rnndrop_plugin.modules import CharacterCNN, Dropout, EmbeddingDropout
from rnndrop_plugin.ops.packing import pack, pad


class WordFeatures(nn.Module):
    """Features of words: their embeddings, then the outputs of a convolution over their characters (if it has filters),
    then their capitalisation as a one-hot vector (if the data have it).

    Args:
        dictionaries: those of the task: ``word`` and, if the data have them, ``capitalisation`` and ``characters``.
        character_filters: see :class:`CharacterCNN`.

    Raises:
        InputError: a size below 1, or filters without a dictionary of characters.
    """

    def __init__(self, cfg: RecurrentConfig, dictionaries: dict[str, Dictionary], character_filters: int = 0):
        super().__init__()
        words, capitalisation = dictionaries[WORD], dictionaries.get(CAPITALISATION)
        check_sizes(cfg, "decoder_embed_dim")
        self.embed_tokens = nn.Embedding(len(words), cfg.decoder_embed_dim, words.pad())
        self.embed_dropout = EmbeddingDropout(cfg.decoder_embed_dropout, len(words))
        self.kinds, self.made_up_kinds = range(0), 0
        if capitalisation is not None:
            self.kinds = range(capitalisation.nspecial, capitalisation.nspecial + len(real_symbols(capitalisation)))
            self.made_up_kinds = count_made_up(capitalisation)
        characters = dictionaries.get(CHARACTERS)
        if character_filters < 0:
            raise InputError(f"--character-filters must be at least 0, got {character_filters}")
        if character_filters and characters is None:
            raise InputError(f"--character-filters needs data with the words' characters, got {character_filters}")
        self.characters = None
        if character_filters:
            self.characters = CharacterCNN(len(characters), character_filters, characters.pad())
        self.output_size = cfg.decoder_embed_dim + character_filters + len(self.kinds)

    def forward(
        self, src_tokens: Tensor, capitalisation: Tensor | None = None, characters: Tensor | None = None
    ) -> Tensor:
        """Turn ``(batch, time)`` and ``(batch, time, characters)`` into ``(batch, time, output_size)``, which is all
        zeros at padding.
        """
        padding = (src_tokens == self.embed_tokens.padding_idx).unsqueeze(2)
        x = self.embed_dropout(self.embed_tokens(src_tokens), src_tokens)
        x = [x.masked_fill(padding, 0)]  # older checkpoints may have another vector for padding
        if self.characters is not None:
            x.append(self.characters(characters))
        if self.kinds:
            kinds = torch.arange(self.kinds.start, self.kinds.stop, device=capitalisation.device)
            x.append((capitalisation.unsqueeze(2) == kinds).to(x[0]))
        return torch.cat(x, dim=2)


class SequenceModel(FromPretrained, CheckedLoading, BaseFairseqModel):
    """Word features, recurrent layers and an output layer, which each subclass applies to all steps or to the last one.

    Args:
        features: computes the features of each word.
        rnn: recurrent layers of rnndrop_plugin.modules.
        classes: the dictionary of the classes to predict. Symbols that fairseq-preprocess made up are not classes.
        context: a layer between features and recurrence, if any.
    """

    rnn_class: type[nn.Module]  # of rnndrop_plugin.modules
    task_name: str  # the task that trains it
    lengths_on_host = True  # see rnndrop_plugin.compat.batches

    @classmethod
    def check_task(cls, task) -> None:
        """Raise InputError unless ``task`` has classes, as ours and their subclasses do."""
        if not hasattr(task, "classes"):
            raise InputError(
                f"this model chooses between classes, and the task {type(task).__name__} has none: "
                f"pass --task {cls.task_name}"
            )

    def __init__(
        self,
        cfg: RecurrentConfig,
        features: WordFeatures,
        rnn: nn.Module,
        classes: Dictionary,
        context: nn.Module | None = None,
    ):
        super().__init__()
        self.features = features
        self.context = context
        self.rnn = rnn
        self.dropout_in = Dropout(cfg.decoder_dropout_in, str(cfg.decoder_dropout_sampling))
        self.dropout_out = Dropout(cfg.decoder_dropout_out, str(cfg.decoder_dropout_sampling))
        self.output_projection = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), len(real_symbols(classes)))
        self.made_up_classes = count_made_up(classes)
        self.was_narrowed = False  # whether load_state_dict left out made-up classes

    def initialise(self, cfg: RecurrentConfig, words: Dictionary) -> None:
        """Initialise all parameters by --init-range, --decoder-embed-path and --decoder-freeze-embed.

        Raises:
            InputError: a negative range, or a file that cannot be used.
        """
        init_uniform(self, cfg.init_range)
        init_embeddings(self.features.embed_tokens, cfg, words)

    def read(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        starts: Tensor | None = None,
        **features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence over sequences, or over extracts of them.

        Args:
            src_tokens: ``(batch, time)``, ids, padded at the right.
            src_lengths: ``(batch,)``, how many steps of each sequence the recurrence reads. These are best on the CPU,
                because the host needs them.
            starts: ``(batch,)``, the word with which the recurrence begins; None for the first.
            features: the words' other features, as far as the data have them, see :class:`WordFeatures`.

        Returns:
            The outputs ``(batch, steps, features)``, which are zero after a sequence's end, and the last layer's final
            hidden state ``(batch, hidden)``; if the layer is bidirectional, that of the backward direction.
            ``dropout_out`` has been applied to neither.
        """
        x = self.features(src_tokens, **features)
        if self.context is not None:
            x = self.context(x)
        if starts is not None:
            steps = starts.unsqueeze(1) + torch.arange(int(src_lengths.max()), device=x.device)
            steps = steps.clamp(max=x.size(1) - 1).unsqueeze(2)  # steps after an extract's end are never read
            x = x.gather(1, steps.expand(-1, -1, x.size(2)))
        output, state = self.rnn(pack(self.dropout_in(x), src_lengths, batch_first=True))
        h = state[0] if isinstance(state, tuple) else state
        return pad(output, batch_first=True), h[-1]

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load parameters. Older checkpoints have classes for symbols that fairseq made up, which are left out.

        Such symbols are the last ones of a dictionary, so the rows and columns to leave out are the last ones, too.
        Weights of made-up capitalisation classes were never used. Made-up tags and labels are no longer predicted.

        Raises:
            InputError: the parameters are for another architecture, other sizes or another dictionary.
        """
        return super().load_state_dict(self._narrow(state_dict), strict, model_cfg, args)

    def _narrow(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        own, narrowed = self.state_dict(), dict(state_dict)
        for name, value in state_dict.items():
            if name in own and name.startswith(("output_projection.", "crf.")):
                for dim, size in enumerate(own[name].shape):
                    if value.size(dim) == size + self.made_up_classes:
                        narrowed[name] = narrowed[name].narrow(dim, 0, size)
        reader, words = "rnn.weight_ih_l0", 1  # the weight that reads the features, and of how many words at a time
        if isinstance(self.context, modules.ConvContext):
            reader = "context.convolution.weight"
        elif self.context is not None:
            words = self.context.width
        size, made_up = self.features.output_size, self.features.made_up_kinds
        for name in (reader, f"{reader}_reverse"):
            if name in narrowed and narrowed[name].size(1) == words * (size + made_up):
                narrowed[name] = narrowed[name].unflatten(1, (words, -1))[:, :, :size].flatten(1, 2)
        self.was_narrowed = any(narrowed[name].shape != value.shape for name, value in state_dict.items())
        return narrowed

    def describe(self) -> str:
        vocabulary, classes = self.features.embed_tokens.num_embeddings, self.output_projection.out_features
        return f"{type(self.rnn).__name__}, {vocabulary} types in the dictionary, {classes} classes"
