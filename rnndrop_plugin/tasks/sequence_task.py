"""What tagging and classification share: sequences of words in several streams, in batches of similar length."""

import logging
import os
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING
from torch import Tensor

from rnndrop_plugin.data.indexed import load_split, real_symbols
from rnndrop_plugin.data.sequence_dataset import Sequences, batch_iterator, is_filler, spellings
from rnndrop_plugin.data.streams import CAPITALISATION, CHARACTERS, WORD
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask

logger = logging.getLogger(__name__)


@dataclass
class SequencesConfig(FairseqDataclass):
    data: str = field(
        default=MISSING,
        metadata={"help": "folder made by `rnndrop prepare`, with one sub-folder for words and one for the targets"},
    )
    dataset_impl: Optional[str] = II("dataset.dataset_impl")
    train_subset: str = II("dataset.train_subset")
    seed: int = II("common.seed")


class SequencesTask(RnndropTask):
    """A task that predicts classes from sequences of words; the subclasses define which classes.

    The data folder has one sub-folder for each stream, with dict.txt and the splits as fairseq-preprocess writes
    them. The streams are ``word``, ``target_stream`` and optionally ``capitalisation`` (a class for each word) and
    ``characters`` (each word's characters as a sequence of its own, for the words of all sequences in order).
    """

    target_stream: str  # the sub-folder of the targets
    criterion: str  # the name of the only criterion that fits
    absent_classes: list[int]  # the classes that the training data lack; set when these data are loaded

    @classmethod
    def setup_task(cls, cfg: SequencesConfig, **kwargs):
        """Load the dictionaries.

        Raises:
            InputError: one of them is missing or cannot be read, or there are fewer than two classes.
        """
        dictionaries = cls.load_dictionaries(cfg, WORD, cls.target_stream)
        features = [name for name in (CAPITALISATION, CHARACTERS) if os.path.isdir(os.path.join(cfg.data, name))]
        dictionaries |= cls.load_dictionaries(cfg, *features)
        task = cls(cfg, dictionaries, **kwargs)
        if len(task.classes) < 2:
            raise InputError(f"{cfg.data}/{cls.target_stream}/dict.txt: two classes or more are needed")
        logger.info(f"{len(dictionaries[WORD])} types of words, classes: {' '.join(task.classes)}")
        return task

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of a model's outputs, without symbols that fairseq made up."""
        return real_symbols(self.target_dictionary)

    def load_dataset(self, split: str, epoch=1, combine=False, **kwargs):
        """Read a split.

        Raises:
            InputError: a stream is missing or damaged, or the streams do not fit each other.
        """
        streams = {}
        for name, dictionary in self.dictionaries.items():
            folder = os.path.join(self.cfg.data, name)
            sequences = load_split(folder, split, dictionary, self.cfg.dataset_impl, combine)
            streams[name] = [sequence[:-1].long() for sequence in sequences]  # without </s>
        words = streams[WORD]
        if CHARACTERS in streams:
            lengths = [len(sequence) for sequence in words]
            if len(streams[CHARACTERS]) != sum(lengths):
                path = os.path.join(self.cfg.data, CHARACTERS, split)
                raise InputError(f"{path}.bin: {len(streams[CHARACTERS])} words, but there are {sum(lengths)}")
            streams[CHARACTERS] = spellings(streams[CHARACTERS], lengths, self.source_dictionary.pad())
        for name, sequences in streams.items():
            path = os.path.join(self.cfg.data, name, split)
            if len(sequences) != len(words):
                raise InputError(f"{path}.bin: {len(sequences)} sequences, but there are {len(words)} of words")
            for i, sequence in enumerate(sequences):
                expected = self.targets_of(words[i]) if name == self.target_stream else len(words[i])
                if len(sequence) != expected or expected == 0:
                    raise InputError(
                        f"{path}.bin: sequence {i + 1} has {len(sequence)} symbols, expected {max(expected, 1)}"
                    )
        first = self.target_dictionary.nspecial  # the symbols before it are fairseq's own, not classes
        targets = [sequence - first for sequence in streams[self.target_stream]]
        self._check_classes(targets, split)
        features = {name: streams[name] for name in (CAPITALISATION, CHARACTERS) if name in streams}
        self.datasets[split] = self.make_dataset(words, features, targets, split)

    def _check_classes(self, targets: list[Tensor], split: str) -> None:
        """Warn of classes that a split lacks; raise InputError for targets that are not classes."""
        path = os.path.join(self.cfg.data, self.target_stream, split)
        for i, target in enumerate(targets):
            stray = target[(target < 0) | (target >= len(self.classes))]
            if len(stray):
                symbol = self.target_dictionary[int(stray[0]) + self.target_dictionary.nspecial]
                raise InputError(
                    f"{path}.bin: sequence {i + 1} has a {self.target_stream} that dict.txt does not have ({symbol}): "
                    f"make the dictionary from a text that has every {self.target_stream}, or leave the sequence out"
                )
        counts = torch.bincount(torch.cat(targets), minlength=len(self.classes)).tolist()
        absent = [i for i, count in enumerate(counts) if not count]
        missing = [self.classes[i] for i in absent]
        if split == self.cfg.train_subset:
            self.absent_classes = absent
        if missing:
            consequence = ": a model cannot learn it" if split == self.cfg.train_subset else ""
            logger.warning(f"{split} does not have the {self.target_stream} {', '.join(missing)}{consequence}")

    def targets_of(self, words: Tensor) -> int:
        """The number of targets of a sequence. A subclass defines this and :meth:`make_dataset`."""
        raise NotImplementedError

    def make_dataset(
        self, words: list[Tensor], features: dict[str, list[Tensor]], targets: list[Tensor], split: str
    ) -> Sequences:
        """The dataset of a split."""
        raise NotImplementedError

    def get_batch_iterator(
        self, dataset, *, max_tokens=None, max_sentences=None, seed=1, num_shards=1, shard_id=0, epoch=1, **kwargs
    ):
        """Batches of sequences of similar length, see :func:`rnndrop_plugin.data.sequence_dataset.batch_iterator`."""
        chosen = {name: kwargs.get(name, False) for name in ("skip_remainder_batch", "grouped_shuffling")}
        return batch_iterator(
            dataset if self.trains(kwargs) else dataset.whole(),
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            epoch=epoch,
            **chosen,
        )

    def build_criterion(self, cfg, from_checkpoint=False):
        """Build the criterion of ``cfg``.

        Raises:
            InputError: a criterion for another task.
        """
        if cfg._name != self.criterion:
            raise InputError(f"--criterion {cfg._name} does not fit this task: use --criterion {self.criterion}")
        return super().build_criterion(cfg, from_checkpoint)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """The usual training step, but a filler batch counts for nothing (see :func:`is_filler`)."""
        ignore_grad = ignore_grad or is_filler(sample)
        return _without_filler(
            sample, *super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        )

    def valid_step(self, sample, model, criterion):
        """fairseq's validation step, but a filler batch counts for nothing."""
        return _without_filler(sample, *super().valid_step(sample, model, criterion))

    def reduce_metrics(self, logging_outputs, criterion):
        """Log the criterion's metrics, and its scores of the counts over all batches and processes."""
        super().reduce_metrics(logging_outputs, criterion)
        if hasattr(criterion, "log_scores"):
            criterion.log_scores(logging_outputs)

    def build_generator(self, models, args, **kwargs):
        """Refuse fairseq-generate and fairseq-interactive.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this model writes no text: fairseq-validate evaluates it, `rnndrop tag` and `rnndrop classify` use it"
        )

    def set_checkpoint_dict(self, saved: dict) -> None:
        """Check what :meth:`get_checkpoint_dict` saved.

        Raises:
            InputError: the checkpoint is of other dictionaries, or its optimizer is for parameters that are now left
                out.
        """
        super().set_checkpoint_dict(saved)
        if getattr(self.model, "was_narrowed", False):
            raise InputError(
                "the checkpoint was trained with classes that fairseq-preprocess made up (madeupword0000), and its "
                "optimizer cannot go on without them: begin with its parameters, by --finetune-from-model"
            )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionaries[WORD]

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionaries[self.target_stream]


def _without_filler(sample: dict, loss: Tensor, sample_size, logging_output: dict):
    """What a step returns, with zeros for a filler batch."""
    if is_filler(sample):
        return loss * 0, 0, {name: value * 0 for name, value in logging_output.items()}
    return loss, sample_size, logging_output
