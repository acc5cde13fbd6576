import pytest
import torch

from rnndrop_plugin.data.vectors import read_vectors
from rnndrop_plugin.errors import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.txt"


@pytest.mark.parametrize("header", ["", "3 2\n"], ids=["GloVe", "word2vec"])
def test_reads_the_vectors_of_the_words_asked_for(path, header):
    path.write_text(f"{header}the 0.5 -1e-2\ncafé 1 2 \nother 3 4\n", encoding="utf-8")
    vectors = read_vectors(path, {"the", "café", "absent"}, 2)
    assert {word: vector.tolist() for word, vector in vectors.items()} == {
        "the": torch.tensor([0.5, -0.01]).tolist(),
        "café": [1.0, 2.0],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no word of the dictionary is among its 0 lines"),
        (b"2 2\nother 1 2\n", "no word of the dictionary is among its 2 lines"),
        (b"2 2\nthe 1 2\nof 1 2 3\n", "line 3: 3 numbers after 'of', expected 2"),
        (b"the 1 2\n\n", "line 2: 0 numbers after '', expected 2"),
        (b"of 1 2\nthe 1 x\n", "line 2: could not convert string to float: 'x'"),
        (b"the 1 2\n\xff\xfe 1 2\n", "not UTF-8"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_vectors(path, {"the", "of"}, 2)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused_in_one_line(path):
    with pytest.raises(InputError, match="vectors.txt: No such file or directory"):
        read_vectors(path, {"the"}, 2)
