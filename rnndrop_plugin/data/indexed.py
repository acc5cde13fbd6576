"""fairseq's data folders: a dictionary, and splits as indexed datasets."""

import hashlib
import os
import re

import torch
from fairseq.data import Dictionary, data_utils
from torch import Tensor

from rnndrop_plugin.errors import InputError, lacks_memory


def load_dictionary(folder: str) -> Dictionary:
    """The dictionary in ``folder``/dict.txt.

    Raises:
        InputError: the folder or its dict.txt is missing or cannot be read.
    """
    path = os.path.join(folder, "dict.txt")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; is {folder} (part of) a folder made by `rnndrop prepare`?")
    try:
        return Dictionary.load(path)
    except Exception as error:
        raise InputError(f"{path}: not a dictionary: {error}") from error


def identity(dictionary: Dictionary) -> dict:
    """What tells a dictionary from others: its number of types, and a digest of their order."""
    symbols = "\n".join(dictionary.symbols).encode()
    return {"types": len(dictionary), "sha256": hashlib.sha256(symbols).hexdigest()}


def check_identity(name: str, saved: dict | None, own: dict, data: str) -> None:
    """Check that a checkpoint's dictionary is that of the data.

    Args:
        name: what to call it in an error.
        saved, own: the :func:`identity` of the checkpoint's and of the data's; None if the checkpoint has none.
        data: the data folder.

    Raises:
        InputError: it is another one.
    """
    if saved is None:
        raise InputError(f"the checkpoint was trained without {name}, which {data} has")
    if saved != own:
        raise InputError(
            f"the checkpoint's {name} has {saved['types']} types and is not the one of {data}, which has "
            f"{own['types']}: use the folder it was trained on or one made with the same dictionary"
        )


def count_made_up(dictionary: Dictionary) -> int:
    """How many symbols at the end of ``dictionary`` are made up.

    fairseq-preprocess fills a dictionary up to a multiple of 8 symbols (--padding-factor) with symbols that never occur
    and are named madeupword0000, madeupword0001, .... A symbol with such a name that does occur is a real one.
    """
    made_up = 0
    for symbol, count in zip(reversed(dictionary.symbols), reversed(dictionary.count), strict=True):
        if count > 0 or not re.fullmatch(r"madeupword\d{4}", symbol):
            break
        made_up += 1
    return made_up


def never_written(dictionary: Dictionary) -> list[int]:
    """The ids that no text contains: ``<s>``, padding and the made-up symbols."""
    return [dictionary.bos(), dictionary.pad(), *range(len(dictionary) - count_made_up(dictionary), len(dictionary))]


def real_symbols(dictionary: Dictionary) -> list[str]:
    """The symbols of ``dictionary`` that are neither fairseq's own nor made up, in their order."""
    return dictionary.symbols[dictionary.nspecial : len(dictionary) - count_made_up(dictionary)]


def load_split(
    folder: str, split: str, dictionary: Dictionary, dataset_impl: str | None = None, combine: bool = False
) -> list[Tensor]:
    """The sequences of a split, each ``(length,)``, with the ``</s>`` that ends it.

    Args:
        dataset_impl: fairseq's --dataset-impl.
        combine: also read ``split1``, ``split2``, ..., as fairseq does for training data in parts.

    Raises:
        InputError: its files are missing, damaged, empty or larger than the memory, or contain padding or ids beyond
            ``dictionary``.
    """
    if not split:
        raise InputError("the name of a split is empty: is there a comma too many?")
    path = os.path.join(folder, split)
    if os.path.isfile(f"{path}.bin") and not os.path.getsize(f"{path}.bin"):
        raise InputError(f"{path}.bin: there is no text in it")
    try:
        dataset = data_utils.load_indexed_dataset(path, dictionary, dataset_impl, combine=combine)
        sequences = None if dataset is None else [dataset[i] for i in range(len(dataset))]
        tokens = None if dataset is None else torch.cat(sequences)
    except Exception as error:
        reason = "there is not enough memory" if lacks_memory(error) else f"damaged: {error}"
        raise InputError(f"{path}.bin, .idx: {reason}") from error
    if tokens is None:
        raise InputError(f"{path}.bin, .idx: no such files")
    last = int(tokens.max())
    if last >= len(dictionary):
        raise InputError(f"{path}.bin: token {last} is beyond the {len(dictionary)} types of dict.txt")
    if (tokens == dictionary.pad()).any():
        raise InputError(f"{path}.bin: {dictionary[dictionary.pad()]} is in the text, but it is only for padding")
    return sequences
