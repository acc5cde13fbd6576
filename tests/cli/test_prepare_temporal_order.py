from collections import Counter

import pytest

from rnndrop_plugin.cli import prepare_temporal_order

STREAMS = [f"{split}.{kind}" for split in ("train", "valid", "test") for kind in ("bin", "idx")]


@pytest.fixture
def make(call, tmp_path):
    """Makes data in ``tmp_path / "dest"``."""
    return lambda *args: call(prepare_temporal_order, "--dest", tmp_path / "dest", *args)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def within(count, total, p):
    """Whether a count out of ``total`` is within five standard deviations of its expectation."""
    return abs(count - total * p) < 5 * (total * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("length", [3, 15])
def test_sequences(make, tmp_path, read_split, length):
    """Two of A and B, in the first and in the second third, name the class; everything is drawn uniformly."""
    status, out, err = make("--length", str(length), "--seed", "3")
    assert (status, err) == (0, "")
    assert "6,400 sequences for train, 2,000 sequences for valid, 10,000 sequences for test" in out
    third = length // 3
    for split, size in (("train", 6400), ("valid", 2000), ("test", 10000)):
        sequences = read_split(tmp_path / "dest" / "word", split)
        labels = read_split(tmp_path / "dest" / "label", split)
        assert len(sequences) == len(labels) == size
        first, second, classes, others = Counter(), Counter(), Counter(), Counter()
        for sequence, label in zip(sequences, labels, strict=True):
            *symbols, end = sequence
            places = [place for place, symbol in enumerate(symbols) if symbol in "AB"]
            assert (len(symbols), end, len(places)) == (length, "</s>", 2)
            assert label == [symbols[places[0]] + symbols[places[1]], "</s>"]
            first[places[0]] += 1
            second[places[1]] += 1
            classes[label[0]] += 1
            others.update(symbol for symbol in symbols if symbol not in "AB")
        assert sorted(first) == [*range(third)]
        assert sorted(second) == [*range(third, 2 * third)]
        assert all(within(count, size, 1 / third) for count in (first + second).values()) or third == 1
        assert sorted(classes) == ["AA", "AB", "BA", "BB"]
        assert all(within(count, size, 1 / 4) for count in classes.values())
        assert sorted(others) == ["C", "D"]
        assert within(others["C"], others.total(), 1 / 2)


def test_seed(make, tmp_path, read_split):
    """The same seed makes the same files, another one other data; no split repeats another's draws."""
    drawn = []
    for seed in ("1", "1", "2"):
        assert make("--length", "15", "--seed", seed)[0] == 0
        drawn.append(contents(tmp_path / "dest"))
    same, again, other = drawn
    assert same == again
    assert all(
        same[f"{stream}/{name}"] != other[f"{stream}/{name}"]
        for stream in ("word", "label")
        for name in STREAMS
        if name.endswith("bin")
    )
    valid, test, train = (read_split(tmp_path / "dest" / "word", split) for split in ("valid", "test", "train"))
    for one, two in ((train, valid), (train, test), (valid, test)):
        assert sum(a == b for a, b in zip(one, two, strict=False)) < 5


def test_vectors(make, tmp_path):
    """One-hot vectors in the form that fairseq reads embeddings from, but for its header."""
    assert make("--length", "6")[0] == 0
    assert (tmp_path / "dest" / "vectors.txt").read_text() == "A 1 0 0 0\nB 0 1 0 0\nC 0 0 1 0\nD 0 0 0 1\n"
    assert sorted(path.name for path in (tmp_path / "dest").iterdir()) == [
        "label",
        "prepared.json",
        "tokenizer.json",
        "vectors.txt",
        "word",
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--length", "10"], "10 does not divide into three equal parts"),
        (["--length", "0"], "'0' is not a whole number of at least 1"),
        (["--length", "15", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        ([], "--length"),
    ],
)
def test_bad_input(make, tmp_path, args, words):
    status, out, err = make(*args)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
