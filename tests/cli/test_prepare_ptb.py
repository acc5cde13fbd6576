import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from rnndrop_plugin.cli import prepare_ptb
from tests.cli.conftest import truncate

ROOT = Path(__file__).parents[2]
PTB = ROOT.parent / "shared" / "data" / "ptb"
real_data = pytest.mark.skipif(not PTB.is_dir(), reason=f"needs the Penn Treebank in {PTB}")

TRAIN = " the cat sat <unk> \n the dog sat \n"
VALID = " the cat ran \n"
TEST = " a dog <unk> \n"
FILES = ["dict.txt", *(f"{split}.{kind}" for split in ("train", "valid", "test") for kind in ("bin", "idx"))]


@pytest.fixture
def source(tmp_path, write):
    """A folder with three small files laid out like the Penn Treebank's."""
    for split, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(tmp_path / "source" / f"{split}.txt", text)
    return tmp_path / "source"


@pytest.fixture
def prepare(call, tmp_path, source):
    """Prepares ``source`` in ``tmp_path / "dest"``."""
    return lambda *args: call(prepare_ptb, "--source", source, "--dest", tmp_path / "dest", *args)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_words(prepare, tmp_path, read_split):
    status, out, err = prepare()
    assert (status, err) == (0, "")
    assert read_split(tmp_path / "dest", "train") == [
        ["the", "cat", "sat", "<unk>", "</s>"],
        ["the", "dog", "sat", "</s>"],
    ]
    # "ran" and "a" are not in the training text, which has <unk>
    assert read_split(tmp_path / "dest", "valid") == [["the", "cat", "<unk>", "</s>"]]
    assert read_split(tmp_path / "dest", "test") == [["<unk>", "dog", "<unk>", "</s>"]]
    assert (tmp_path / "dest" / "dict.txt").read_text() == "sat 2\nthe 2\ncat 1\ndog 1\n"
    assert "valid: 1 sentences, 4 tokens, 1 of them <unk> (1 replaced)" in out
    assert "test: 1 sentences, 4 tokens, 2 of them <unk> (1 replaced)" in out
    assert "dictionary of 8 entries" in out
    assert "published" not in out


def test_characters(prepare, tmp_path, read_split, write, source):
    write(source / "train.txt", " ab <unk>  c\td \nran dog the\n")
    write(source / "valid.txt", " a cat \n")
    write(source / "test.txt", "a\n\nb\n")
    assert prepare("--level", "char")[0] == 0
    assert read_split(tmp_path / "dest", "train")[0] == [*"ab_<unk>__c_d", "</s>"]
    assert read_split(tmp_path / "dest", "valid") == [[*"a_cat", "</s>"]]
    assert read_split(tmp_path / "dest", "test") == [["a", "</s>"], ["</s>"], ["b", "</s>"]]


@pytest.mark.parametrize("level", ["word", "char"])
def test_equals_fairseq_preprocess(prepare, tmp_path, source, write, level):
    """Byte for byte what fairseq-preprocess writes, order of equally frequent symbols included."""
    from fairseq import options
    from fairseq_cli import preprocess

    write(source / "train.txt", TRAIN * 3 + "\n z y x y \n zebra é 日本 madeupword0000\n")
    write(source / "valid.txt", VALID.replace("ran", "dog"))
    write(source / "test.txt", TEST.replace("a ", "é "))
    prefixes = []
    for split in ("train", "valid", "test"):
        text = (source / f"{split}.txt").read_text()
        if level == "char":
            text = "".join(" ".join(line.strip().replace(" ", "_")) + "\n" for line in text.splitlines())
        write(tmp_path / "plain" / split, text)
        prefixes += [f"--{split}pref", str(tmp_path / "plain" / split)]
    args = ["--only-source", "--padding-factor", "1", "--destdir", str(tmp_path / "theirs"), *prefixes]
    preprocess.main(options.get_preprocessing_parser().parse_args(args))

    assert prepare("--level", level)[0] == 0
    theirs, ours = contents(tmp_path / "theirs"), contents(tmp_path / "dest")
    assert {name: theirs[name] for name in FILES} == {name: ours[name] for name in FILES}


@real_data
@pytest.mark.parametrize(
    ("level", "entries", "md5"),
    [
        (
            "word",
            10002,
            {
                "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
                "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
                "test": "8b80168b89c18661a38ef683c0dc3721",
            },
        ),
        (
            "char",
            53,
            {
                "train": "874909f99060142f6b88cc74c34baaa2",
                "valid": "9e0fe5bec2a8bf43fd686dc23d5ab8bb",
                "test": "1f9a2d1afe00f76e8bfbe09a65439681",
            },
        ),
    ],
)
def test_penn_treebank(call, tmp_path, read_split, level, entries, md5):
    """The data turns back into the published files: those with words, and Mikolov's ptb.char.*.txt."""
    status, out, err = call(prepare_ptb, "--source", PTB, "--dest", tmp_path / "dest", "--level", level)
    assert (status, err) == (0, "")
    assert out.count("as published") == 3
    assert out.count("(0 replaced)") == 3
    assert f"dictionary of {entries:,} entries" in out
    for split, expected in md5.items():
        digest = hashlib.md5()
        for symbols in read_split(tmp_path / "dest", split):
            line = " ".join(symbols[:-1])
            digest.update((f" {line} \n" if level == "word" else f"{line} \n ").encode())
        assert digest.hexdigest() == expected, split


def test_other_counts_than_published(prepare, source):
    (source / "valid.txt").rename(source / "ptb.valid.txt")
    status, out, _ = prepare()
    assert status == 0
    assert "the published file has 3,370 sentences, 73,760 tokens" in out


def test_compressed_and_untidy_files_read_alike(prepare, tmp_path, source, write):
    assert prepare()[0] == 0
    tidy = contents(tmp_path / "dest")
    (source / "train.txt").unlink()
    write(source / "train.txt.gz", TRAIN)
    write(source / "valid.txt", "\ufeff" + VALID.replace("\n", "\r\n"))  # a byte order mark, DOS line ends
    write(source / "test.txt", TEST.rstrip())  # no newline at the end
    assert prepare()[0] == 0
    assert contents(tmp_path / "dest") == tidy


def test_min_count(prepare, tmp_path, read_split, source, write):
    write(source / "train.txt", "a a b c\n")
    write(source / "valid.txt", "a b d\n")
    write(source / "test.txt", "a\n")
    status, out, _ = prepare("--min-count", "2")
    assert status == 0
    assert read_split(tmp_path / "dest", "train") == [["a", "a", "<unk>", "<unk>", "</s>"]]
    assert read_split(tmp_path / "dest", "valid") == [["a", "<unk>", "<unk>", "</s>"]]
    assert "train: 1 sentences, 5 tokens, 2 of them <unk> (2 replaced)" in out


def test_what_a_script_wrote_is_replaced(prepare, tmp_path, source, write):
    assert prepare()[0] == 0
    write(source / "train.txt", TRAIN + " ran a ran \n")
    assert prepare()[0] == 0
    assert "ran 2" in (tmp_path / "dest" / "dict.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "source"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: [path.unlink() for path in s.iterdir()] and s.rmdir(), ["source: no such folder"]),
        (lambda s: (s / "test.txt").unlink(), ["source: has no ptb.test.txt or test.txt"]),
        (lambda s: (s / "valid.txt").write_text(""), ["valid.txt: has no text"]),
        (lambda s: (s / "train.txt").write_text(" \n\n"), ["train.txt: has no text"]),
        (lambda s: (s / "test.txt").write_bytes(b"a\ncaf\xe9 the\n"), ["test.txt, line 2: not UTF-8", "0xe9"]),
        (lambda s: truncate(s / "train.txt"), ["train.txt.gz: not a complete gzip file"]),
        (lambda s: (s / "train.txt").rename(s / "train.txt.gz"), ["train.txt.gz: not a complete gzip file"]),
        (lambda s: (s / "train.txt").write_text("a\nb"), ["valid.txt, line 1: 'the' is not in the training text"]),
        (lambda s: (s / "train.txt").write_text("<unk>\n<pad>"), ["train.txt, line 2: <pad>", "fairseq's own"]),
    ],
)
def test_bad_input(prepare, tmp_path, source, spoil, words):
    """One line that says what is wrong, exit status 2, and nothing half-written."""
    spoil(source)
    status, out, err = prepare()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prepare_ptb.py: error: ")
    for text in words:
        assert text in err
    assert [path.name for path in tmp_path.iterdir() if path != source] == []


@pytest.mark.parametrize("level", ["word", "char"])
def test_unknown_symbol(prepare, source, level):
    (source / "train.txt").write_text("the cat ran\nthe dog\n")
    (source / "test.txt").write_text("the dog\n\nthe zebra zone\n")
    status, _, err = prepare("--level", level)
    assert status == 2
    assert f"test.txt, line 3: {'zebra' if level == 'word' else 'z'!r} is not in the training text" in err


def test_command_line(tmp_path):
    """As a command, from another folder."""
    command = [sys.executable, str(ROOT / "scripts" / "prepare_ptb.py"), "--source", "nowhere", "--dest", "there"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "prepare_ptb.py: error: nowhere: no such folder\n"
    assert list(tmp_path.iterdir()) == []
