"""Files of any bytes end in data or in one line, never in another error."""

import gzip
import re
import struct
import sys

import _common
import prepare_conll
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnndrop_plugin.data.vectors import read_vectors

SOME, MANY = (
    settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    for number in (300, 10_000)
)


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
sentences = {
    "training": damaged([IOB1, IOBES], PIECES) | st.binary(),
    "other": damaged([IOB1, IOBES], PIECES) | st.binary(),
    "encoding": st.sampled_from(["utf-8", "latin-1", "utf-8", "latin-1", "utf-16"]),
}


def check_conll(tmp_path, monkeypatch, read_split, training, other, encoding):
    for name, content in (("eng.train", training), ("eng.testa", other), ("eng.testb", other)):
        (tmp_path / name).write_bytes(content)
    dest = tmp_path / "dest"
    arguments = ["--source", tmp_path, "--dest", dest, "--encoding", encoding]
    monkeypatch.setattr(sys, "argv", ["prepare_conll.py", *map(str, arguments)])
    before = sorted(path.name for path in tmp_path.iterdir())
    try:
        prepare_conll.main()
    except (OSError, ValueError) as error:
        assert str(error).startswith(str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    else:
        for split in _common.SPLITS:
            streams = [read_split(dest / stream, split) for stream in ("word", "capitalisation", "tag")]
            lengths = [[len(sentence) for sentence in sentences] for sentences in streams]
            assert lengths[0] == lengths[1] == lengths[2] != []
            assert not any(symbol == "<unk>" for sentences in streams[1:] for line in sentences for symbol in line)


@SOME
@given(**sentences)
def test_conll(tmp_path, monkeypatch, read_split, training, other, encoding):
    check_conll(tmp_path, monkeypatch, read_split, training, other, encoding)


@pytest.mark.slow
@MANY
@given(**sentences)
def test_conll_long(tmp_path, monkeypatch, read_split, training, other, encoding):
    check_conll(tmp_path, monkeypatch, read_split, training, other, encoding)


# Vectors

GLOVE = "the 0.5 -1e-2 3\ncafé 1 2 3\n. . 1 2 3\nof 4 5 6\n".encode()
BINARY = b"2 3\n" + b"".join(b"%s %s\n" % (word, struct.pack("<3f", 0.5, 1e-7, -3)) for word in (b"the", b"of"))
FILES = [GLOVE, b"4 3\n" + GLOVE, BINARY]
NUMBERS = [b" ", b"\n", b"the ", b"of", b"9999999999 99999\n", b"0 1\n", b"nan", b"-inf", b"1e999", b"\xff", b"\0"]
plain = damaged(FILES, NUMBERS) | st.binary()
compressed = plain.map(gzip.compress) | damaged([gzip.compress(file, mtime=0) for file in FILES], NUMBERS) | st.binary()
vectors = {
    "file": plain.map(lambda content: ("vectors", content)) | compressed.map(lambda content: ("vectors.gz", content))
}


def check_vectors(tmp_path, file):
    path = tmp_path / file[0]
    path.write_bytes(file[1])
    try:
        found = read_vectors(path, {"the", "of", "café", "", "a"})
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert len({len(vector) for vector in found.values()}) == 1
        assert all(vector.isfinite().all() for vector in found.values())


@SOME
@given(**vectors)
def test_vectors(tmp_path, file):
    check_vectors(tmp_path, file)


@pytest.mark.slow
@MANY
@given(**vectors)
def test_vectors_long(tmp_path, file):
    check_vectors(tmp_path, file)
