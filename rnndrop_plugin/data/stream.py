"""A text as one stream of tokens, cut into contiguous rows for truncated backpropagation through time."""

import torch
from fairseq.data import Dictionary, FairseqDataset, iterators
from torch import Tensor

from rnndrop_plugin.errors import InputError


class TokenStream(FairseqDataset):
    """All sentences of a split, one after the other.

    Args:
        sentences: the ids of each sentence with its ``</s>``.
    """

    def __init__(self, sentences: list[Tensor]):
        self.tokens = torch.cat(sentences)

    def __len__(self):
        return len(self.tokens)


class ContiguousWindows(FairseqDataset):
    """A stream in ``rows`` contiguous rows, an item being one whole batch: a window over all rows.

    Item k holds the steps ``[k * steps, (k + 1) * steps)`` of every row, so a model that carries its state
    from item to item reads each row from beginning to end. The source of a step is the token before its
    target in the stream (``</s>`` before the first): every token is predicted exactly once. The stream
    is padded at its end until it fills the rows, and padding is not predicted.

    Args:
        tokens: ``(tokens,)``, the stream.
        dictionary: gives ``</s>`` and the padding.
        rows: the rows of all shards together.
        steps: the steps of a window; the last one may have fewer.
        num_shards, shard: this process reads the ``shard``-th of ``num_shards`` equal blocks of rows.

    Raises:
        InputError: there are no rows, or more than tokens.
    """

    def __init__(self, tokens: Tensor, dictionary: Dictionary, rows: int, steps: int, num_shards=1, shard=0):
        if rows < 1:
            raise InputError(f"--batch-size and --batch-size-valid must be at least 1, got {rows // num_shards}")
        if rows > len(tokens):
            raise InputError(
                f"{rows} rows are more than {len(tokens)} tokens can fill: lower --batch-size or --batch-size-valid"
            )
        self.pad = dictionary.pad()
        self.steps = steps
        length = -(-len(tokens) // rows)
        padding = tokens.new_full((rows * length - len(tokens),), self.pad)
        source = torch.cat([tokens.new_tensor([dictionary.eos()]), tokens[:-1], padding])
        target = torch.cat([tokens, padding])
        block = slice(rows // num_shards * shard, rows // num_shards * (shard + 1))
        self.source, self.target = source.view(rows, length)[block], target.view(rows, length)[block]
        self.row_ids = torch.arange(rows)[block]

    def __len__(self):
        return -(-self.source.size(1) // self.steps)

    def __getitem__(self, index: int) -> dict:
        window = slice(index * self.steps, (index + 1) * self.steps)
        target = self.target[:, window].contiguous()
        return {
            "id": self.row_ids,
            "nsentences": len(self.row_ids),
            "ntokens": int((target != self.pad).sum()),
            "net_input": {"src_tokens": self.source[:, window].contiguous(), "starts_stream": index == 0},
            "target": target,
        }

    def collater(self, samples: list[dict]) -> dict:
        (sample,) = samples
        return sample


class WindowIterator(iterators.EpochBatchIterator):
    """An epoch's batches, one for each window, in the order of the stream.

    A checkpoint of other windows (other rows, steps or tokens) goes on at the same fraction of the epoch.
    """

    def __init__(self, windows: ContiguousWindows, epoch: int = 1):
        batches = [[i] for i in range(len(windows))]
        super().__init__(windows, windows.collater, batches, epoch=epoch, disable_shuffling=True)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "windows": len(self)}

    def load_state_dict(self, state_dict: dict) -> None:
        windows = state_dict.get("windows", len(self))
        position = state_dict["iterations_in_epoch"] * len(self) // windows
        super().load_state_dict({**state_dict, "iterations_in_epoch": position})
