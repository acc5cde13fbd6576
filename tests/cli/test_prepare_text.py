import json
import random
import re

import pytest
import sentencepiece

from rnndrop_plugin.cli import prepare_text
from rnndrop_plugin.data.tokenization import Tokenization

LINES = [f"Line {n} doesn't end here, it's Nr. {n}." for n in range(20)]


@pytest.fixture
def prepare(call, tmp_path, write):
    """Prepares a text in ``tmp_path / "dest"``."""

    def prepare(text, *args):
        write(tmp_path / "text.txt", text)
        return call(prepare_text, tmp_path / "text.txt", "--dest", tmp_path / "dest", *args)

    return prepare


def sentences(read_split, folder):
    return {split: read_split(folder, split) for split in ("train", "valid", "test")}


def test_lines(prepare, tmp_path, read_split):
    """The parts are the text's beginning, middle and end; words are as the Moses tokenizer makes them."""
    status, out, err = prepare("\n\n".join(LINES), "--valid-fraction", "0.2", "--test-fraction", "0.1")
    assert (status, err) == (0, "")
    parts = sentences(read_split, tmp_path / "dest")
    assert {split: len(part) for split, part in parts.items()} == {"train": 14, "valid": 4, "test": 2}
    # every number occurs twice in its line; those past the training part are unknown
    for n, sentence in enumerate(parts["train"] + parts["valid"] + parts["test"]):
        number = str(n) if n < 14 else "<unk>"
        assert " ".join(sentence) == f"Line {number} doesn 't end here , it 's Nr. {number} . </s>"
    assert "valid: 4 sentences, 52 tokens, 8 of them <unk> (8 replaced)" in out


def test_shares_are_rounded(prepare, tmp_path, read_split):
    shares = "--valid-fraction", "0.13", "--test-fraction", "0.09"
    assert prepare("\n".join(LINES), *shares)[0] == 0
    assert [len(part) for part in sentences(read_split, tmp_path / "dest").values()] == [15, 3, 2]


def test_paragraphs(prepare, tmp_path, read_split):
    text = "\none two\nthree  four five \n\n \nsix seven\n\n\n\nfive\n  six\n\nseven\n"
    args = "--by", "paragraph", "--valid-fraction", "0.25", "--test-fraction", "0.25", "--min-count", "1"
    assert prepare(text, *args)[0] == 0
    assert sentences(read_split, tmp_path / "dest") == {
        "train": [["one", "two", "three", "four", "five", "</s>"], ["six", "seven", "</s>"]],
        "valid": [["five", "six", "</s>"]],
        "test": [["seven", "</s>"]],
    }
    status, _, err = prepare(text + "eight\n", *args)
    assert (status, "text.txt, line 13: 'eight' is not in" in err) == (2, True)


def test_several_files_are_one_text(call, tmp_path, write, read_split):
    write(tmp_path / "1.txt", "a a\nb b\n")
    write(tmp_path / "2.txt.gz", "c\na\n")
    args = "--dest", tmp_path / "dest", "--valid-fraction", "0.25", "--test-fraction", "0.25"
    assert call(prepare_text, tmp_path / "1.txt", tmp_path / "2.txt.gz", *args)[0] == 0
    assert sentences(read_split, tmp_path / "dest") == {
        "train": [["a", "a", "</s>"], ["b", "b", "</s>"]],
        "valid": [["<unk>", "</s>"]],
        "test": [["a", "</s>"]],
    }


def test_lower_and_vocabulary(prepare, tmp_path, read_split):
    text = "The the A a B\n" * 8 + "the\n" + "B\n"
    assert prepare(text, "--lower", "--vocab-size", "2")[0] == 0
    assert (tmp_path / "dest" / "dict.txt").read_text() == "a 16\nthe 16\n"
    assert read_split(tmp_path / "dest", "train")[0] == ["the", "the", "a", "a", "<unk>", "</s>"]
    assert prepare(text, "--lower", "--vocab-size", "2", "--min-count", "1")[0] == 0
    assert read_split(tmp_path / "dest", "test")[-1] == ["<unk>", "</s>"]  # the size is a cut-off, too
    assert prepare(text, "--min-count", "9")[0] == 0
    assert (tmp_path / "dest" / "dict.txt").read_text() == ""


def test_language(prepare, tmp_path, read_split):
    """French splits after the apostrophe, English before it."""
    text = "l'eau d'ici\n" * 10
    assert prepare(text, "--language", "fr")[0] == 0
    assert read_split(tmp_path / "dest", "test") == [["l'", "eau", "d'", "ici", "</s>"]]
    assert prepare(text)[0] == 0
    assert read_split(tmp_path / "dest", "test") == [["l", "'eau", "d", "'ici", "</s>"]]


def test_sentencepiece(prepare, tmp_path, read_split):
    """The model knows the training part only, is kept beside the data and turns the pieces back into the text."""
    size = 40
    status, out, err = prepare("\n".join([*LINES[:16], "Ω", LINES[17], *LINES[18:]]), "--sentencepiece", size)
    assert (status, err) == (0, "")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "dest" / "sentencepiece.model"))
    assert len(model) == size
    assert model.piece_to_id("Ω") == model.unk_id()
    assert f"dictionary of {size + 1} entries" in out  # fairseq has a <pad> besides
    parts = sentences(read_split, tmp_path / "dest")
    assert [model.decode_pieces(sentence[:-1]) for sentence in parts["train"]] == LINES[:16]
    assert parts["valid"][0][-2:] == ["<unk>", "</s>"]
    assert [model.decode_pieces(sentence[:-1]) for sentence in parts["test"]] == LINES[18:]
    assert "valid: 2 sentences" in out and "1 of them <unk>" in out

    assert prepare("\n".join(LINES))[0] == 0  # and goes when the folder is prepared anew without it
    assert not (tmp_path / "dest" / "sentencepiece.model").exists()


@pytest.mark.slow
def test_sentencepiece_learns_from_lines_of_any_length(prepare):
    words = ["".join(random.Random(n).choices("abcde", k=4)) for n in range(220_000)]  # more than a MiB in one line
    status, out, _ = prepare("\n".join([" ".join(words), *LINES]), "--sentencepiece", "60")
    unknown = re.search(r"train: 17 sentences, 44\d,\d+ tokens, (\d+) of them <unk>", out)
    assert status == 0 and int(unknown[1]) < 1000


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        ("", [], "text.txt: has no text"),
        ("a\nb\n", [], "there are too few sentences or texts: 2 make parts of 2, 0, 0"),
        ("a\n" * 10, ["--valid-fraction", "0.5", "--test-fraction", "0.5"], "too few sentences"),
        ("a b\n" * 10, ["--sentencepiece", "5000"], "--sentencepiece 5000: Vocabulary size too high"),
        ("a b\n" * 10, ["--sentencepiece", "2"], "--sentencepiece 2: "),
        ("a b\n" * 9 + "\n\nc", ["--min-count", "1"], "text.txt, line 12: 'c' is not in the training text"),
        ("a\n" * 9 + "c", ["--min-count", "0"], "'0' is not a whole number of at least 1"),
        ("a\n" * 10, ["--valid-fraction", "1"], "'1' is not a number between 0 and 1"),
        ("a\n" * 10, ["--language", "xx"], "'xx' is not one of as, bn"),
        ("a\n" * 10, ["--sentencepiece", "9", "--vocab-size", "9"], "it goes with neither"),
        ("a\n" * 10, ["--sentencepiece", "9", "--language", "de"], "--language has rules for words"),
    ],
)
def test_bad_input(prepare, tmp_path, text, args, words):
    status, out, err = prepare(text, *args)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("prepare_text.py: error: ")
    assert words in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_missing_file(call, tmp_path):
    status, _, err = call(prepare_text, tmp_path / "nothing.txt", "--dest", tmp_path / "dest")
    assert (status, err) == (2, f"prepare_text.py: error: {tmp_path}/nothing.txt: No such file or directory\n")


def sizes(folder, split):
    return json.loads((folder / "tokenizer.json").read_text())["splits"][split]


def test_three_texts(call, tmp_path, write, read_split):
    """Each split has files of its own; tokenizer.json says how they were cut and how much there was to cut."""
    for name, text in (("a", "It's  a cat\n"), ("b", "a cat\na dog\n"), ("c", "a cat\n\nit's\n"), ("d", "a\n")):
        write(tmp_path / name, text)
    flags = ("--train", tmp_path / "a", tmp_path / "b", "--valid", tmp_path / "c", "--test", tmp_path / "d")
    status, out, err = call(prepare_text, *flags, "--lower", "--dest", tmp_path / "dest")
    assert (status, err) == (0, "")
    assert sentences(read_split, tmp_path / "dest") == {
        "train": [["<unk>", "<unk>", "a", "cat", "</s>"], ["a", "cat", "</s>"], ["a", "<unk>", "</s>"]],
        "valid": [["a", "cat", "</s>"], ["<unk>", "<unk>", "</s>"]],
        "test": [["a", "</s>"]],
    }
    assert sizes(tmp_path / "dest", "train") == {"sentences": 3, "words": 7, "characters": 11 + 5 + 5}
    assert sizes(tmp_path / "dest", "valid") == {"sentences": 2, "words": 3, "characters": 5 + 4}
    assert "valid: 2 sentences, 6 tokens, 2 of them <unk> (2 replaced); 3 words between blanks, 9 characters" in out
    kept = Tokenization.load(tmp_path / "dest")
    assert (kept.tokenizer, kept.language, kept.lower, kept.bpe) == ("moses", "en", True, None)
    assert kept.tokenize("IT'S a\u200b cat") == ["it", "'s", "a", "cat"]


@pytest.mark.parametrize("flags", [("--language", "fr", "--lower"), ("--sentencepiece", "40")], ids=str)
def test_a_new_text_for_a_trained_model(prepare, call, tmp_path, write, read_split, flags):
    """The dictionary and the cutting are those of the first folder, and the text is the test split."""
    assert prepare("\n".join(LINES), *flags)[0] == 0
    (tmp_path / "dest").rename(tmp_path / "first")
    write(tmp_path / "new.txt", f"{LINES[3]}\nΩ l'eau\n")
    args = (tmp_path / "new.txt", "--dictionary", tmp_path / "first")
    status, out, err = call(prepare_text, *args, "--dest", tmp_path / "dest")
    assert (status, err) == (0, "")
    assert (tmp_path / "dest" / "dict.txt").read_bytes() == (tmp_path / "first" / "dict.txt").read_bytes()
    assert sorted(path.suffix for path in (tmp_path / "dest").iterdir() if path.stem == "test") == [".bin", ".idx"]
    assert not (tmp_path / "dest" / "train.bin").exists()
    known, unknown = read_split(tmp_path / "dest", "test")
    assert known == read_split(tmp_path / "first", "train")[3]
    assert "<unk>" in unknown
    kept = Tokenization.load(tmp_path / "dest")
    assert kept.tokenize(LINES[3]) == known[:-1]
    assert kept.splits == {"test": {"sentences": 2, "words": 8 + 2, "characters": len(LINES[3]) + 7}}

    split = (*args, "--valid-fraction", "0.3", "--test-fraction", "0.3", "--dest", tmp_path / "split")
    assert "too few sentences" in call(prepare_text, *split)[2]
    status, _, err = call(prepare_text, *args, "--lower", "--dest", tmp_path / "other")
    assert (status, "first/tokenizer.json says how the text is cut" in err) == (2, True)


def test_a_dictionary_and_a_sentencepiece_model_of_others(prepare, call, tmp_path, write, read_split):
    assert prepare("\n".join(LINES), "--sentencepiece", "40")[0] == 0
    (tmp_path / "dest" / "sentencepiece.model").rename(tmp_path / "m.model")
    (tmp_path / "dest" / "dict.txt").rename(tmp_path / "dict.txt")
    write(tmp_path / "new.txt", "\n".join(LINES[:12]))
    model = ("--sentencepiece", tmp_path / "m.model")
    args = (*model, "--dictionary", tmp_path / "dict.txt", "--dest", tmp_path / "dest")
    assert call(prepare_text, tmp_path / "new.txt", *args)[0] == 0
    assert (tmp_path / "dest" / "dict.txt").read_bytes() == (tmp_path / "dict.txt").read_bytes()
    assert (tmp_path / "dest" / "sentencepiece.model").read_bytes() == (tmp_path / "m.model").read_bytes()
    pieces = read_split(tmp_path / "dest", "test")
    assert prepare("\n".join(LINES[:12]), *model)[0] == 0  # the same pieces, in a dictionary of this text
    assert [line for split in ("train", "valid", "test") for line in read_split(tmp_path / "dest", split)] == pieces


def test_the_file_of_a_dictionary_stands_for_its_folder(prepare, call, tmp_path, write, read_split):
    """Which tells how its text was cut."""
    assert prepare("\n".join(LINES), "--sentencepiece", "40")[0] == 0
    write(tmp_path / "new.txt", "\n".join(LINES[:12]))
    splits = []
    for name, dictionary in (("folder", tmp_path / "dest"), ("file", tmp_path / "dest" / "dict.txt")):
        args = ("--dictionary", dictionary, "--dest", tmp_path / name)
        assert call(prepare_text, tmp_path / "new.txt", *args)[0] == 0
        splits.append(read_split(tmp_path / name, "test"))
    assert splits[0] == splits[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "give either FILE, to be split, or --train, --valid and --test"),
        (("{text}", "--train", "{text}"), "give either FILE"),
        (("--valid", "{text}"), "--train is needed to make a dictionary"),
        (("--train", "{text}", "--test-fraction", "0.2"), "go with FILE, which is split"),
        (("{text}", "--test-fraction", "0"), "'0' is not a number between 0 and 1"),
        (("{text}", "--valid-fraction", "half"), "'half' is not a number between 0 and 1"),
        (("{text}", "--dictionary", "{text}", "--vocab-size", "9"), "--dictionary sets the vocabulary"),
        (("{text}", "--dictionary", "{text}"), "text.txt: neither a data folder nor a file dict.txt"),
        (("{text}", "--dictionary", "absent/dict.txt"), "absent/dict.txt: no such file"),
        (("{text}", "--sentencepiece", "{text}"), "text.txt: not a sentencepiece model"),
        (("{text}", "--sentencepiece", "absent.model"), "'absent.model' is neither a size nor a file"),
        (("--test", "{text}", "--sentencepiece", "9", "--dictionary", "dict.txt"), "with a size needs --train"),
    ],
)
def test_flags_that_do_not_go_together(call, tmp_path, write, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.txt", "a b\n" * 20)
    write(tmp_path / "dict.txt", "a 1\n")
    status, out, err = call(prepare_text, *(arg.format(text="text.txt") for arg in args), "--dest", "dest")
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert not (tmp_path / "dest").exists()


def test_files_of_a_split_may_be_named_one_by_one(call, tmp_path, write, read_split):
    for name in "ab":
        write(tmp_path / name, f"{name} {name}\n")
    files = ("--train", tmp_path / "a", "--train", tmp_path / "b", "--valid", tmp_path / "a", "--test", tmp_path / "b")
    assert call(prepare_text, *files, "--min-count", 1, "--dest", tmp_path / "dest")[0] == 0
    assert sentences(read_split, tmp_path / "dest")["train"] == [["a", "a", "</s>"], ["b", "b", "</s>"]]


def test_a_folder_with_the_dictionary_somewhere_in_it_is_not_replaced(call, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.txt", "a b\n" * 20)
    assert call(prepare_text, "text.txt", "--dest", "both/word")[0] == 0
    status, _, err = call(prepare_text, "text.txt", "--dictionary", "both/word/dict.txt", "--dest", "both")
    assert status == 2
    assert "--dest is the folder of --dictionary" in err.splitlines()[-1]
    assert (tmp_path / "both" / "word" / "train.bin").exists()


@pytest.mark.parametrize("dictionary", ["dest", "dest/dict.txt"])
def test_the_folder_of_the_dictionary_is_not_replaced(call, tmp_path, write, monkeypatch, dictionary):
    """It has the text that the model was trained on."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.txt", "a b\n" * 20)
    assert call(prepare_text, "text.txt", "--dest", "dest")[0] == 0
    status, _, err = call(prepare_text, "text.txt", "--dictionary", dictionary, "--dest", "dest")
    assert status == 2
    assert "--dest is the folder of --dictionary" in err.splitlines()[-1]
    assert (tmp_path / "dest" / "train.bin").exists()
