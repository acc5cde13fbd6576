"""Language modelling over contiguous streams, the recurrent state carried from batch to batch."""

import logging
import os
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from fairseq.data import (
    Dictionary,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    RightPadDataset,
    data_utils,
    iterators,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from torch import Tensor

from rnndrop_plugin.data.stream import ContiguousWindows, TokenStream
from rnndrop_plugin.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class RnndropLanguageModelingConfig(FairseqDataclass):
    data: str = field(
        default=MISSING, metadata={"help": "folder with dict.txt and train, valid, test as .bin and .idx"}
    )
    tokens_per_sample: int = field(
        default=35, metadata={"help": "steps of truncated backpropagation through time: tokens of a row in a batch"}
    )
    dataset_impl: Optional[str] = II("dataset.dataset_impl")


@register_task("rnndrop_language_modeling", dataclass=RnndropLanguageModelingConfig)
class RnndropLanguageModelingTask(FairseqTask):
    """Train and evaluate recurrent language models by truncated backpropagation through time.

    A split is one stream of tokens, read in --batch-size contiguous rows (a process), --tokens-per-sample
    steps at a time. Every token is predicted once. The model's state goes on from batch to batch and
    starts from zero with each epoch and each evaluation; a checkpoint holds it.
    """

    carries_state = True

    def __init__(self, cfg: RnndropLanguageModelingConfig, dictionary: Dictionary, **kwargs):
        super().__init__(cfg)
        if cfg.tokens_per_sample < 1:
            raise InputError(f"--tokens-per-sample must be at least 1, got {cfg.tokens_per_sample}")
        self.dictionary = dictionary
        self.model = None
        self.train_rows = 0

    @classmethod
    def setup_task(cls, cfg: RnndropLanguageModelingConfig, **kwargs):
        """Load the dictionary.

        Raises:
            InputError: the folder or its dict.txt is missing or cannot be read.
        """
        path = os.path.join(cfg.data, "dict.txt")
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; is {cfg.data} a folder made by scripts/prepare_*.py?")
        try:
            dictionary = Dictionary.load(path)
        except Exception as error:
            raise InputError(f"{path}: not a dictionary: {str(error).splitlines()[0]}") from error
        logger.info(f"dictionary: {len(dictionary)} types")
        return cls(cfg, dictionary, **kwargs)

    def load_dataset(self, split: str, epoch=1, combine=False, **kwargs):
        """Read a split into one stream.

        Raises:
            InputError: it is missing, damaged, empty, or does not fit the dictionary.
        """
        path = os.path.join(self.cfg.data, split)
        try:
            sentences = data_utils.load_indexed_dataset(path, self.dictionary, self.cfg.dataset_impl, combine=combine)
            stream = TokenStream(sentences) if sentences is not None and len(sentences) else None
        except Exception as error:
            raise InputError(f"{path}.bin, .idx: damaged: {error}") from error
        if sentences is None:
            raise InputError(f"{path}.bin, .idx: no such files")
        if stream is None:
            raise InputError(f"{path}.bin: there is no text in it")
        if stream.tokens.max() >= len(self.dictionary):
            raise InputError(
                f"{path}.bin: token {int(stream.tokens.max())} is beyond the {len(self.dictionary)} types of dict.txt"
            )
        self.datasets[split] = stream

    def build_model(self, cfg: FairseqDataclass, from_checkpoint=False):
        self.model = super().build_model(cfg, from_checkpoint)
        return self.model

    def get_batch_iterator(self, dataset, max_sentences=None, seed=1, num_shards=1, shard_id=0, epoch=1, **kwargs):
        """Batches of ``max_sentences`` rows (of this shard), in the order of the stream; prompts as fairseq does.

        Raises:
            InputError: there are no rows, or more than the stream can fill.
        """
        if not isinstance(dataset, TokenStream):
            return super().get_batch_iterator(dataset, max_sentences=max_sentences, seed=seed, epoch=epoch, **kwargs)
        if max_sentences is None:
            raise InputError("the rows of the stream must be given by --batch-size (--max-tokens is not used)")
        rows = max_sentences * num_shards
        if dataset is self.datasets.get("train"):
            self.train_rows = rows
        windows = ContiguousWindows(
            dataset.tokens, self.dictionary, rows, self.cfg.tokens_per_sample, num_shards, shard_id
        )
        return iterators.EpochBatchIterator(
            dataset=windows,
            collate_fn=windows.collater,
            batch_sampler=[[i] for i in range(len(windows))],
            seed=seed,
            epoch=epoch,
            disable_shuffling=True,
        )

    def eval_lm_dataloader(self, dataset: TokenStream, batch_size=None, context_window=0, **kwargs):
        """Batches for fairseq-eval-lm: one row unless --batch-size says otherwise.

        Raises:
            InputError: a --context-window; the carried state is the context.
        """
        if context_window:
            raise InputError("--context-window is not used: the carried state already holds all of the context")
        rows = batch_size or 1
        logger.info(f"{len(dataset):,} tokens in {rows} row{'s' if rows > 1 else ''}, each from a zero state")
        shards = {name: kwargs[name] for name in ("num_shards", "shard_id")}
        return self.get_batch_iterator(dataset, max_sentences=rows, **shards).next_epoch_itr(shuffle=False)

    def get_checkpoint_dict(self) -> dict:
        """What a checkpoint keeps of the task: the state at the end of the last training batch."""
        carried = self.model.decoder.carried[True]
        if carried is not None:
            carried = [state.cpu() for state in carried]
        return {type(self).__name__: {"rows": self.train_rows, "carried": carried}}

    def set_checkpoint_dict(self, saved: dict) -> None:
        """Go on from the state in a checkpoint, or from zero, with a warning, where the rows are others."""
        carried = saved["carried"]
        if carried is None:
            return
        if saved["rows"] != self.train_rows or carried[0].size(1) != self.train_rows:
            logger.warning(
                f"the checkpoint's state is of {saved['rows']} rows and {self.train_rows} are asked for: "
                "the state starts from zero, and this epoch goes on at the same batch number of the new rows"
            )
            return
        parameter = next(self.model.parameters())
        self.model.decoder.carried[True] = tuple(state.to(parameter) for state in carried)

    def build_generator(self, models, args, **kwargs):
        """A generator that continues prompts, for fairseq-interactive.

        Raises:
            InputError: fairseq-generate, which would take the rows of the stream for prompts.
        """
        if self.datasets:
            raise InputError(
                "fairseq-generate has no sentences to continue: the data are one stream. Use fairseq-interactive "
                "to continue a prompt, fairseq-eval-lm to score a text"
            )
        return super().build_generator(models, args, **kwargs)

    def build_dataset_for_inference(self, src_tokens: list[Tensor], src_lengths: list[int], **kwargs):
        """Prompts for fairseq-interactive: ``</s>`` and the words, without the ``</s>`` at their end."""
        eos, pad = self.dictionary.eos(), self.dictionary.pad()
        prompts = ListDataset([torch.cat([t.new_tensor([eos]), t[:-1]]) for t in src_tokens], src_lengths)
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(prompts, pad_idx=pad),
                    "src_lengths": NumelDataset(prompts, reduce=False),
                },
            },
            sizes=[np.array(src_lengths)],
        )

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Continue the prompts of ``sample``, which begin with ``</s>``."""
        if constraints is not None:
            raise InputError("--constraints is not supported by rnndrop_language_modeling")
        if prefix_tokens is None:
            prefix_tokens = sample["net_input"]["src_tokens"][:, 1:]
        with torch.no_grad():
            return generator.generate(
                models,
                sample,
                prefix_tokens=prefix_tokens if prefix_tokens.nelement() else None,
                bos_token=self.dictionary.eos(),
            )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary
