"""How many words and characters a text has, so that models with different tokens can be compared."""

from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

SPACE = "▁"  # how sentencepiece writes a blank, and the beginning of a sentence
CONTINUED = "@@"  # how subword-nmt ends a piece that is not the last of a word


class Units(NamedTuple):
    """The size of a text, independent of its tokens. Each sentence's end counts as one word and one character, because
    it is also predicted."""

    words: int
    characters: int


def units_of_pieces(tokens: Tensor, dictionary: Dictionary) -> Units | None:
    """The words and characters that pieces of words make up, if they are pieces of sentencepiece or subword-nmt.

    Args:
        tokens: ``(tokens,)``, a stream of sentences with ``</s>``. ``<unk>`` counts as one character.

    Returns:
        None where the dictionary's symbols are not such pieces.
    """
    symbols = dictionary.symbols[dictionary.nspecial :]
    counts = torch.bincount(tokens, minlength=len(dictionary))
    sentences, unknown = int(counts[dictionary.eos()]), int(counts[dictionary.unk()])
    counts = counts[dictionary.nspecial :].tolist()
    if any(symbol.startswith(SPACE) for symbol in symbols):
        words = sum(n * symbol.count(SPACE) for n, symbol in zip(counts, symbols, strict=True))
        # The blank at the beginning of a sentence is not in the text. It counts for the sentence's end.
        characters = sum(n * len(symbol) for n, symbol in zip(counts, symbols, strict=True)) + unknown
    elif any(symbol.endswith(CONTINUED) and symbol != CONTINUED for symbol in symbols):
        ends = [not symbol.endswith(CONTINUED) for symbol in symbols]
        words = sum(n * end for n, end in zip(counts, ends, strict=True)) + unknown
        letters = sum(n * len(symbol.removesuffix(CONTINUED)) for n, symbol in zip(counts, symbols, strict=True))
        characters = letters + unknown + words  # a blank or the sentence's end follows each word
    else:
        return None
    return Units(words + sentences, characters)
