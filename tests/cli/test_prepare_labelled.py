import json

import pytest

from rnndrop_plugin.cli import prepare_labelled
from rnndrop_plugin.data.tokenization import Tokenization

TRAIN = "very good\tIt's good, good!\nbad\tbad bad Film\n\n 2 \tGood film\ta tab\nbad\tso-so\n"


@pytest.fixture
def prepare(call, tmp_path, write):
    """Prepares texts, one for each split that is given, in ``tmp_path / "dest"``."""

    def prepare(*args, **texts):
        for name, text in texts.items():
            write(tmp_path / f"{name}.tsv", text)
        files = [argument for name in texts for argument in (f"--{name}", tmp_path / f"{name}.tsv")]
        return call(prepare_labelled, *files, "--dest", tmp_path / "dest", *args)

    return prepare


def streams(read_split, folder, split):
    """What the three streams have of a split, without </s>."""
    return {
        name: [" ".join(sequence[:-1]) for sequence in read_split(folder / name, split)]
        for name in ("word", "capitalisation", "label")
    }


def test_streams(prepare, tmp_path, read_split):
    """Any labels, blanks and all; words by sacremoses, rare ones unknown; what tokenizer.json says."""
    status, out, err = prepare(train=TRAIN, valid="2\tfilm bad zebra\n", test="bad\tGood\n")
    assert (status, err) == (0, "")
    assert streams(read_split, tmp_path / "dest", "train") == {
        "word": ["<unk> <unk> good <unk> good <unk>", "bad bad <unk>", "<unk> <unk> <unk> <unk>", "<unk>"],
        "capitalisation": [
            "title lower lower none lower none",
            "lower lower title",
            "title lower lower lower",
            "lower",
        ],
        "label": ["very good", "bad", "2", "bad"],
    }
    assert streams(read_split, tmp_path / "dest", "valid")["word"] == ["<unk> bad <unk>"]
    assert (tmp_path / "dest" / "label" / "dict.txt").read_text() == "2 0\nbad 0\nvery good 0\n"
    assert "train: 4 texts (1 2, 2 bad, 1 very good), 14 words, 10 of them <unk>" in out
    kept = json.loads((tmp_path / "dest" / "tokenizer.json").read_text())
    assert (kept["tokenizer"], kept["lower"]) == ("moses", False)
    assert kept["splits"]["valid"] == {"sentences": 1, "words": 3, "characters": 14}


@pytest.mark.parametrize(
    ("flags", "words", "text"),
    [
        (("--lower",), "it 's good , good !", "It's Good"),
        (("--tokenizer", "blanks"), "It's good, good!", "It's Good"),
        (("--tokenizer", "tweets"), "It 's good , good !", "@you It's"),
        (("--language", "fr"), "It' s good , good !", "It's Good"),
    ],
)
def test_how_texts_are_cut(prepare, tmp_path, read_split, flags, words, text):
    assert prepare(*flags, "--min-count", "1", train=TRAIN)[0] == 0
    assert streams(read_split, tmp_path / "dest", "train")["word"][0] == words
    expected = {"--lower": ["it", "'s", "good"], "blanks": ["It's", "Good"], "tweets": ["<user>", "It", "'s"]}
    assert Tokenization.load(tmp_path / "dest").tokenize(text) == expected.get(flags[-1], ["It'", "s", "Good"])


def test_one_file_is_split_at_random(call, tmp_path, write, read_split):
    lines = [f"{label}\t{label}{n}" for label in "ab" for n in range(20)]
    write(tmp_path / "all.tsv", "\n".join(lines))
    found = {}
    for seed in ("1", "1", "2"):
        args = ("--dest", tmp_path / "dest", "--valid-fraction", "0.2", "--seed", seed, "--min-count", "1")
        assert call(prepare_labelled, tmp_path / "all.tsv", *args)[0] == 0
        splits = {split: streams(read_split, tmp_path / "dest", split) for split in ("train", "valid", "test")}
        assert [len(part["word"]) for part in splits.values()] == [28, 8, 4]
        assert all(set(part["label"]) == {"a", "b"} for part in splits.values())
        for part in splits.values():
            pairs = zip(part["word"], part["label"], strict=True)
            assert all(word == "<unk>" or word[0] == label for word, label in pairs)
        found.setdefault(seed, splits)
        assert found[seed] == splits
    assert found["1"] != found["2"]


def test_vectors(prepare, tmp_path, read_split, write):
    """A word that only the validation has keeps its vector, and others without one are unknown."""
    write(tmp_path / "vectors.txt", "zebra 1 2\ngood 3 4\n")
    args = ("--vectors", tmp_path / "vectors.txt", "--min-count", "9")
    status, out, _ = prepare(*args, train=TRAIN, valid="2\tZebra film\n")
    assert status == 0
    assert streams(read_split, tmp_path / "dest", "valid")["word"] == ["Zebra <unk>"]
    assert (tmp_path / "dest" / "vectors.txt").read_text() == "Good 3.0 4.0\nZebra 1.0 2.0\ngood 3.0 4.0\n"
    assert "vectors for 3 of" in out


@pytest.mark.parametrize(
    ("texts", "args", "message"),
    [
        ({"train": "good a text\n"}, (), "train.tsv, line 1: 'good a text', expected a label, a tab and a text"),
        ({"train": "a\tx\n\ta text\n"}, (), "train.tsv, line 2: '\\ta text', expected a label"),
        ({"train": "a\tx\nb\t \n"}, (), "train.tsv, line 2: the text is empty"),
        ({"train": "a\tx\n<unk>\ty\n"}, (), "train.tsv, line 2: <unk> is a symbol of fairseq's own"),
        ({"train": "a\tx\na\ty\n"}, (), "train.tsv, line 1 and all after it: one label, a; two or more are needed"),
        (
            {"train": TRAIN, "test": "bad\tx\n\nworse\tx\n"},
            (),
            "test.tsv, line 3: label 'worse' is not in the",
        ),
        ({"train": "a\t<pad>\nb\ty\n"}, ("--tokenizer", "blanks", "--min-count", "1"), None),
        ({"valid": TRAIN}, (), "--train is needed"),
        ({}, (), "give either FILE, to be split, or --train"),
        ({"train": TRAIN}, ("--seed", "2"), "--seed goes with FILE, which is split at random"),
        ({"train": TRAIN}, ("--tokenizer", "tweets", "--language", "de"), "--language goes with --tokenizer moses"),
        ({"train": TRAIN}, ("--vectors", "absent"), "absent"),
        (
            {"train": f"{TRAIN}good\t{'a ' * 5001}\n"},
            ("--tokenizer", "tweets"),
            "a text of 10,001 characters, expected at most 10,000",
        ),
    ],
)
def test_bad_input(prepare, tmp_path, read_split, texts, args, message):
    status, out, err = prepare(*args, **texts)
    if message is None:  # a word that is one of fairseq's symbols is unknown
        assert (status, read_split(tmp_path / "dest" / "word", "train")[0][0]) == (0, "<unk>")
        return
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "dest").exists()


def test_too_few_texts(call, tmp_path, write):
    write(tmp_path / "all.tsv", "a\tx\nb\ty\n")
    status, _, err = call(prepare_labelled, tmp_path / "all.tsv", "--dest", tmp_path / "dest")
    assert (status, "there are too few sentences or texts: 2 make parts of 2, 0, 0" in err) == (2, True)
