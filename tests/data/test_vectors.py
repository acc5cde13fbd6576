import gzip
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnndrop_plugin.data.vectors import read_vectors
from rnndrop_plugin.errors import InputError

VECTORS = {"the": [0.5, -0.01, 3.0], "café": [1.0, 2.0, 1e-7], "New_York": [4.0, 5.0, 6.0]}


def text(vectors, header=""):
    return header.encode() + b"".join(f"{word} {' '.join(map(str, v))}\n".encode() for word, v in vectors.items())


def binary(vectors, end=b"\n"):
    """As word2vec writes it, or with no end of a line as others do."""
    size = len(next(iter(vectors.values())))
    rows = (f"{word} ".encode() + struct.pack(f"<{size}f", *v) + end for word, v in vectors.items())
    return f"{len(vectors)} {size}\n".encode() + b"".join(rows)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.txt"


FORMATS = {
    "GloVe": text(VECTORS),
    "GloVe, untidy": b"\xef\xbb\xbf" + text(VECTORS).replace(b"\n", b" \r\n").removesuffix(b" \r\n"),
    "word2vec text": text(VECTORS, "3 3\n"),
    "word2vec binary": binary(VECTORS),
    "word2vec binary, no line ends": binary(VECTORS, b""),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["as it is", "gz"])
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("content", FORMATS.values(), ids=FORMATS.keys())
def test_reads_the_vectors_of_the_words_asked_for(path, content, size, compressed):
    if compressed:
        path = path.with_suffix(".gz")
        content = gzip.compress(content)
    path.write_bytes(content)
    vectors = read_vectors(path, {"the", "café", "absent"}, size)
    assert vectors.keys() == {"the", "café"}
    for word, vector in vectors.items():
        assert torch.equal(vector, torch.tensor(VECTORS[word]))


def test_the_first_vector_of_a_word_counts(path):
    path.write_bytes(b"a 1.0 2.0\nb 3.0 4.0\na 5.0 6.0\n")
    assert read_vectors(path, {"a", "b"})["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("order", [1, -1])
def test_a_words_own_spelling_is_taken_before_one_that_is_the_same_character_by_character(path, order):
    spellings = {"café": [1.0], "cafe\u0301": [2.0], "e\u0301t\u00e9": [3.0]}
    path.write_bytes(text(dict(list(spellings.items())[::order])))
    vectors = read_vectors(path, {"café", "été"})
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"café": [1.0], "été": [3.0]}


@given(data=st.data())
def test_the_content_tells_text_from_binary(path, data):
    """The words and numbers are any; few numbers in a vector may look like text, as many as real ones have do not."""
    number = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
    words = st.text(st.characters(codec="utf-8", exclude_characters=" \r\n\ufeff"), min_size=1)
    rows = st.dictionaries(words, st.lists(number, min_size=20, max_size=20), min_size=1, max_size=5)
    vectors = data.draw(rows)
    for content in (text(vectors), text(vectors, f"{len(vectors)} 20\n"), binary(vectors), binary(vectors, b"")):
        path.write_bytes(content)
        read = read_vectors(path, vectors)
        assert {word: vector.tolist() for word, vector in read.items()} == vectors


def test_words_with_blanks_do_not_disturb(path):
    """GloVe's file of 840 billion tokens has lines such as the second and third."""
    path.write_text("the 1 2\nat name@domain.com 3 4\n. . . 5 6\nof 7 8\n")
    vectors = read_vectors(path, {"the", "at", ".", "name@domain.com", "of"})
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"the": [1, 2], "of": [7, 8]}


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (b"", None, ": has no vectors"),
        (b"other 1 2\n", None, ": no word of the data is among its 1"),
        (b"0 2\n", None, ": has no vectors"),
        (b"the 1 2\n", 3, ", line 1: 2 numbers after 'the', expected 3"),
        (b"the\n", None, ", line 1: 0 numbers after 'the', expected 1"),
        (b"the 1 2\nof 1 2 3\n", None, ", line 2: 3 numbers after 'of', expected 2"),
        (b"2 2\nthe 1 2\nof 1\n", None, ", line 3: 1 numbers after 'of', expected 2"),
        (b"2 2\nthe 1 2\nof 1 2\n", 3, ", line 1: vectors of 2 numbers, expected 3"),
        (b"the 1 2\n\n", None, ", line 2: 0 numbers after '', expected 2"),
        (b"of 1 2\nthe 1 x\n", None, ", line 2: 'x' is not a number"),
        (b"the 1 2\nof 1 nan\n", None, ", line 2: a number that is not finite"),
        (b"the 1 1e39\n", None, ", line 1: a number that is not finite"),
        (b"of 1 2\n\xff\xfe 1 2\nthe 1 2\n", None, ", line 2: not UTF-8 (byte 0xff)"),
        (b"3 2\nthe 1 2\nof 1 2\n", None, ", line 1: 3 words announced, 2 found"),
        (b"1 2\nthe 1 2\nof 1 2\n", None, ", line 1: 1 words announced, 2 found"),
        (binary(VECTORS)[:-3], None, ", word 3: the file ends within it"),
        (binary(VECTORS)[:-17], None, ", word 3: the file ends within it"),
        (binary(VECTORS)[: len(binary({"the": [1, 2, 3]}))], None, ", line 1: 3 words announced, 1 found"),
        (binary(VECTORS) + b"of \0\0\0\0\0\0\0\0\0\0\0\0", None, ", line 1: 3 words announced, 4 found"),
        (binary(VECTORS), 2, ", line 1: vectors of 3 numbers, expected 2"),
        (binary({"the": [1, float("inf")]}), None, ", word 1: a number that is not finite"),
        (binary({"of": [1, 2], "the": [1, float("nan")]}), None, ", word 2: a number that is not finite"),
        (binary(VECTORS).replace("é".encode(), b"\xe9\xe9"), None, ", word 2: not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(path, content, size, message):
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_vectors(path, {"the", "of"}, size)
    assert str(error.value) == f"{path}{message}"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20], lambda data: b"the 1 2\n"])
def test_a_damaged_gzip_file_is_refused_in_one_line(path, damage):
    path = path.with_suffix(".gz")
    path.write_bytes(damage(gzip.compress(text(VECTORS))))
    with pytest.raises(InputError, match=f"{path}: not a complete gzip file"):
        read_vectors(path, {"the"})


def test_a_missing_file_is_refused_in_one_line(path):
    with pytest.raises(InputError, match="vectors.txt: No such file or directory"):
        read_vectors(path, {"the"})
    with pytest.raises(InputError, match="Is a directory"):
        read_vectors(path.parent, {"the"})
