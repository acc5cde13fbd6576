"""Files of any bytes end in data or in one line, never in another error."""

import gzip
import json
import re
import shutil
import struct

import pytest
from hypothesis import strategies as st

from rnndrop_plugin.cli import classify, plot, prepare_conll, prepare_ptb, prepare_text, tag
from rnndrop_plugin.cli.splits import SPLITS
from rnndrop_plugin.data.spans import SpanTags
from rnndrop_plugin.data.text import read_lines
from rnndrop_plugin.data.vectors import read_vectors
from rnndrop_plugin.tasks import prediction


@pytest.fixture
def attempt(call, tmp_path):
    """Runs a script, which must end well or with one line and no new file: its output, or None for the line."""

    def attempt(script, *args) -> str | None:
        before = sorted(tmp_path.rglob("*"))
        status, out, err = call(script, *args)
        if status == 0:
            assert err == ""
            return out
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert re.match(r"\w+\.py: error: \S", err)
        assert sorted(tmp_path.rglob("*")) == before
        return None

    return attempt


@st.composite
def damaged(draw, files, pieces):
    """One of ``files`` with up to three of its parts replaced by others, or a few of its bytes by any, or cut short."""
    parts = re.findall(rb"\s|\S+", draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 3))):
        parts[draw(st.integers(0, len(parts) - 1))] = draw(st.sampled_from([b"", *pieces, *parts]))
    content = b"".join(parts)
    start = draw(st.integers(0, len(content)))
    rest = draw(st.sampled_from([content[start:], content[start:], b"", None]))
    return content[:start] + (draw(st.binary(max_size=4)) + content[start + 2 :] if rest is None else rest)


# Tagged sentences

IOB1 = "-DOCSTART- -X- O\n\nEU N I-ORG\nmét V O\n\nPeter N I-PER\nB. N I-PER\n".encode()
IOBES = b"EU\tS-ORG\nmet\tO\r\n\r\nPeter\tB-PER\nB.\tE-PER"
PIECES = [b" ", b"\t", b"\n", b"\n\n", b"\r", b"O", b"B-PER", b"I-ORG", b"E-PER", b"S-X", b"-", b"<pad>", b"<unk>"]
PIECES += [b"-DOCSTART-", b"\xff", b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\xa8", b"\x0b", b"\0", b"\xef\xbb\xbf"]
columns = damaged([IOB1, IOBES], PIECES) | st.binary()
encodings = st.sampled_from(["utf-8", "latin-1", "utf-8", "latin-1", "utf-16"])


def test_conll(fuzz, attempt, tmp_path, read_split):
    def check(training, other, encoding):
        for name, content in (("eng.train", training), ("eng.testa", other), ("eng.testb", other)):
            (tmp_path / name).write_bytes(content)
        dest = tmp_path / "dest"
        shutil.rmtree(dest, ignore_errors=True)
        if attempt(prepare_conll, "--source", tmp_path, "--dest", dest, "--encoding", encoding) is None:
            return
        for split in SPLITS:
            streams = [read_split(dest / stream, split) for stream in ("word", "capitalisation", "tag")]
            lengths = [[len(sentence) for sentence in sentences] for sentences in streams]
            assert lengths[0] == lengths[1] == lengths[2] != []
            assert not any(symbol == "<unk>" for sentences in streams[1:] for line in sentences for symbol in line)
            words = [word for sentence in streams[0] for word in sentence[:-1]]
            for word, spelling in zip(words, read_split(dest / "characters", split), strict=True):
                if word != "<unk>":
                    assert len(spelling) == len(word) + 1
                    assert all(symbol in (c, "<unk>") for c, symbol in zip(word, spelling[:-1], strict=True))

    fuzz(check, training=columns, other=columns, encoding=encodings)


# Texts

TEXT = "the cat <unk> sat\n\n a  dog, O'Neil's!\nthe naïve cat – in the U.S. & so on...\n" * 4
SYMBOLS = [*PIECES, b"_", b"'", b"&", b"&amp;", b"@-@", b"...", b"Mr.", b"<s>", b"</s>", b"\xe2\x80\x8d", b"\xcc\x81"]
text = damaged([TEXT.encode(), b"a b\nb a\na\nb\n"], SYMBOLS) | st.binary()


def test_ptb(fuzz, attempt, tmp_path, read_split):
    def check(training, other, level, min_count):
        for name, content in (("train.txt", training), ("valid.txt", other), ("test.txt", other)):
            (tmp_path / name).write_bytes(content)
        dest = tmp_path / "dest"
        shutil.rmtree(dest, ignore_errors=True)
        flags = ("--source", tmp_path, "--dest", dest, "--level", level, "--min-count", min_count)
        if attempt(prepare_ptb, *flags) is None:
            return
        for split in SPLITS:
            lines = read_split(dest, split)
            assert len(lines) == len(read_lines(tmp_path / f"{split}.txt"))
            assert all(line[-1] == "</s>" and "</s>" not in line[:-1] for line in lines)

    fuzz(check, training=text, other=text, level=st.sampled_from(["word", "char"]), min_count=st.integers(1, 2))


def test_text(fuzz, attempt, tmp_path, read_split):
    def check(content, flags):
        (tmp_path / "text").write_bytes(content)
        dest = tmp_path / "dest"
        shutil.rmtree(dest, ignore_errors=True)
        out = attempt(prepare_text, tmp_path / "text", "--dest", dest, "--valid-fraction", 0.3, *flags)
        if out is None:
            return
        lines = [line for split in SPLITS for line in read_split(dest, split)]
        if "paragraph" not in flags:
            assert len(lines) == sum(bool(line.strip()) for line in read_lines(tmp_path / "text"))
        assert all(line[-1] == "</s>" and "</s>" not in line[:-1] for line in lines)

    flags = st.sampled_from([(), ("--by", "paragraph"), ("--lower",), ("--min-count", 1), ("--language", "de")])
    fuzz(check, content=text, flags=flags)


class Everything:
    """Stands for the task and the model of a checkpoint, and says the same of every word and text."""

    classes = ["O", "B-PER"]
    tokenization = None
    span_tags = SpanTags(classes)

    def decode(self, logits, lengths):
        raise NotImplementedError


def test_tag(fuzz, attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "load", lambda *_: (Everything, Everything()))
    monkeypatch.setattr(
        prediction, "predict", lambda task, model, words, *_: [[1] * len(sentence) for sentence in words]
    )

    def check(content, conll, json_lines):
        (tmp_path / "text").write_bytes(content)
        flags = ("--conll",) * conll + ("--json",) * json_lines
        out = attempt(tag, "--path", "checkpoint", tmp_path / "text", *flags)
        if out is None:
            return
        if json_lines:
            sentences = [json.loads(line) for line in out.split("\n")[:-1]]
            words = [sentence["words"] for sentence in sentences]
            assert all(len(sentence["words"]) == len(sentence["tags"]) for sentence in sentences)
        else:
            rows = [line.split(" ") for line in out.split("\n")[:-1]]
            assert all(row[1:] in ([], ["B-PER"]) and (row[0] != "") == (len(row) == 2) for row in rows)
            words = [row for row in rows if row == [""]]
        if not conll:
            assert len(words) == len(read_lines(tmp_path / "text"))

    fuzz(check, content=text | columns, conll=st.booleans(), json_lines=st.booleans())


def test_classify(fuzz, attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "load", lambda *_: (Everything, Everything()))
    monkeypatch.setattr(prediction, "predict", lambda task, model, words, *_: [[0.7, 0.3][: 2 * len(w)] for w in words])

    def check(content, tokenize, json_lines):
        (tmp_path / "text").write_bytes(content)
        flags = ("--tokenize", tokenize, *("--json",) * json_lines)
        out = attempt(classify, "--path", "checkpoint", tmp_path / "text", *flags)
        if out is None:
            return
        texts = [line.strip() for line in read_lines(tmp_path / "text")]
        lines = out.split("\n")[:-1]
        assert len(lines) == len(texts)
        for line, expected in zip(lines, texts, strict=True):
            if json_lines:
                assert json.loads(line)["text"] == expected
            else:
                assert line == "" or line == f"O\t0.7000\t{expected}"

    tokenize = st.sampled_from(["tweets", "blanks"])
    fuzz(check, content=text, tokenize=tokenize, json_lines=st.booleans())


# Logs

LOG = b"""2026-01-01 | INFO | train | {"epoch": 1, "train_ppl": "9.5", "train_num_updates": "20"}
2026-01-01 | INFO | train_inner | {"epoch": 1, "ppl": "400.1", "num_updates": "10"}
{"epoch": 1, "valid_ppl": "250.5", "valid_num_updates": "20"}
"""
numbers = st.sampled_from(["1", "-1", "x", "", "inf", "1e999", "9" * 5000]) | st.integers() | st.floats()
keys = st.sampled_from([f"{prefix}{name}" for prefix in ("", "train_", "valid_") for name in ("ppl", "num_updates")])
entries = st.dictionaries(keys, numbers | st.none() | st.lists(st.none()) | st.just({}), min_size=1)
lines = entries.map(lambda entry: f"| {json.dumps(entry)}\n".encode()) | st.sampled_from(
    [b'{"ppl":' + b"[" * 9999 + b"}"]
)
log = damaged([LOG], [b"{", b"}", b'"', b",", b"null", b"NaN", b"\xff"]) | st.lists(lines).map(b"".join) | st.binary()


def test_log(fuzz, tmp_path):
    path = tmp_path / "train.log"

    def check(content):
        path.write_bytes(content)
        try:
            curves = plot.both_curves(path, "ppl")
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert any(updates for updates, _ in curves)
            for updates, values in curves:
                assert updates == sorted(set(updates)) and len(updates) == len(values)
                assert all(isinstance(number, (int, float)) for number in updates + values)

    fuzz(check, content=log)


# Vectors

GLOVE = "the 0.5 -1e-2 3\ncafé 1 2 3\n. . 1 2 3\nof 4 5 6\n".encode()
BINARY = b"2 3\n" + b"".join(b"%s %s\n" % (word, struct.pack("<3f", 0.5, 1e-7, -3)) for word in (b"the", b"of"))
FILES = [GLOVE, b"4 3\n" + GLOVE, BINARY]
NUMBERS = [b" ", b"\n", b"the ", b"of", b"9999999999 99999\n", b"0 1\n", b"nan", b"-inf", b"1e999", b"\xff", b"\0"]
plain = damaged(FILES, NUMBERS) | st.binary()
compressed = plain.map(gzip.compress) | damaged([gzip.compress(file, mtime=0) for file in FILES], NUMBERS) | st.binary()


def test_vectors(fuzz, tmp_path):
    def check(file):
        path = tmp_path / file[0]
        path.write_bytes(file[1])
        try:
            found = read_vectors(path, {"the", "of", "café", "", "a"})
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert len({len(vector) for vector in found.values()}) == 1
            assert all(vector.isfinite().all() for vector in found.values())

    names = {"vectors": plain, "vectors.gz": compressed}
    fuzz(check, file=st.one_of(*(st.tuples(st.just(name), content) for name, content in names.items())))
