import pytest
import torch
from fairseq.data import Dictionary

from rnndrop_plugin.data.stream import ContiguousWindows, TokenStream, WindowIterator, draw_window_lengths
from rnndrop_plugin.data.units import Units
from rnndrop_plugin.errors import InputError

DICTIONARY = Dictionary()
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()


def stream(tokens: int) -> torch.Tensor:
    """Tokens that tell where they stand; none is padding or ``</s>``."""
    return torch.arange(tokens) + 10


def read(tokens, rows: int, steps: int, num_shards: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and target as a model sees them, ``(rows, length)``, from the windows of all shards."""
    blocks = []
    for shard in range(num_shards):
        windows = ContiguousWindows(tokens, DICTIONARY, rows, steps, num_shards, shard)
        items = [windows[i] for i in range(len(windows))]
        assert [item["net_input"]["starts_stream"] for item in items] == [True] + [False] * (len(items) - 1)
        source = torch.cat([item["net_input"]["src_tokens"] for item in items], dim=1)
        blocks.append((source, torch.cat([item["target"] for item in items], dim=1)))
    return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))


@pytest.mark.parametrize(
    ("tokens", "rows", "steps", "num_shards"),
    [(1, 1, 1, 1), (35, 1, 35, 1), (36, 1, 35, 1), (60, 4, 5, 1), (61, 4, 5, 1), (63, 4, 7, 2), (10, 6, 1, 3)],
)
def test_every_token_is_predicted_once_from_the_token_before_it(tokens, rows, steps, num_shards):
    text = stream(tokens)
    source, target = read(text, rows, steps, num_shards)
    scored = target != PAD
    assert torch.equal(target[scored], text)
    assert torch.equal(source[scored], torch.cat([torch.tensor([EOS]), text[:-1]]))
    assert scored.flatten().tolist() == [True] * tokens + [False] * (target.numel() - tokens)
    assert target.numel() - tokens < rows  # no more padding than fills the rows


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_window_counts_what_it_holds(num_shards):
    counts = []
    for shard in range(num_shards):
        windows = ContiguousWindows(stream(61), DICTIONARY, 4, 5, num_shards, shard)
        for i in range(len(windows)):
            item = windows.collater([windows[i]])
            assert item["nsentences"] == len(item["id"]) == len(item["target"]) == 4 // num_shards
            assert item["ntokens"] == (item["target"] != PAD).sum()
            assert item["target"].is_contiguous() and item["net_input"]["src_tokens"].is_contiguous()
            assert item["target"].size(1) == (5 if i < 3 else 1)
            counts.append(item["ntokens"])
    assert sum(counts) == 61


def test_windows_share_the_words_and_characters_of_the_whole_text():
    windows = ContiguousWindows(stream(61), DICTIONARY, 4, 5, units=Units(20, 100))
    assert sum(windows[i]["words"] for i in range(len(windows))) == pytest.approx(20)
    assert sum(windows[i]["characters"] for i in range(len(windows))) == pytest.approx(100)


def test_rows_are_numbered_over_all_shards():
    ids = [ContiguousWindows(stream(61), DICTIONARY, 4, 5, 2, shard)[0]["id"].tolist() for shard in (0, 1)]
    assert ids == [[0, 1], [2, 3]]


def test_more_rows_than_tokens_are_refused():
    ContiguousWindows(stream(5), DICTIONARY, 5, 3)
    with pytest.raises(InputError, match="6 rows are more than 5 tokens can fill"):
        ContiguousWindows(stream(5), DICTIONARY, 6, 3)


def test_sentences_become_one_stream():
    text = TokenStream([torch.tensor([4, 5, EOS]), torch.tensor([EOS]), torch.tensor([6, EOS])])
    assert text.tokens.tolist() == [4, 5, EOS, EOS, 6, EOS]
    assert len(text) == 6


def iterator(rows: int, steps: int = 5) -> WindowIterator:
    return WindowIterator(ContiguousWindows(stream(200), DICTIONARY, rows, steps))


def first_targets(batches) -> list[int]:
    return [int(batch["target"][0, 0]) - 10 for batch in batches]


def test_batches_come_in_the_order_of_the_stream_in_every_epoch():
    batches = iterator(rows=2)
    for epoch in (1, 2):
        assert first_targets(batches.next_epoch_itr(shuffle=True)) == list(range(0, 100, 5))
        assert batches.epoch == epoch


def test_an_interrupted_epoch_goes_on_with_the_next_window():
    batches = iterator(rows=2)
    epoch = batches.next_epoch_itr()
    for _ in range(7):
        next(epoch)
    resumed = iterator(rows=2)
    resumed.load_state_dict(batches.state_dict())
    assert first_targets(resumed.next_epoch_itr()) == list(range(35, 100, 5))


@pytest.mark.parametrize(("rows", "steps", "place"), [(4, 5, 15), (1, 5, 70), (2, 10, 30), (2, 100, 0)])
def test_with_other_windows_an_interrupted_epoch_goes_on_at_the_same_fraction(rows, steps, place):
    batches = iterator(rows=2)
    epoch = batches.next_epoch_itr()
    for _ in range(7):  # of 20
        next(epoch)
    resumed = iterator(rows, steps)
    resumed.load_state_dict(batches.state_dict())
    assert first_targets(resumed.next_epoch_itr()) == list(range(place, 200 // rows, steps))
    assert resumed.epoch == 1


def test_a_finished_epoch_is_followed_by_the_next():
    batches = iterator(rows=2)
    list(batches.next_epoch_itr())
    resumed = iterator(rows=4)
    resumed.load_state_dict(batches.state_dict())
    assert first_targets(resumed.next_epoch_itr()) == list(range(0, 50, 5))
    assert resumed.epoch == 2


def varying_iterator(seed: int = 3) -> WindowIterator:
    return WindowIterator(ContiguousWindows(stream(2000), DICTIONARY, rows=2, steps=20, seed=seed))


def read_epoch(batches: WindowIterator) -> list[torch.Tensor]:
    return [batch["target"] - 10 for batch in batches.next_epoch_itr()]


def test_windows_of_varying_length_hold_every_token_once_and_differ_between_epochs():
    batches, lengths = varying_iterator(), []
    for epoch in (1, 2):
        windows = read_epoch(batches)
        assert torch.equal(torch.cat(windows, dim=1), torch.arange(2000).view(2, 1000))
        lengths.append([window.size(1) for window in windows])
        assert lengths[-1] == draw_window_lengths(1000, 20, seed=3, epoch=epoch)
    assert lengths[0] != lengths[1]
    assert lengths[0] != draw_window_lengths(1000, 20, seed=4, epoch=1)


def test_lengths_of_windows_are_distributed_as_in_the_paper():
    lengths = torch.tensor(draw_window_lengths(2_000_000, 100, seed=1, epoch=1)[:-1]).double()
    half = lengths < 75  # 5 standard deviations from both means
    assert half.double().mean() == pytest.approx(0.05, abs=0.005)
    for part, mean in ((lengths[~half], 99.5), (lengths[half], 49.5)):  # rounded down, as in their code
        assert part.mean() == pytest.approx(mean, abs=0.5)
        assert part.std() == pytest.approx(5, abs=0.4)
    assert min(draw_window_lengths(10_000, 5, seed=1, epoch=1)[:-1]) == 5
    assert min(draw_window_lengths(10_000, 2, seed=1, epoch=1)[:-1]) == 2


@pytest.mark.parametrize(("epochs", "seed"), [(0, 3), (1, 3), (1, 1)])  # with seed 1 the epochs differ in length
def test_an_interrupted_epoch_of_varying_windows_goes_on_with_the_same_windows(epochs, seed):
    batches, whole = varying_iterator(seed), varying_iterator(seed)
    for _ in range(epochs):
        read_epoch(batches), read_epoch(whole)
    epoch = batches.next_epoch_itr()
    for _ in range(7):
        next(epoch)
    resumed = varying_iterator(seed)
    assert len(resumed) == len(draw_window_lengths(1000, 20, seed, epoch=1))
    resumed.load_state_dict(batches.state_dict())
    expected = read_epoch(whole)[7:]
    rest = read_epoch(resumed)
    assert len(rest) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(rest, expected, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(read_epoch(resumed), read_epoch(whole), strict=True))
