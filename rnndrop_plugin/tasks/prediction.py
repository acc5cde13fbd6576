"""What trained taggers and classifiers say of sequences of words."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from torch import Tensor
from tqdm import tqdm

import rnndrop_plugin
from rnndrop_plugin.data.capitalisation import capitalisation
from rnndrop_plugin.data.sequence_dataset import Sequences, batch_iterator, spellings
from rnndrop_plugin.models.sequence_model import SequenceModel
from rnndrop_plugin.tasks.sequence_task import CAPITALISATION, CHARACTERS, SequencesTask


def load(path: Path, data: Path | None, expected: str) -> tuple[SequencesTask, SequenceModel]:
    """The task and the model of a checkpoint, ready to predict, on a GPU if there is one.

    Args:
        data: the data folder, None for the one that the checkpoint names.
        expected: the name of the task that the checkpoint must be of.

    Raises:
        OSError: the data folder is not there.
        ValueError: the checkpoint cannot be loaded, is of another task, or of other dictionaries than the folder's.
    """
    rnndrop_plugin.register()
    overrides = {"data": str(data)} if data else {}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
    cfg = state["cfg"].task
    if cfg._name != expected:
        raise ValueError(f"{path}: a checkpoint of the task {cfg._name}, expected {expected}")
    if not Path(cfg.data).is_dir():
        hint = "" if data else f"; {path} was trained on it, --data says where it is now"
        raise FileNotFoundError(f"{cfg.data}: no such folder{hint}")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides, state=state)
    return task, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def encode(symbols: Iterable[str], dictionary: Dictionary) -> Tensor:
    """The ids ``(length,)`` of symbols, that of ``<unk>`` for fairseq's own and those that the dictionary lacks."""
    ids = (dictionary.indices.get(symbol, dictionary.unk()) for symbol in symbols)
    return torch.tensor([i if i >= dictionary.nspecial else dictionary.unk() for i in ids])


def predict(
    task: SequencesTask,
    model: SequenceModel,
    sequences: list[list[str]],
    batch_size: int,
    decode: Callable[[Tensor, Tensor], Tensor],
) -> list[list]:
    """What a model says of each of ``sequences``, lists of words, in their order.

    Args:
        decode: makes of the logits and the lengths of a batch a tensor with a row for each sequence.

    Returns:
        Those rows, ``[]`` for a sequence without words.
    """
    results: list[list] = [[] for _ in sequences]
    places = [i for i, words in enumerate(sequences) if words]
    if not places:
        return results
    pad = task.source_dictionary.pad()
    words = [encode(sequences[i], task.source_dictionary) for i in places]
    features = {}
    if CAPITALISATION in task.dictionaries:
        dictionary = task.dictionaries[CAPITALISATION]
        features[CAPITALISATION] = [encode(map(capitalisation, sequences[i]), dictionary) for i in places]
    if CHARACTERS in task.dictionaries:
        characters = [encode(word, task.dictionaries[CHARACTERS]) for i in places for word in sequences[i]]
        features[CHARACTERS] = spellings(characters, [len(sequence) for sequence in words], pad)
    dataset = Sequences(words, features, None, pad)
    batches = batch_iterator(dataset, max_tokens=None, max_sentences=batch_size, seed=1).next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device
    with torch.no_grad(), tqdm(total=len(places), desc="predict", unit=" sequences", leave=False, disable=None) as bar:
        for batch in batches:
            net_input = {name: tensor.to(device) for name, tensor in batch["net_input"].items()}
            rows = decode(model(**net_input), net_input["src_lengths"])
            for i, row in zip(batch["id"].tolist(), rows.tolist(), strict=True):
                results[places[i]] = row
            bar.update(batch["nsentences"])
    return results
