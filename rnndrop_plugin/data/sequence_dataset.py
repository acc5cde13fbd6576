"""Sequences of words with their targets: a tag for each word, or one label."""

from itertools import islice

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils, iterators
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rnndrop_plugin.errors import InputError

NO_TARGET = -100  # pads a batch of tags; torch's cross entropy ignores it
LONGEST_WORD = 32  # characters; the rest of a word is not read, so that one endless word does not fill the memory

FILLER = "filler"  # a batch with this entry does not count, see is_filler


def is_filler(batch: dict) -> bool:
    """Whether ``batch`` exists only because other processes have one batch more.

    fairseq itself uses an empty batch for this. If --update-freq collects several batches for an update, it then leaves
    out all batches that the process has read for the update. So ours holds a sequence, and the task ignores it.
    """
    return FILLER in batch


class Sequences(FairseqDataset):
    """Sequences of words, their features and their targets.

    A batch is ``{"id", "nsentences", "ntokens", "net_input", "target"}``; its net_input has ``src_tokens``
    ``(batch, time)``, padded at the right, ``src_lengths`` ``(batch,)`` and the features by their names,
    ``(batch, time)`` or ``(batch, time, characters)``.

    Args:
        words: ``(length,)`` each, without ``</s>``.
        features: for each name of a feature one tensor a sequence, ``(length,)`` or ``(length, characters)``.
        targets: the classes to predict, or None where there is nothing to compare with.
        pad: what words and features are padded with.
    """

    def __init__(self, words: list[Tensor], features: dict[str, list[Tensor]], targets: list[Tensor] | None, pad: int):
        self.words = _arrays(words)
        self.features = {name: _arrays(feature) for name, feature in features.items()}
        self.targets = None if targets is None else _arrays(targets)
        self.pad = pad
        self.sizes = np.array([len(sequence) for sequence in words])  # the steps that a model takes

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def ordered_indices(self) -> np.ndarray:
        """The indices by size, and randomly among equal sizes, so that a batch needs little padding."""
        return np.lexsort((np.random.permutation(len(self)), self.sizes))

    def collater(self, samples: list[int]) -> dict:
        filler = not samples  # the last batch of a process that has one batch less than others
        samples = samples or [0]
        lengths = torch.from_numpy(self.sizes[samples])
        net_input = {"src_tokens": padded([self.words[i] for i in samples], self.pad), "src_lengths": lengths}
        for name, feature in self.features.items():
            net_input[name] = padded([feature[i] for i in samples], self.pad)
        batch = {
            "id": torch.tensor(samples),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
            "net_input": net_input,
        }
        if filler:
            batch[FILLER] = True
        if self.targets is not None:
            batch["target"] = self._collate_targets(samples)
        return batch

    def whole(self) -> "Sequences":
        """The dataset that models are evaluated on."""
        return self

    def _collate_targets(self, samples: list[int]) -> Tensor:
        raise NotImplementedError


class LabelledSequences(Sequences):
    """Sequences with one label each: a batch's target is ``(batch,)``."""

    def _collate_targets(self, samples: list[int]) -> Tensor:
        return torch.from_numpy(np.concatenate([self.targets[i] for i in samples]))


class TaggedSentences(Sequences):
    """Sentences with a tag for each word: a batch's target is ``(batch, time)``, padded with NO_TARGET.

    With ``extract_length`` a model reads an extract of at most that many words from each sentence, drawn anew in each
    epoch (section 4.4). The seed, the epoch and the sentence determine the extract. ``src_tokens`` and the features
    are still those of the full sentences, so that the first and last words of the extract have their context.
    ``starts`` ``(batch,)`` and ``src_lengths`` in net_input say where the extract is. The target covers only the
    extract.
    """

    def __init__(self, *args, extract_length: int | None = None, seed: int = 1):
        super().__init__(*args)
        self.extract_length = extract_length
        self.seed = seed
        self.epoch = 1
        if extract_length is not None:
            self.sizes = np.minimum(self.sizes, extract_length)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def whole(self) -> "TaggedSentences":
        """The dataset of full sentences, which taggers are evaluated on."""
        return TaggedSentences(self.words, self.features, self.targets, self.pad)

    def start(self, index: int) -> int:
        """Where the extract of sentence ``index`` begins in this epoch."""
        choices = len(self.words[index]) - int(self.sizes[index]) + 1
        if choices == 1:
            return 0
        return int(np.random.default_rng([self.seed % 2**32, self.epoch, index]).integers(choices))

    def collater(self, samples: list[int]) -> dict:
        batch = super().collater(samples)
        samples = batch["id"].tolist()
        if self.extract_length is not None:
            batch["net_input"]["starts"] = torch.tensor([self.start(i) for i in samples])
        return batch

    def _collate_targets(self, samples: list[int]) -> Tensor:
        targets = [self.targets[i] for i in samples]
        if self.extract_length is not None:
            targets = [target[self.start(i) :][: self.sizes[i]] for i, target in zip(samples, targets, strict=True)]
        return padded(targets, NO_TARGET)


def _arrays(sequences: list[Tensor] | list[np.ndarray]) -> list[np.ndarray]:
    """The sequences as numpy arrays: making a batch of them takes a third of the time that tensors take."""
    return [np.asarray(sequence) for sequence in sequences]


def padded(sequences: list[np.ndarray], value: int) -> Tensor:
    """A batch of sequences of integers, each ``(length,)`` or ``(length, characters)``, with ``value`` past their ends.

    All sequences are copied at once, because training on a GPU waits for the host to make batches.
    """
    sizes = np.array([sequence.shape for sequence in sequences])
    batch = np.full((len(sequences), *sizes.max(0)), value)
    inside = np.arange(batch.shape[1]) < sizes[:, :1]
    if batch.ndim == 3:
        inside = inside[:, :, None] & (np.arange(batch.shape[2]) < sizes[:, 1:])[:, None]
    batch[inside] = np.concatenate(sequences, axis=None)
    return torch.from_numpy(batch)


def batch_iterator(
    dataset: Sequences,
    *,
    max_tokens: int | None,
    max_sentences: int | None,
    seed: int,
    num_shards: int = 1,
    shard_id: int = 0,
    epoch: int = 1,
    **options: bool,
) -> iterators.EpochBatchIterator:
    """Batches of sequences of similar length. They are the same in every epoch, in an order drawn anew each epoch.

    Every sequence is in one of them: fairseq's own iterator leaves out the last ones where their number is no
    multiple of 8, and composes others after a resume. Batches are made in this process, since a worker of
    fairseq's loader would not be told of a new epoch.

    Args:
        options: other options of fairseq's iterator.

    Raises:
        InputError: a sequence is longer than ``max_tokens``, or ``max_sentences`` is less than 1.
    """
    if max_sentences is not None and max_sentences < 1:
        raise InputError(f"--batch-size and --batch-size-valid must be at least 1, got {max_sentences}")
    if max_tokens is not None and dataset.sizes.max() > max_tokens:
        flags = "--max-tokens or --max-tokens-valid"
        raise InputError(f"a sequence has {dataset.sizes.max()} words: raise {flags}, which is {max_tokens}")
    with data_utils.numpy_seed(seed):
        indices = dataset.ordered_indices()
    batches = data_utils.batch_by_size(
        indices, None, dataset.sizes[indices], max_tokens=max_tokens, max_sentences=max_sentences
    )
    return iterators.EpochBatchIterator(
        dataset,
        dataset.collater,
        batches,
        seed=seed,
        num_shards=num_shards,
        shard_id=shard_id,
        epoch=epoch,
        **options,
    )


def spellings(words: list[Tensor], lengths: list[int], pad: int) -> list[Tensor]:
    """The characters of each sequence's words, ``(length, characters)``.

    Args:
        words: the characters of the words of all sequences in order, ``(characters,)`` each.
        lengths: the number of words in each sequence.
        pad: what shorter words are padded with.
    """
    rest = (word[:LONGEST_WORD] for word in words)
    return [pad_sequence(list(islice(rest, length)), batch_first=True, padding_value=pad) for length in lengths]
