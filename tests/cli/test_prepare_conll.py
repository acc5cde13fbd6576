import gzip
from collections import Counter
from pathlib import Path

import pytest

from rnndrop_plugin.cli import prepare_conll
from rnndrop_plugin.data.tokenization import Tokenization
from tests.cli.conftest import truncate

ROOT = Path(__file__).parents[2]
CONLL = ROOT.parent / "shared" / "data" / "conll2003"
real_data = pytest.mark.skipif(not CONLL.is_dir(), reason=f"needs CoNLL-2003 in {CONLL}")

TRAIN = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
lambs NN I-NP B-MISC
. . O O

-DOCSTART- -X- O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
VALID = "EU N O I-ORG\nmet V O O\nMcDonald N O I-PER\n\n\nlambs N O O\n"
TEST = "Peter N O I-PER\n\nblackburn N O I-PER\n1996 N O O"
SPLITS = {"train": "eng.train", "valid": "eng.testa", "test": "eng.testb"}


@pytest.fixture
def source(tmp_path, write):
    """A folder with three small files laid out like CoNLL-2003's."""
    for split, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(tmp_path / "source" / SPLITS[split], text)
    return tmp_path / "source"


@pytest.fixture
def prepare(call, tmp_path, source):
    """Prepares ``source`` in ``tmp_path / "dest"``."""
    return lambda *args: call(prepare_conll, "--source", source, "--dest", tmp_path / "dest", *args)


@pytest.fixture
def read(read_split, tmp_path):
    """Reads a split of a stream: its sentences, each as its symbols joined by blanks."""

    def read(stream, split):
        sentences = read_split(tmp_path / "dest" / stream, split)
        assert all(sentence.pop() == "</s>" for sentence in sentences)
        return [" ".join(sentence) for sentence in sentences]

    return read


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_streams(prepare, tmp_path, read):
    status, out, err = prepare()
    assert (status, err) == (0, "")
    assert read("word", "train") == ["EU rejects German lambs .", "Peter Blackburn"]
    assert read("tag", "train") == ["B-ORG O B-MISC B-MISC O", "B-PER I-PER"]
    assert read("capitalisation", "train") == ["upper lower title lower none", "title title"]
    # a word that the training file lacks is unknown, and keeps its capitalisation
    assert read("word", "valid") == ["EU <unk> <unk>", "lambs"]
    assert read("tag", "valid") == ["B-ORG O B-PER", "O"]
    assert read("capitalisation", "valid") == ["upper lower mixed", "lower"]
    assert read("word", "test") == ["Peter", "<unk> <unk>"]
    assert read("tag", "test") == ["B-PER", "B-PER O"]
    # the characters of each word, but those that the training file has once
    assert read("characters", "train")[:3] == ["<unk> <unk>", "r e <unk> e c t s", "<unk> e r m a n"]
    assert len(read("characters", "train")) == 7
    assert read("characters", "test")[0] == "<unk> e t e r"
    assert sorted(path.name for path in (tmp_path / "dest").iterdir()) == [
        "capitalisation",
        "characters",
        "prepared.json",
        "tag",
        "word",
    ]
    assert "train: 2 sentences, 7 words, 4 entities (2 MISC, 1 ORG, 1 PER); 0 words are <unk>; the published" in out
    assert "valid: 2 sentences, 4 words, 2 entities (1 ORG, 1 PER); 2 words are <unk>; the published" in out
    assert "published file has 14,041 sentences, 203,621 words, 23,499 entities (7,140 LOC, 3,438 MISC" in out
    assert (
        "tags of IOB1 as IOB2; dictionary entries: 11 of word, 9 of capitalisation, 11 of tag, 14 of characters" in out
    )


def test_dictionaries_have_all_tags_and_classes(prepare, tmp_path):
    """I-ORG and I-MISC occur nowhere, but a model must be able to say them."""
    assert prepare()[0] == 0
    for stream, symbols in (
        ("tag", {"O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"}),
        ("capitalisation", {"lower", "upper", "title", "mixed", "none"}),
    ):
        assert set((tmp_path / "dest" / stream / "dict.txt").read_text().split()[::2]) == symbols


def test_iobes(prepare, tmp_path, read):
    """The counts are those of the entities, whatever the scheme."""
    status, out, err = prepare("--iobes")
    assert (status, err) == (0, "")
    assert read("tag", "train") == ["S-ORG O S-MISC S-MISC O", "B-PER E-PER"]
    assert read("tag", "test") == ["S-PER", "S-PER O"]
    tags = {f"{letter}-{type}" for letter in "BIES" for type in ("MISC", "ORG", "PER")}
    assert set((tmp_path / "dest" / "tag" / "dict.txt").read_text().split()[::2]) == {"O", *tags}
    assert "train: 2 sentences, 7 words, 4 entities (2 MISC, 1 ORG, 1 PER)" in out
    assert "tags of IOB1 as IOBES" in out


def test_zero_digits(prepare, source, tmp_path, write, read):
    write(source / "eng.train", "1996-08-22 O\n\nLeeds I-ORG\n5 I-PER\n")
    write(source / "eng.testb", "2001-12-31 O\n7 I-ORG\n")
    assert prepare("--zero-digits")[0] == 0
    assert read("word", "train") == ["0000-00-00", "Leeds 0"] and read("word", "test") == ["0000-00-00 0"]
    assert read("characters", "train")[0] == "0 0 0 0 - 0 0 - 0 0"
    assert Tokenization.load(tmp_path / "dest") == Tokenization("moses", zero_digits=True)
    assert prepare()[0] == 0 and Tokenization.load(tmp_path / "dest") is None


def test_iobes_with_tags_as_they_are(prepare, tmp_path):
    status, out, err = prepare("--iobes", "--plain-tags")
    assert (status, out) == (2, "") and "not allowed with argument" in err
    assert not (tmp_path / "dest").exists()


@real_data
def test_published_counts(call, tmp_path, read_split):
    status, out, err = call(prepare_conll, "--source", CONLL, "--dest", tmp_path / "dest")
    assert (status, err) == (0, "")
    assert out.count("as published") == 3
    assert "tags of IOB1 as IOB2" in out
    sentences = {stream: read_split(tmp_path / "dest" / stream, "train") for stream in ("word", "tag")}
    for stream, digest in sentences.items():
        assert sum(len(sentence) - 1 for sentence in digest) == 203621, stream
    # the file itself, read in another way
    with gzip.open(CONLL / "eng.train.gz", "rt", encoding="utf-8") as file:
        rows = [line.split() for line in file if line.strip() and not line.startswith("-DOCSTART-")]
    assert [row[0] for row in rows] == [word for sentence in sentences["word"] for word in sentence[:-1]]
    types = Counter(row[3].partition("-")[2] for row in rows)
    assert types == Counter(tag.partition("-")[2] for sentence in sentences["tag"] for tag in sentence[:-1])


# Vectors


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("EU 1 2\nmcdonald 3 4\nblackburn 5 6.5\nunused 7 8\n")
    return path


def test_vectors(prepare, tmp_path, read, vectors):
    """Words with a vector are in the dictionary though the training file lacks them, and however rare they are."""
    status, out, err = prepare("--vectors", vectors, "--min-count", "2")
    assert (status, err) == (0, "")
    assert read("word", "train") == ["EU <unk> <unk> <unk> <unk>", "<unk> Blackburn"]
    assert read("word", "valid") == ["EU <unk> McDonald", "<unk>"]
    assert read("word", "test") == ["<unk>", "blackburn <unk>"]
    lines = (tmp_path / "dest" / "vectors.txt").read_text().splitlines()
    assert sorted(lines) == ["Blackburn 5.0 6.5", "EU 1.0 2.0", "McDonald 3.0 4.0", "blackburn 5.0 6.5"]
    assert "vectors for 4 of 11 types (36.4%: " in out and " and 5 of 14 tokens (35.7%: " in out
    assert "train: 2 sentences, 7 words, 4 entities (2 MISC, 1 ORG, 1 PER); 5 words are <unk>" in out
    assert prepare()[0] == 0
    assert not (tmp_path / "dest" / "vectors.txt").exists()


def test_min_count(prepare, read, source):
    (source / "eng.train").write_text("a B-X\na O\nb O\n")
    (source / "eng.testa").write_text("a O\nb O\nc O\n")
    (source / "eng.testb").write_text("a O")
    assert prepare()[0] == 0
    assert (read("word", "train"), read("word", "valid")) == (["a a b"], ["a b <unk>"])
    assert prepare("--min-count", "2")[0] == 0
    assert (read("word", "train"), read("word", "valid")) == (["a a <unk>"], ["a <unk> <unk>"])


# Layouts


def test_other_layouts_read_alike(prepare, tmp_path, source, write):
    assert prepare()[0] == 0
    tidy = contents(tmp_path / "dest")
    untidy = source / "untidy"
    write(untidy / "train.gz", "\ufeff" + TRAIN.replace("\n", "\r\n"))
    write(untidy / "dev", "\n \n" + VALID.replace(" ", "\t \t").replace("\n\n", "\n\t\n"))
    write(untidy / "test", "-DOCSTART-\n" + TEST.replace("\n\n", "\n-DOCSTART- O\n") + "\n\n\n")
    assert prepare("--train", "untidy/train", "--valid", "untidy/dev", "--test", "untidy/test")[0] == 0
    assert contents(tmp_path / "dest") == tidy

    def reorder(text, row):
        lines = (line.split() for line in text.splitlines())
        return "\n".join(row.format(*line) if line else "" for line in lines if line[:1] != ["-DOCSTART-"])

    for name, text in zip(SPLITS.values(), (TRAIN, VALID, TEST), strict=True):
        write(source / name, reorder(text, "{1};{3} ;{2};{0}"))
    assert prepare("--separator", ";", "--word-column", "3", "--tag-column", "-3")[0] == 0
    assert contents(tmp_path / "dest") == tidy
    for name, text in zip(SPLITS.values(), (TRAIN, VALID, TEST), strict=True):
        write(source / name, reorder(text, "{0}\tan empty column:\t\t{3}"))
    assert prepare("--separator", "\\t")[0] == 0
    assert contents(tmp_path / "dest") == tidy


def test_encoding(prepare, source, read):
    """CoNLL-2002 has two columns and Latin-1."""
    for name in SPLITS.values():
        (source / name).write_bytes("Señor O\nÁlvarez B-PER\n".encode("latin-1"))
    assert prepare("--encoding", "latin-1")[0] == 0
    assert read("word", "train") == ["Señor Álvarez"]
    assert read("capitalisation", "test") == ["title title"]


def test_words_of_odd_characters(prepare, source, read):
    """What other readers take for blanks and ends of lines is part of a word."""
    words = ["\u00a0", "a\u00a0b", "\u2028", "\x85", "\x0b", "\u3000x", "#fairseq:overwrite", "\ufeff", "<unk>"]
    for name in SPLITS.values():
        lines = "x B-X\n" + "".join(f"{word} O\n" for word in [*words, "<pad>", "</s>"])
        (source / name).write_text(lines, encoding="utf-8")
    assert prepare()[0] == 0
    # fairseq's own symbols would be padding or the end of a sentence to a model
    assert read("word", "train") == read("word", "test") == [" ".join(["x", *words, "<unk>", "<unk>"])]


# Bad input


IOBES = "a B-X\nb I-X\nc E-X\nd S-X\ne O\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("eng.testb", None, "source: has no eng.testb, with or without .gz"),
        ("eng.train", "", "eng.train: has no text"),
        ("eng.train", "-DOCSTART- -X- O O\n\n", "eng.train: has no sentence"),
        ("eng.train", "a O\n\nb O\n", "eng.train: has no entity, all tags are O"),
        ("eng.testb", b"a O\n\xc3 O\n", "eng.testb, line 2: not utf-8 (byte 0xc3)"),
        ("eng.testa", "a x O\n\nb O\n", "eng.testa, line 3: has 2 columns, the file's first line has 3"),
        ("eng.testa", "\n\na\n", "eng.testa, line 3: has 1 columns, and word and tag would be the same"),
        ("eng.train", "a O\nb L-PER\n", "eng.train, line 2: 'L-PER' is not a tag, which is O or B-, I-, E- or S-"),
        ("eng.train", "a O\nb B-\n", "eng.train, line 2: 'B-' is not a tag"),
        ("eng.train", "a O\nb PER\n", "eng.train, line 2: 'PER' is not a tag"),
        ("eng.train", "a O\nb o\n", "eng.train, line 2: 'o' is not a tag"),
        ("eng.testa", "a O\n\nb I-MISC\nc I-LOC\n", "eng.testa, line 4: entities of the type LOC are not in"),
        ("eng.testb", "a O\nb S-PER\n", "eng.testb, line 2: S-PER is not in IOB1, the scheme of the training file"),
        ("eng.train", IOBES + "\na O\nb I-X\n", "eng.train, line 8: I-X after O is not in IOBES"),
        ("eng.train", IOBES + "\na O\nb B-X\n", "eng.train, line 8: the sentence's end after B-X is not in IOBES"),
        ("eng.train", IOBES + "\na B-X\nb E-Y\n", "eng.train, line 8: E-Y after B-X is not in IOBES"),
        ("eng.train", IOBES + "\na B-X\nb O\n", "eng.train, line 8: O after B-X is not in IOBES"),
        ("eng.train", IOBES, "eng.testa, line 1: I-ORG after O is not in IOBES, the scheme of the training file"),
    ],
)
def test_bad_input(prepare, tmp_path, source, name, text, words):
    """One line that says what is wrong, exit status 2, and nothing half-written."""
    if text is None:
        (source / name).unlink()
    else:
        (source / name).write_bytes(text.encode() if isinstance(text, str) else text)
    status, out, err = prepare()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prepare_conll.py: error: ")
    assert words in err
    assert [path for path in tmp_path.iterdir() if path != source] == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--word-column", "4"], "eng.train, line 3: has 4 columns, and --word-column asks for column 4"),
        (["--tag-column", "-5"], "eng.train, line 3: has 4 columns, and --tag-column asks for column -5"),
        (["--tag-column", "-4"], "eng.train, line 3: has 4 columns, and word and tag would be the same"),
        (["--tag-column", "1"], "eng.train, line 3: 'NNP' is not a tag"),
        (["--separator", "\\t"], "eng.train, line 3: has 1 columns"),
        (["--separator", " I-NP I-", "--tag-column", "0"], "eng.train, line 3: has 2 columns, and word and tag"),
        (["--separator", "I-NP I-"], "eng.train, line 3: 'EU NNP' is not a word"),
        (["--separator", ""], "an empty text separates nothing"),
        (["--encoding", "klingon"], "'klingon' is not an encoding that Python knows"),
        (["--encoding", "base64"], "'base64' is not an encoding that Python knows"),
        (["--min-count", "0"], "'0' is not a whole number of at least 1"),
        (["--train", "none"], "source: has no none, with or without .gz"),
        (["--vectors", "none.txt"], "none.txt: No such file or directory"),
        (["--vectors", "EU.txt"], "EU.txt, line 2: 1 numbers after 'lambs', expected 2"),
    ],
)
def test_bad_flags(prepare, tmp_path, source, monkeypatch, args, words):
    monkeypatch.chdir(source)
    (source / "EU.txt").write_text("EU 1 2\nlambs 3\n")
    status, out, err = prepare(*args)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("prepare_conll.py: error: ")
    assert words in err.splitlines()[-1]
    assert [path for path in tmp_path.iterdir() if path != source] == []


def test_truncated_gzip(prepare, source):
    truncate(source / "eng.train")
    status, _, err = prepare()
    assert (status, err.count("\n")) == (2, 1)
    assert "eng.train.gz: not a complete gzip file" in err


POS = "# sent_id = 1\n1-2\tdu\t_\t_\n1\tde\tde\tADP\n2\tle\tle\tDET\n\n# sent_id = 2\n1\tchat\tchat\tNOUN\n"


def test_plain_tags(call, tmp_path, write, read_split):
    """Parts of speech of CoNLL-U are taken as they are; one that the training file lacks is in the dictionary."""
    for name, text in (("train", POS), ("valid", POS.replace("ADP", "X")), ("test", POS)):
        write(tmp_path / f"{name}.conllu", text)
    names = [argument for name in ("train", "valid", "test") for argument in (f"--{name}", f"{name}.conllu")]
    columns = ("--separator", r"\t", "--word-column", "1", "--tag-column", "3")
    args = ("--source", tmp_path, *names, *columns, "--dest", tmp_path / "dest")
    status, out, err = call(prepare_conll, *args, "--plain-tags")
    assert (status, err) == (0, "")
    assert read_split(tmp_path / "dest" / "word", "train") == [["de", "le", "</s>"], ["chat", "</s>"]]
    assert read_split(tmp_path / "dest" / "tag", "valid") == [["X", "DET", "</s>"], ["NOUN", "</s>"]]
    assert set((tmp_path / "dest" / "tag" / "dict.txt").read_text().split()[::2]) == {"ADP", "DET", "NOUN", "X"}
    assert "train: 2 sentences, 3 words, 3 tags; 0 words are <unk>" in out
    assert "dest: tags as they are; dictionary entries" in out

    status, _, err = call(prepare_conll, *args)
    assert (status, "line 3: 'ADP' is not a tag" in err) == (2, True)
    for tag, message in (("<pad>", "line 3: <pad> is a symbol of fairseq's own"), ("", "line 3: has no tag")):
        write(tmp_path / "train.conllu", POS.replace("ADP", tag))
        status, _, err = call(prepare_conll, *args, "--plain-tags")
        assert (status, message in err) == (2, True), err
    for name in ("train", "valid", "test"):
        write(tmp_path / f"{name}.conllu", "1\ta\ta\tX\n")
    assert "all tags are X; two or more are needed" in call(prepare_conll, *args, "--plain-tags")[2]
