"""Reading text: line ends, encodings, accents and invisible characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnndrop_plugin.data.text import normalize, read_lines


@pytest.fixture
def lines(tmp_path):
    def lines(content: bytes, encoding="UTF-8", **options):
        (tmp_path / "text.txt").write_bytes(content)
        return read_lines(tmp_path / "text.txt", encoding, **options)

    return lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a b\nc\n\nd", ["a b", "c", "", "d"]),
        ("a b\r\nc\r\n\r\nd\r\n", ["a b", "c", "", "d"]),
        ("a b\rc\r\rd\r", ["a b", "c", "", "d"]),
        ("a b\r\r\nc\r\r\n\r\r\nd\r\r\n", ["a b", "c", "", "d"]),
        ("a b\rc\r\n\nd\n", ["a b", "c", "", "d"]),
        ("a\n\n\n", ["a", "", ""]),
        ("a\u2028b\nc\x85d\x0ce\x0bf\u2029g\n", ["a\u2028b", "c\x85d\x0ce\x0bf\u2029g"]),
        ("\ufeffa\n\ufeffb\ufeff\n", ["a", "b"]),  # two files, each with its mark, in one
    ],
)
def test_line_ends(lines, content, expected):
    assert lines(content.encode()) == expected
    assert lines(content.encode("utf-16"), "utf-16") == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\r\r\n"])
def test_the_line_of_an_error_is_counted_alike(lines, end):
    with pytest.raises(ValueError, match="text.txt, line 3: not UTF-8 .byte 0xe9."):
        lines(end.join([b"a", b"b", b"caf\xe9", b"d"]))
    with pytest.raises(ValueError, match="text.txt, line 3: a NUL character.*the encoding may not be UTF-8"):
        lines(end.join([b"a", b"b", b"c\0d", b"\0"]))
    with pytest.raises(ValueError, match="text.txt: has no text"):
        lines(end * 3)


def test_other_encodings(lines):
    assert lines("café\n".encode("latin-1"), "latin-1") == ["café"]
    with pytest.raises(ValueError, match="text.txt, line 1: not ASCII .byte 0xe9."):
        lines("café\n".encode("latin-1"), "ASCII")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("E\u0301lyse\u0301e fac\u0327ade", "Élysée façade"),
        ("e\u200b\u0301", "é"),
        ("Donau\u00addampf \u200eschiff\u200f a\u2060b", "Donaudampf schiff ab"),
        ("a \u200b b", "a  b"),
        ("\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680", "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680"),
        ("ﬁne ½ Å", "ﬁne ½ Å"),  # NFKC would change them
    ],
)
def test_normalisation(text, expected):
    assert normalize(text) == expected


def test_an_invisible_token_stays_where_asked(lines):
    content = "\u200b O\ncat\u200b O\n\ufeffdog\u200b\u200b O\n"
    assert lines(content.encode(), keep_lone=True) == ["\u200b O", "cat O", "dog O"]
    assert lines("\ufeff\ncat O\n".encode(), keep_lone=True) == ["", "cat O"]  # a file's mark is no token


@given(st.text(), st.booleans())
def test_normalised_text_stays_as_it_is(text, keep_lone):
    once = normalize(text, keep_lone=keep_lone)
    assert normalize(once, keep_lone=keep_lone) == once
    assert unicodedata.is_normalized("NFC", once)
    assert len(once.split()) <= len(text.split())
    if keep_lone:
        assert len(once.split()) == len(text.split())
