import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st

from rnndrop_plugin.cli import labelled, prepare_semeval, vocabulary
from rnndrop_plugin.data.text import read_lines
from rnndrop_plugin.data.tweets import clean, tokenize
from tests.cli.conftest import truncate

ROOT = Path(__file__).parents[2]
SEMEVAL = ROOT.parent / "shared" / "data" / "semeval"
SENTIMENT140 = ROOT.parent / "shared" / "data" / "sentiment140"
real_data = pytest.mark.skipif(not SEMEVAL.is_dir(), reason=f"needs SemEval's messages in {SEMEVAL}")
weak_data = pytest.mark.skipif(not SENTIMENT140.is_dir(), reason=f"needs weakly labelled tweets in {SENTIMENT140}")

TRAIN = "twitter-2013train-A.txt"
VALID = "twitter-2013dev-A.txt"
TEST_2014 = "semeval2014-task9-test-B-gold.txt"
TEST_2015 = "twitter-2015test-A.txt"
LINES = {
    TRAIN: [
        "1\tpositive\tGood day today",
        "2\tnegative\ta BAD day",
        '3\tneutral\t"the ""day"" it is, McFly"',
        "4\tpositive\tday a day",
    ],
    VALID: ["11\tneutral\ttoday is the day :)", "12\tpositive\tgood zebra"],
    TEST_2014: [
        "21\tT131\tpositive\tday one",
        "22\tSM1\tnegative\tday two",
        "23\tLJ1\tneutral\tday three",
        "24\tT141\tpositive\tday four",
        "25\tTS1\tnegative\tday five",
        "26\tT132\tnegative\tday six",
    ],
    TEST_2015: ["31\tneutral\tday seven"],
}
WEAK = {"positive.txt": ["@you nice day :-)", "day <3"], "negative.txt": ["ugly day :("]}
SPLITS = ["train", "valid", "twitter13", "sms13", "livejournal14", "twitter14", "sarcasm14", "twitter15"]


@pytest.fixture
def source(tmp_path, write):
    """A folder laid out like SemEval's, and one with weakly labelled tweets beside it."""
    for folder, files in (("source", LINES), ("weak", WEAK)):
        for name, lines in files.items():
            write(tmp_path / folder / name, "\n".join(lines) + "\n")
    return tmp_path / "source"


@pytest.fixture
def prepare(call, tmp_path, source):
    """Prepares ``source`` in ``tmp_path / "dest"``."""
    return lambda *args: call(prepare_semeval, "--source", source, "--dest", tmp_path / "dest", *args)


@pytest.fixture
def add(source):
    """Adds lines to a file of ``source`` or of the folder beside it."""

    def add(name, *lines):
        folder = source.parent / "weak" if name in WEAK else source
        with open(folder / name, "a") as file:
            file.writelines(f"{line}\n" for line in lines)

    return add


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"one, ""two"" three"', 'one, "two" three'),
        ('"""two"" three"', '"two" three'),
        ('one \\""two\\"" three', 'one "two" three'),  # without the outer pair
        ('one ""two"" three', 'one "two" three'),
        ('"one \\""two\\"" three"', 'one "two" three'),
        ('"one \\""""two\\"""""', 'one "two"'),  # twice
        ('"Mr. Y: """"two"""" three"', 'Mr. Y: "two" three'),
        ('"""""two"""" three"', '"two" three'),
        ('c\\""\\u002c)', 'c"\\u002c)'),
        ('one" two', 'one" two'),
        ("it's \\m/", "it's \\m/"),
        ('"', '"'),
        ('""', ""),
    ],
)
def test_quotation_marks(text, expected):
    assert prepare_semeval.unquote(text) == expected


def test_streams(prepare, tmp_path, read_split):
    """Three streams with the same splits; words are <unk> that training has less often than --min-count."""
    status, out, err = prepare("--min-count", "2")
    assert (status, err) == (0, "")
    dest = tmp_path / "dest"
    assert sorted(path.name for path in dest.iterdir()) == [
        "capitalisation",
        "label",
        "prepared.json",
        "tokenizer.json",
        "word",
    ]
    train = [" ".join(words) for words in read_split(dest / "word", "train")]
    assert train == [
        "<unk> day <unk> </s>",
        "a <unk> day </s>",
        '<unk> " day " <unk> <unk> <unk> <unk> </s>',
        "day a day </s>",
    ]
    assert [" ".join(words) for words in read_split(dest / "capitalisation", "train")] == [
        "title lower lower </s>",
        "lower upper lower </s>",
        "lower none lower none lower lower none mixed </s>",
        "lower lower lower </s>",
    ]
    assert read_split(dest / "word", "valid") == [
        ["<unk>", "<unk>", "<unk>", "day", "<unk>", "</s>"],
        ["<unk>", "<unk>", "</s>"],
    ]
    labels = {split: [label for label, _ in read_split(dest / "label", split)] for split in SPLITS}
    assert labels == {
        "train": ["positive", "negative", "neutral", "positive"],
        "valid": ["neutral", "positive"],
        "twitter13": ["positive", "negative"],
        "sms13": ["negative"],
        "livejournal14": ["neutral"],
        "twitter14": ["positive"],
        "sarcasm14": ["negative"],
        "twitter15": ["neutral"],
    }
    for split in SPLITS:
        lengths = [[len(item) for item in read_split(dest / stream, split)] for stream in ("word", "capitalisation")]
        assert lengths[0] == lengths[1]
    assert (dest / "label" / "dict.txt").read_text() == "negative 0\nneutral 0\npositive 0\n"
    assert (dest / "word" / "dict.txt").read_text() == 'day 5\n" 2\na 2\n'
    assert "valid: 2 messages (1 positive, 0 negative, 1 neutral), 7 words, 6 of them <unk>; published: 1,654 (" in out
    assert "dictionary of 7 entries" in out


def test_one_message_a_line_whatever_quotation_marks_it_has(prepare, add, tmp_path, read_split):
    add(TEST_2015, '32\tpositive\t"day', '33\tneutral\tday"')
    assert prepare()[0] == 0
    assert len(read_split(tmp_path / "dest" / "word", "twitter15")) == 3


def test_what_is_not_trained_on(prepare, add, tmp_path, read_split):
    add(
        TRAIN,
        "5\tpositive\tday repeated",
        "6\tpositive\tday doubted",
        "11\tneutral\tday of validation by its id",
        "7\tnegative\t@another  day seven",
        "5\tpositive\tday repeated",
        "6\tneutral\tday doubted",
        "26\tnegative\tday of a test by its id",
        "8\tneutral\tday eight",
    )
    add(VALID, "12\tpositive\tgood zebra")  # these may repeat and overlap
    add(TEST_2015, "12\tpositive\tgood zebra", "32\tneutral\t@someone day seven")
    status, out, _ = prepare("--min-count", "1")
    assert status == 0
    train = [" ".join(words[:-1]) for words in read_split(tmp_path / "dest" / "word", "train")]
    assert train[4:] == ["day repeated", "day eight"]
    assert "12 messages (5 positive, 3 negative, 4 neutral)" in out
    for reason in ("1 repeated", "2 with two labels", "2 in a validation or test set by id", "set by text"):
        assert reason in out
    assert "train: 6 messages" in out
    assert "valid: 3 messages" in out
    assert "twitter15: 3 messages" in out


def test_weak(prepare, add, source, tmp_path, read_split):
    """The second folder has the tweets, the same validation set, and the first one's dictionaries."""
    add("positive.txt", "day seven :)", "@him nice day", "both", "", ":) :D", "caf\u00c3\u00a9 &lt;3")
    add("negative.txt", "both :-(", "good zebra", "1")
    status, out, err = prepare("--weak", source.parent / "weak", "--min-count", "1")
    assert (status, err) == (0, "")
    dest = tmp_path / "dest"
    assert sorted(path.name for path in dest.iterdir()) == [
        "capitalisation",
        "label",
        "prepared.json",
        "tokenizer.json",
        "weak",
        "word",
    ]
    tweets = [" ".join(words[:-1]) for words in read_split(dest / "weak" / "word", "train")]
    assert tweets == ["<user> nice day", "day <3", "caf\u00e9 <3", "ugly day", "1"]
    assert [label for label, _ in read_split(dest / "weak" / "label", "train")] == ["positive"] * 3 + ["negative"] * 2
    assert "weak: 12 messages (8 positive, 4 negative, 0 neutral)" in out
    for reason in ("2 without words", "1 repeated", "2 with two labels", "2 in a validation or test set by text"):
        assert reason in out
    for stream in ("word", "capitalisation", "label"):
        for file in ("dict.txt", "valid.bin", "valid.idx"):
            assert (dest / stream / file).read_bytes() == (dest / "weak" / stream / file).read_bytes()
        assert not (dest / "weak" / stream / "twitter13.bin").exists()
    assert "caf\u00e9 1" in (dest / "word" / "dict.txt").read_text()  # counted in both trainings' texts
    assert "day 8" in (dest / "word" / "dict.txt").read_text()


def test_vectors(prepare, source, tmp_path, read_split, write):
    """Words with a vector are known, those of valid and test too; others by their number in training."""
    write(tmp_path / "glove.txt", "zebra 1 2\ngood 0.5 1\nbad 3 4\nthe 5 6\nnowhere 7 8\n</s> 9 10\n")
    write(source / TEST_2015, "31\tneutral\tday </s> <unk> the nine\n")
    status, out, err = prepare("--vectors", tmp_path / "glove.txt", "--min-count", "5")
    assert (status, err) == (0, "")
    dest = tmp_path / "dest"
    assert (dest / "word" / "dict.txt").read_text() == "day 5\nBAD 1\nGood 1\nthe 1\ngood 0\nzebra 0\n"
    lines = dict(line.split(" ", 1) for line in (dest / "vectors.txt").read_text().splitlines())
    numbers = {word: [float(number) for number in line.split()] for word, line in lines.items()}
    assert numbers == {"BAD": [3, 4], "Good": [0.5, 1], "the": [5, 6], "good": [0.5, 1], "zebra": [1, 2]}
    assert read_split(dest / "word", "valid")[1] == ["good", "zebra", "</s>"]
    assert read_split(dest / "word", "twitter15") == [["day", "<unk>", "<unk>", "the", "<unk>", "</s>"]]
    assert "vectors for " in out


def test_compressed_and_untidy_files_read_alike(prepare, tmp_path, source, write):
    assert prepare("--weak", source.parent / "weak")[0] == 0
    tidy = contents(tmp_path / "dest")
    for folder, files in (("source", LINES), ("weak", WEAK)):
        for name, lines in files.items():
            (tmp_path / folder / name).unlink()
            write(tmp_path / folder / f"{name}.gz", "\ufeff" + "\r\n".join(lines))
    assert prepare("--weak", source.parent / "weak")[0] == 0
    assert contents(tmp_path / "dest") == tidy


def test_deterministic(prepare, tmp_path, source):
    """Whatever order Python gives its sets, which another process with its own seed has differently."""
    args = "--weak", str(source.parent / "weak"), "--min-count", "1"
    assert prepare(*args)[0] == 0
    command = [sys.executable, str(ROOT / "scripts" / "prepare_semeval.py"), *args, "--source", str(source)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    result = subprocess.run(
        [*command, "--dest", "other"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert contents(tmp_path / "other") == contents(tmp_path / "dest")


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (TRAIN, lambda path: path.unlink(), ["source: has no twitter-2013train-A.txt, with or without .gz"]),
        (TEST_2014, lambda path: path.unlink(), ["source: has no semeval2014-task9-test-B-gold.txt"]),
        ("negative.txt", lambda path: path.unlink(), ["weak: has no negative.txt"]),
        (VALID, lambda path: path.write_text(""), ["twitter-2013dev-A.txt: has no text"]),
        ("positive.txt", lambda path: path.write_text("\n"), ["positive.txt: has no text"]),
        (TEST_2015, truncate, ["twitter-2015test-A.txt.gz: not a complete gzip file"]),
        ("negative.txt", truncate, ["negative.txt.gz: not a complete gzip file"]),
        (TRAIN, b"5\tpositive\tcaf\xe9", ["A.txt, line 5: not UTF-8 (byte 0xe9)"]),
        ("positive.txt", b"caf\xe9", ["positive.txt, line 3: not UTF-8 (byte 0xe9)"]),
        (TRAIN, b"5\tpositive", ["line 5: 2 columns separated by tabs, expected 3 (id, label, text)"]),
        (VALID, b"13\tpositive\tone\ttwo", ["line 3: 4 columns separated by tabs, expected 3"]),
        (VALID, b"", ["line 3: 1 columns separated by tabs, expected 3"]),
        (
            TEST_2014,
            b"27\tpositive\tone",
            ["line 7: 3 columns separated by tabs, expected 4 (id, test id, label, text)"],
        ),
        (TRAIN, b"5\tobjective\tone", ["line 5: label 'objective', expected one of positive, negative, neutral"]),
        (TEST_2014, b"27\tT133\t\tone", ["line 7: label '', expected one of"]),
        (
            TEST_2014,
            b"27\tX1\tpositive\tone",
            ["line 7: test id 'X1', expected one that begins with T13, SM, LJ, T14, TS"],
        ),
        (TEST_2014, lambda path: path.write_text("1\tT131\tpositive\tone"), ["has no message of sms13", "with SM"]),
        (TRAIN, b"5\tpositive\tNot Available", ["line 5: the text is 'Not Available'"]),
        (TRAIN, b'5\tpositive\t"Not Available"', ["line 5: the text is 'Not Available'"]),
        (TRAIN, b"5\tpositive\t ", ["line 5: the text is empty"]),
        (TEST_2015, b'32\tpositive\t""', ["line 2: the text is empty"]),
        (TEST_2015, b"32\tpositive\t" + b"a" * 10001, ["line 2: a text of 10,001 characters"]),
        ("negative.txt", b"a" * 10001, ["negative.txt, line 2: a text of 10,001 characters"]),
        (
            TRAIN,
            lambda path: path.write_text("11\tneutral\ta"),
            ["nothing to train on", "1 in a validation or test set by id"],
        ),
        ("positive.txt", lambda path: path.write_text("ugly day"), ["nothing to train on, 2 with two labels"]),
    ],
)
def test_bad_input(prepare, tmp_path, source, name, spoil, words):
    """One line that says what is wrong and where, exit status 2, and nothing half-written."""
    path = (source.parent / "weak" if name in WEAK else source) / name
    if isinstance(spoil, bytes):
        path.write_bytes(path.read_bytes() + spoil + b"\n")
    else:
        spoil(path)
    status, out, err = prepare("--weak", source.parent / "weak")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prepare_semeval.py: error: ")
    for text in words:
        assert text in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "weak"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--source", "nowhere"], "nowhere: no such folder"),
        (["--weak", "nowhere"], "nowhere: no such folder"),
        (["--vectors", "nowhere"], "nowhere"),
        (["--min-count", "0"], "--min-count: '0' is not a whole number of at least 1"),
        (["--weak"], "expected one argument"),
    ],
)
def test_wrong_flags(prepare, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = prepare(*args)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert not (tmp_path / "dest").exists()


PIECES = [
    "a",
    "Day",
    " ",
    '"',
    '""',
    "\\",
    "\\u",
    "\\ud83d",
    "\\ude00",
    "&",
    "amp;",
    "&#xd83d;",
    "#xd83d;",
    "#",
    "@",
    ":)",
]
PIECES += [
    "<s>",
    "</s>",
    "<unk>",
    "http://",
    "'s",
    ".",
    "\u00c3",
    "\u00bc",
    "\ufffd",
    "\u2019",
    "\u200d",
    "\u2028",
    "\x01",
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\0")).map(
    "".join
)


rows = st.lists(st.sampled_from([b"1", b"\t", b"positive", b"T131", b"\n", b"\r", b'"']) | st.binary(max_size=4)).map(
    b"".join
)


def test_any_text(fuzz, tmp_path, read_split):
    """Any text that has words makes data that fairseq reads back, and as many words in all streams."""
    path = tmp_path / "text"

    def check(texts):
        words = {word for text in texts for word in tokenize(text)}
        assert not any(re.search(r"\s|[\ud800-\udfff]", word) or not word for word in words)
        path.write_text("".join(f"1\tpositive\tx {text}\n" for text in texts), encoding="utf-8", newline="")
        messages = prepare_semeval.read_labelled(path)
        known = vocabulary.choose_words(messages, [], {}, 1)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            labelled.write_streams(Path(folder), {"train": messages}, known, messages, prepare_semeval.LABELS)
            for stream in ("word", "capitalisation"):
                lengths = [len(sentence) for sentence in read_split(Path(folder, stream), "train")]
                assert lengths == [len(message.words) + 1 for message in messages]

    # To write and to read a folder takes far longer than a text does: some 20 share one.
    fuzz(check, batch=20, texts=st.lists(texts, min_size=10))


def test_any_bytes(fuzz, tmp_path):
    """Any file is read, or refused by an error that says why."""

    def check(data):
        for name in ("text", "text.gz"):
            path = tmp_path / name
            path.write_bytes(data)
            for read in (
                prepare_semeval.read_labelled,
                prepare_semeval.read_2014,
                lambda path: prepare_semeval.read_weak(path, "positive"),
            ):
                try:
                    read(path)
                except (OSError, ValueError) as error:
                    assert str(path) in str(error)

    fuzz(check, batch=3, data=st.binary() | rows)  # which each of the three readers gets


@real_data
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        # texts in quotation marks, with doubled ones, with escapes, with UTF-8 encoded twice; afterwards there are
        # texts that are one quotation from end to end, and those whose authors wrote two marks
        (TRAIN, [1281, 613, 4393, 0], [20, 1, 0, 0]),
        (VALID, [126, 126, 974, 0], [2, 1, 0, 0]),
        (TEST_2014, [0, 354, 3139, 61], [8, 0, 0, 0]),
        (TEST_2015, [831, 127, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_every_trap_is_repaired(name, before, after):
    traps = r'^".*"$', r'""', r"\\u[0-9a-f]{4}", "\u00c3[\x80-\xbf]"

    def count(texts):
        return [sum(bool(re.search(trap, text)) for text in texts) for trap in traps]

    texts = [line.rpartition("\t")[2] for line in read_lines(SEMEVAL / f"{name}.gz")]
    assert count(texts) == before
    cleaned = [clean(prepare_semeval.unquote(text)) for text in texts]
    assert count(cleaned) == after
    assert not any('\\"' in text or re.search(r"&(amp|lt|gt|quot|#\d+);", text) for text in cleaned)


@real_data
def test_semeval(call, tmp_path, read_split):
    """The published counts, and no message to train on that an evaluation set has."""
    status, out, err = call(prepare_semeval, "--source", SEMEVAL, "--dest", tmp_path / "dest", "--min-count", "1")
    assert (status, err) == (0, "")
    assert out.count("as published") == 8
    assert "left out: 21 in a validation or test set by id, 12 with two labels, 28 repeated" in out
    sizes = {"train": 9623, "valid": 1654, "twitter13": 3813, "sms13": 2093, "livejournal14": 1142}
    sizes |= {"twitter14": 1853, "sarcasm14": 86, "twitter15": 2390}
    texts = {split: [tuple(words) for words in read_split(tmp_path / "dest" / "word", split)] for split in SPLITS}
    assert {split: len(messages) for split, messages in texts.items()} == sizes
    assert Counter(label for label, _ in read_split(tmp_path / "dest" / "label", "twitter15")) == {
        "positive": 1038,
        "negative": 365,
        "neutral": 987,
    }
    train = set(texts.pop("train"))
    assert all(train.isdisjoint(messages) for messages in texts.values())


@pytest.mark.slow
@real_data
@weak_data
def test_weak_tweets(call, tmp_path, read_split):
    args = "--source", SEMEVAL, "--weak", SENTIMENT140, "--dest", tmp_path / "dest"
    status, out, err = call(prepare_semeval, *args, "--min-count", "1")
    assert (status, err) == (0, "")
    assert "100,000 messages (50,000 positive, 50,000 negative, 0 neutral)" in out
    tweets = [tuple(words) for words in read_split(tmp_path / "dest" / "weak" / "word", "train")]
    assert 98_000 < len(tweets) == len(set(tweets)) < 99_000
    for split in SPLITS[1:]:
        assert set(tweets).isdisjoint(map(tuple, read_split(tmp_path / "dest" / "word", split)))
    words = Counter(word for tweet in tweets for word in tweet)
    assert not words.keys() & {":)", ":(", ":-)", ":-(", ":D", "=)", ";)", "\ufffd", "&amp;"}
    assert words["<3"] > 500
