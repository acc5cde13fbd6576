"""Packed batches as torch.nn.utils.rnn makes them, without waiting for a GPU and in few operations.

torch's own functions need blocking copies to sort sequences by their lengths, and their gradients take several
operations for each step. Here the host finds which rows of the data go where, and copies that to the device without
waiting.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


def pack(x: Tensor, lengths: Tensor, batch_first: bool = False) -> PackedSequence:
    """torch's ``pack_padded_sequence`` for sequences in any order.

    Args:
        x: ``(time, batch, ...)``, or ``(batch, time, ...)`` with ``batch_first``.
        lengths: ``(batch,)``, each at least 1. If they are not on a CPU, the host waits for them.

    Raises:
        RuntimeError: a length below 1.
    """
    lengths, order = lengths.cpu().long().sort(descending=True)
    rows = torch.arange(x.size(0) * x.size(1), device=lengths.device).view(x.shape[:2])
    rows = pack_padded_sequence(rows.index_select(0 if batch_first else 1, order), lengths, batch_first)
    data = x.flatten(0, 1).index_select(0, rows.data.to(x.device, non_blocking=True))
    return PackedSequence(data, rows.batch_sizes, order.to(x.device, non_blocking=True))


def pad(packed: PackedSequence, batch_first: bool = False, total_length: int | None = None) -> Tensor:
    """torch's ``pad_packed_sequence``, without the lengths: the sequences in the order in which they were packed.

    Raises:
        ValueError: see :func:`pad_sorted`.
    """
    padded, _ = pad_sorted(packed, batch_first, total_length)
    if packed.unsorted_indices is None:
        return padded
    return padded.index_select(0 if batch_first else 1, packed.unsorted_indices)


def pad_sorted(
    packed: PackedSequence, batch_first: bool = False, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The sequences from the longest to the shortest, and their lengths on the CPU.

    Raises:
        ValueError: ``total_length`` is less than the length of the longest sequence.
    """
    running, rows = _rows(packed)
    data, (time, batch) = packed.data, running.shape
    if total_length is not None and total_length < time:
        raise ValueError(f"total_length is {total_length}, and the longest sequence has {time} steps")
    time = time if total_length is None else total_length
    padded = data.new_zeros(time * batch, *data.shape[1:]).index_copy(0, rows, data).unflatten(0, (time, batch))
    return padded.transpose(0, 1) if batch_first else padded, running.sum(0)


def pack_sorted(x: Tensor, like: PackedSequence) -> PackedSequence:
    """Pack ``x`` ``(time, batch, ...)``, whose sequences are in the order of :func:`pad_sorted` of ``like``."""
    return like._replace(data=x.flatten(0, 1).index_select(0, _rows(like)[1]))


def _rows(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """Which sequences run at each step, bool ``(time, batch)`` on the CPU, and their places in a padded batch, on the
    device of the data. Both are computed where the batch sizes are, so that nothing waits for a GPU."""
    sizes = packed.batch_sizes
    running = torch.arange(int(sizes[0]), device=sizes.device) < sizes.unsqueeze(1)
    return running, running.flatten().nonzero().squeeze(1).to(packed.data.device, non_blocking=True)
