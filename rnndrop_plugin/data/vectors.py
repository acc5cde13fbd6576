"""Pretrained word vectors in text files."""

from collections.abc import Container

import torch
from torch import Tensor

from rnndrop_plugin.errors import InputError


def read_vectors(path: str, words: Container[str], size: int) -> dict[str, Tensor]:
    """Read the vectors of ``words`` from a UTF-8 file with a word and its numbers on each line.

    Both word2vec's text format, whose first line has two numbers, and GloVe's, which has no such line.

    Args:
        words: those to read; other lines are only checked for their length.
        size: the numbers of a vector.

    Returns:
        The vectors found, each ``(size,)``.

    Raises:
        InputError: the file cannot be read, a line of it is malformed, or it has none of ``words``.
    """
    vectors = {}
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip(" \r\n").split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != size:
                    raise ValueError(f"{len(values)} numbers after {word!r}, expected {size}")
                if word in words:
                    vectors[word] = torch.tensor([float(value) for value in values])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 after line {number}") from error
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}") from error
    if not vectors:
        raise InputError(f"{path}: no word of the dictionary is among its {number} lines")
    return vectors
