"""Loading trained models, and running taggers and classifiers on lists of words."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.tasks import TASK_REGISTRY
from torch import Tensor, nn

import rnndrop_plugin
from rnndrop_plugin.data.capitalisation import capitalisation
from rnndrop_plugin.data.sequence_dataset import Sequences, batch_iterator, spellings
from rnndrop_plugin.data.streams import CAPITALISATION, CHARACTERS, WORD
from rnndrop_plugin.data.text import zero_digits
from rnndrop_plugin.models.sequence_model import SequenceModel
from rnndrop_plugin.ops.checks import ArgumentError
from rnndrop_plugin.progress import progress_bar
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask
from rnndrop_plugin.tasks.sequence_task import SequencesTask

# The most words in a batch, padding included, to bound the memory. If a sequence is longer, its length is the limit.
BATCH_WORDS = 4096


def load(path: str | Path, data: str | Path | None, expected: type[RnndropTask]) -> tuple[RnndropTask, nn.Module]:
    """Load the task and the model of a checkpoint, ready to predict, on a GPU if there is one.

    Args:
        data: the data folder, for its dictionaries. None for the folder of the training, which the checkpoint names as
            it was given and by its absolute path, or if it is gone, the checkpoint's own folder.
        expected: the class of the checkpoint's task, which may also be a subclass.

    Raises:
        OSError: the data folder is not there.
        ValueError: the checkpoint cannot be loaded, is for another task, or was trained with other dictionaries than
            the folder's.
    """
    rnndrop_plugin.register()
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    cfg = state["cfg"].task
    task_class = TASK_REGISTRY.get(cfg._name)
    if task_class is None:
        raise ValueError(
            f"{path}: a checkpoint of the task {cfg._name}, which is not known here (--user-dir names it; in Python "
            "import it first)"
        )
    if not issubclass(task_class, expected):
        raise ValueError(f"{path}: a checkpoint of the task {cfg._name}, expected {task_name(expected)}")
    trained_on = [Path(folder) for folder in (cfg.data, state.get("task_state", {}).get("data")) if folder]
    folders = [Path(data)] if data else [*trained_on, Path(path).parent]
    folder = next((f for f in folders if any((f / name / "dict.txt").is_file() for name in ("", WORD))), None)
    if folder is None and folders[0].is_dir():
        raise FileNotFoundError(f"{folders[0]}: has neither dict.txt nor {WORD}/dict.txt")
    if folder is None:
        hint = "" if data else f"; {path} was trained on it, --data (data= in Python) says where it is now"
        raise FileNotFoundError(f"{folders[0]}: no such folder{hint}")
    cfg.data = str(folder)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], state=state)
    return task, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def task_name(task: type[RnndropTask]) -> str:
    """The name under which ``task`` is registered."""
    return next(name for name, registered in TASK_REGISTRY.items() if registered is task)


def encode(symbols: Iterable[str], dictionary: Dictionary) -> Tensor:
    """The ids of symbols, ``(length,)``; fairseq's own symbols and unknown ones get the id of ``<unk>``."""
    ids = (dictionary.indices.get(symbol, dictionary.unk()) for symbol in symbols)
    return torch.tensor([i if i >= dictionary.nspecial else dictionary.unk() for i in ids])


def predict(
    task: SequencesTask,
    model: SequenceModel,
    sequences: list[list[str]],
    batch_size: int,
    decode: Callable[[Tensor, Tensor], Tensor],
) -> list[list]:
    """What a model predicts for each of ``sequences``, which are lists of words.

    Args:
        decode: turns the logits and the lengths of a batch into a tensor with a row for each sequence.

    Returns:
        These rows in the order of ``sequences``, ``[]`` for a sequence without words.

    Raises:
        ArgumentError: a batch size below 1.
    """
    if batch_size < 1:
        raise ArgumentError("batch_size", f"must be at least 1, got {batch_size}")
    results: list[list] = [[] for _ in sequences]
    places = [i for i, words in enumerate(sequences) if words]
    if not places:
        return results
    pad = task.source_dictionary.pad()
    if task.tokenization is not None and task.tokenization.zero_digits:
        sequences = [[zero_digits(word) for word in words] for words in sequences]
    words = [encode(sequences[i], task.source_dictionary) for i in places]
    features = {}
    if CAPITALISATION in task.dictionaries:
        dictionary = task.dictionaries[CAPITALISATION]
        features[CAPITALISATION] = [encode(map(capitalisation, sequences[i]), dictionary) for i in places]
    if CHARACTERS in task.dictionaries:
        characters = [encode(word, task.dictionaries[CHARACTERS]) for i in places for word in sequences[i]]
        features[CHARACTERS] = spellings(characters, [len(sequence) for sequence in words], pad)
    dataset = Sequences(words, features, None, pad)
    max_tokens = max(BATCH_WORDS, int(dataset.sizes.max()))
    iterator = batch_iterator(dataset, max_tokens=max_tokens, max_sentences=min(batch_size, len(places)), seed=1)
    batches = iterator.next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device
    with torch.no_grad(), progress_bar(total=len(places), desc="predict", unit=" sequences") as bar:
        for batch in batches:
            net_input = {name: tensor.to(device) for name, tensor in batch["net_input"].items()}
            rows = decode(model(**net_input), net_input["src_lengths"])
            for i, row in zip(batch["id"].tolist(), rows.tolist(), strict=True):
                results[places[i]] = row
            bar.update(batch["nsentences"])
    return results
