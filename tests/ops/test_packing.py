import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnndrop_plugin.ops.packing import pack, pad, pad_sorted


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 1, 4), (2, 5, 1, 5), (1,)])
@pytest.mark.parametrize("total_length", [None, 7])
def test_values_and_gradients_are_those_of_torch(batch_first, lengths, total_length):
    torch.manual_seed(1)
    lengths = torch.tensor(lengths)
    time, batch = int(lengths.max()) + 1, len(lengths)  # a step more than the longest has
    x = torch.randn(*((batch, time) if batch_first else (time, batch)), 3, requires_grad=True)
    settings = {"batch_first": batch_first, "total_length": total_length}

    expected = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    padded, _ = pad_packed_sequence(expected, **settings)
    own = pack(x, lengths, batch_first)
    assert all(map(torch.equal, own, expected))
    assert torch.equal(pad(own, **settings), padded)
    d_output = torch.randn_like(padded)
    d_expected, d_found = (
        torch.autograd.grad(output, x, d_output)[0] for output in (padded, pad(own, batch_first, total_length))
    )
    assert torch.equal(d_found, d_expected)

    in_order = PackedSequence(own.data, own.batch_sizes)
    found, sorted_lengths = pad_sorted(own, **settings)
    expected, expected_lengths = pad_packed_sequence(in_order, **settings)
    assert torch.equal(found, expected) and torch.equal(sorted_lengths, expected_lengths)
    assert torch.equal(pad(in_order, **settings), expected)


def test_lengths_that_do_not_fit():
    x = torch.randn(4, 2, 3)
    for lengths in ([4, 0], [4, 3, 2]):
        with pytest.raises(RuntimeError):
            pack(x, torch.tensor(lengths))
    with pytest.raises(ValueError, match="total_length is 3, and the longest sequence has 4 steps"):
        pad_sorted(pack(x, torch.tensor([1, 4])), total_length=3)
