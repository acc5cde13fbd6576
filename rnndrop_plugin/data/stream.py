"""A text as one stream of tokens, cut into contiguous rows for truncated backpropagation through time."""

from collections.abc import Callable

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, iterators
from torch import Tensor

from rnndrop_plugin.data.units import Units
from rnndrop_plugin.errors import InputError


class TokenStream(FairseqDataset):
    """All sentences of a split, one after the other.

    Args:
        sentences: the ids of each sentence with its ``</s>``.
        units: the number of words and characters that they were cut from, if known.
    """

    def __init__(self, sentences: list[Tensor], units: Units | None = None):
        self.tokens = torch.cat(sentences)
        self.units = units

    def __len__(self):
        return len(self.tokens)


class ContiguousWindows(FairseqDataset):
    """A stream cut into ``rows`` contiguous rows. An item is a complete batch: a window over all rows.

    Item k holds the same steps of every row and item k + 1 the steps that follow, so a model that carries its state
    from item to item reads each row from beginning to end. The source of a step is the token before its
    target in the stream (``</s>`` before the first): every token is predicted exactly once. The stream
    is padded at its end until it fills the rows, and padding is not predicted.

    Args:
        tokens: ``(tokens,)``, the stream.
        dictionary: gives ``</s>`` and the padding.
        rows: the number of rows of all shards together.
        steps: the number of steps in a window; the last window may have fewer.
        num_shards, shard: this process reads the ``shard``-th of ``num_shards`` equal blocks of rows.
        seed: draw the steps of each window anew in each epoch, see :func:`draw_window_lengths`; None for windows of
            ``steps`` each.
        units: the number of words and characters in the stream; each item has a share in proportion to its tokens.

    Raises:
        InputError: there are no rows, or more rows than tokens.
    """

    def __init__(
        self,
        tokens: Tensor,
        dictionary: Dictionary,
        rows: int,
        steps: int,
        num_shards: int = 1,
        shard: int = 0,
        seed: int | None = None,
        units: Units | None = None,
    ):
        if rows < 1:
            raise InputError(f"--batch-size and --batch-size-valid must be at least 1, got {rows // num_shards}")
        if rows > len(tokens):
            raise InputError(
                f"{rows} rows are more than {len(tokens)} tokens can fill: lower --batch-size or --batch-size-valid"
            )
        self.dictionary, self.pad = dictionary, dictionary.pad()
        self.rows, self.steps = rows, steps
        self.units_per_token = {name: n / len(tokens) for name, n in units._asdict().items()} if units else {}
        self.seed = seed
        self.block = slice(rows // num_shards * shard, rows // num_shards * (shard + 1))
        self.row_ids = torch.arange(rows)[self.block]
        self.fill(tokens)
        self.set_epoch(1)

    def fill(self, tokens: Tensor, teacher_words: Tensor | None = None) -> None:
        """Put a stream into the rows, which must have as many tokens as the first one.

        Args:
            tokens: ``(tokens,)``.
            teacher_words: ``(tokens, words)``, what teachers expect in the place of each token; if given, items
                contain them.
        """
        length = -(-len(tokens) // self.rows)
        padding = tokens.new_full((self.rows * length - len(tokens),), self.pad)
        source = torch.cat([tokens.new_tensor([self.dictionary.eos()]), tokens[:-1], padding])
        target = torch.cat([tokens, padding])
        self.source, self.target = (x.view(self.rows, length)[self.block] for x in (source, target))
        self.teacher_words = teacher_words

    def set_epoch(self, epoch: int) -> None:
        """Cut the rows into the windows of ``epoch``, which counts from 1."""
        length = self.source.size(1)
        if self.seed is None:
            self.ends = [*range(self.steps, length, self.steps), length]
        else:
            self.ends = np.cumsum(draw_window_lengths(length, self.steps, self.seed, epoch)).tolist()

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index: int) -> dict:
        window = slice(self.ends[index - 1] if index else 0, self.ends[index])
        target = self.target[:, window].contiguous()
        ntokens = int((target != self.pad).sum())
        taught = {}
        if self.teacher_words is not None:  # they are many, so they are not copied to pad them at the end
            places = self.row_ids.unsqueeze(1) * self.source.size(1) + torch.arange(window.start, window.stop)
            taught["teacher_words"] = self.teacher_words[places.clamp(max=len(self.teacher_words) - 1)]
        return {
            "id": self.row_ids,
            "nsentences": len(self.row_ids),
            "ntokens": ntokens,
            **{name: n * ntokens for name, n in self.units_per_token.items()},
            "net_input": {"src_tokens": self.source[:, window].contiguous(), "starts_stream": index == 0},
            "target": target,
            **taught,
        }

    def collater(self, samples: list[dict]) -> dict:
        (sample,) = samples
        return sample


def draw_window_lengths(length: int, steps: int, seed: int, epoch: int) -> list[int]:
    """Draw the lengths of the windows that a row of ``length`` steps is cut into in one epoch.

    Each is drawn from a normal distribution with standard deviation 5 around ``steps``, or with probability 0.05 around
    half of it, and is at least min(5, ``steps``) (Merity et al. 2018, "Regularizing and optimizing LSTM language
    models", section 4.1; the numbers are those of their code). So a word stands at a different place of a window in
    each epoch, and it is not always the same words that end a window and get no gradient from the words after them. The
    last window has what is left. The same seed and epoch give the same lengths.
    """
    generator = np.random.default_rng([seed, epoch])
    lengths = []
    while length > 0:
        mean = steps if generator.random() < 0.95 else steps / 2
        lengths.append(min(max(int(generator.normal(mean, 5)), min(5, steps)), length))
        length -= lengths[-1]
    return lengths


class WindowIterator(iterators.EpochBatchIterator):
    """An epoch's batches, one for each window, in the order of the stream.

    From a checkpoint with other windows (other rows, steps or tokens), it continues at the same fraction of the epoch.

    Args:
        begin: called when the first batch of an epoch is requested, after all checks at the start of a training.
    """

    def __init__(self, windows: ContiguousWindows, epoch: int = 1, begin: Callable[[], None] = lambda: None):
        self.begin = begin
        windows.set_epoch(epoch)
        super().__init__(windows, windows.collater, _one_window_a_batch, epoch=epoch, disable_shuffling=True)

    def next_epoch_itr(self, *args, **kwargs):
        self.begin()
        return super().next_epoch_itr(*args, **kwargs)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "windows": len(self)}

    def load_state_dict(self, state_dict: dict) -> None:
        self.dataset.set_epoch(state_dict["epoch"])
        self._frozen_batches = None  # fairseq's cache of an epoch's batches
        windows = state_dict.get("windows", len(self))
        position = state_dict["iterations_in_epoch"] * len(self) // windows
        super().load_state_dict({**state_dict, "iterations_in_epoch": position})


def _one_window_a_batch(windows: ContiguousWindows, epoch: int) -> list[list[int]]:
    """The batches of the epoch that ``windows`` is set to; fairseq calls this once an epoch."""
    return [[i] for i in range(len(windows))]
