"""Packed batches as torch.nn.utils.rnn makes them, without waiting for a GPU.

torch's own functions order sequences of any lengths by blocking copies. Here the host orders them, and what a device
needs of that is copied while the host goes on.
"""

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def pack(x: Tensor, lengths: Tensor, batch_first: bool = False) -> PackedSequence:
    """torch's ``pack_padded_sequence`` of sequences in any order.

    Args:
        x: ``(time, batch, ...)``, or ``(batch, time, ...)`` with ``batch_first``.
        lengths: ``(batch,)``, each at least 1. On another device than a CPU they are waited for.
    """
    lengths, order = lengths.cpu().long().sort(descending=True)
    order = order.to(x.device, non_blocking=True)
    packed = pack_padded_sequence(x.index_select(0 if batch_first else 1, order), lengths, batch_first)
    return PackedSequence(packed.data, packed.batch_sizes, order)


def pad(packed: PackedSequence, batch_first: bool = False, total_length: int | None = None) -> Tensor:
    """torch's ``pad_packed_sequence``, without the lengths: the sequences in the order in which they were packed."""
    padded, _ = pad_sorted(packed, batch_first, total_length)
    if packed.unsorted_indices is None:
        return padded
    return padded.index_select(0 if batch_first else 1, packed.unsorted_indices)


def pad_sorted(
    packed: PackedSequence, batch_first: bool = False, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The sequences from the longest to the shortest, and their lengths on the CPU."""
    as_they_are = packed._replace(sorted_indices=None, unsorted_indices=None)
    return pad_packed_sequence(as_they_are, batch_first, total_length=total_length)
