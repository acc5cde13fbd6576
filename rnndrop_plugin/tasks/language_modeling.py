"""Language modelling over contiguous streams. The recurrent state is carried from batch to batch."""

import functools
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.data import (
    Dictionary,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    RightPadDataset,
)
from fairseq.distributed.utils import all_gather
from fairseq.logging import metrics
from fairseq.registry import REGISTRIES
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from torch import Tensor

from rnndrop_plugin.criterions.graphed import GraphedCriterion
from rnndrop_plugin.data.indexed import load_split
from rnndrop_plugin.data.stream import ContiguousWindows, TokenStream, WindowIterator
from rnndrop_plugin.data.units import Units, units_of_pieces
from rnndrop_plugin.errors import InputError, flag_of
from rnndrop_plugin.models.evaluation import Evaluation, EvaluationConfig
from rnndrop_plugin.models.language_model import RecurrentLanguageModel
from rnndrop_plugin.tasks import teachers
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask
from rnndrop_plugin.tasks.teachers import Lesson, Teachers, split_teachers

logger = logging.getLogger(__name__)

CRITERIA = ("cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss")  # fairseq's criteria for language models


@dataclass
class RnndropLanguageModelingConfig(EvaluationConfig):
    data: str = field(
        default=MISSING, metadata={"help": "folder with dict.txt and train, valid, test as .bin and .idx"}
    )
    tokens_per_sample: int = field(
        default=35, metadata={"help": "steps of truncated backpropagation through time: tokens of a row in a batch"}
    )
    variable_bptt: bool = field(
        default=False,
        metadata={
            "help": "draw the number of steps of each training window at random, around --tokens-per-sample (Merity et "
            "al. 2018); with --sentence-avg the gradient grows with this number, as their learning rate does"
        },
    )
    teachers: Optional[str] = field(
        default=None,
        metadata={
            "help": "colon-separated checkpoints of language models; the model also learns from their mean predictions "
            "of the training text (knowledge distillation)"
        },
    )
    teacher_text: int = field(
        default=0,
        metadata={"help": "with --teachers: let them write a text of this many tokens, added to the training text"},
    )
    cuda_graph: bool = field(
        default=False,
        metadata={
            "help": "run an update's forward and backward pass as one CUDA graph, which saves the host work; for one "
            "GPU, in float32 or bfloat16"
        },
    )
    dataset_impl: Optional[str] = II("dataset.dataset_impl")
    train_subset: str = II("dataset.train_subset")
    save_dir: str = II("checkpoint.save_dir")
    no_save: bool = II("checkpoint.no_save")
    seed: int = II("common.seed")
    sentence_avg: bool = II("optimization.sentence_avg")


@register_task("rnndrop_language_modeling", dataclass=RnndropLanguageModelingConfig)
class RnndropLanguageModelingTask(RnndropTask):
    """Train and evaluate recurrent language models by truncated backpropagation through time.

    A split is one stream of tokens, which each process reads in --batch-size contiguous rows, --tokens-per-sample
    steps at a time. Every token is predicted once. The model's state is carried from batch to batch. It starts from
    zero in each epoch and each evaluation, and is saved in checkpoints.
    """

    carries_state = True
    model_class = RecurrentLanguageModel
    model_kind = "a language model that carries its state from batch to batch"

    def __init__(self, cfg: RnndropLanguageModelingConfig, dictionaries: dict[str, Dictionary], **kwargs):
        super().__init__(cfg, dictionaries)
        if cfg.tokens_per_sample < 1:
            raise InputError(
                f"--tokens-per-sample (less any --context-window) must be at least 1, got {cfg.tokens_per_sample}"
            )
        self.dictionary = dictionaries[""]
        self.evaluation = Evaluation(cfg)
        self.train_layout: dict[str, int | str] = {}  # how the training stream is cut, see get_checkpoint_dict
        self.train_rows: Tensor | None = None  # the rows of this process
        self.gathered: list[Tensor] | None = None  # the states of the rows of all processes, see gather_state
        self.graphed_criterion: GraphedCriterion | None = None
        self.lesson: Lesson | None = None  # what the teachers have read and written, see _learn

    @classmethod
    def setup_task(cls, cfg: RnndropLanguageModelingConfig, **kwargs):
        """Load the dictionary.

        Raises:
            InputError: the folder or its dict.txt is missing or cannot be read.
        """
        task = cls(cfg, cls.load_dictionaries(cfg, ""), **kwargs)
        logger.info(f"dictionary: {len(task.dictionary)} types")
        return task

    def load_dataset(self, split: str, epoch=1, combine=False, **kwargs):
        """Read a split into one stream.

        Raises:
            InputError: the split is missing, damaged or empty, or does not fit the dictionary.
        """
        sentences = load_split(self.cfg.data, split, self.dictionary, self.cfg.dataset_impl, combine)
        self.datasets[split] = TokenStream(sentences, self._units(split, sentences))

    def _units(self, split: str, sentences: list[Tensor]) -> Units | None:
        """The numbers of words and characters of a split, from tokenizer.json or the pieces; None if not known."""
        sizes = self.tokenization.splits.get(split) if self.tokenization is not None else None
        if sizes and sizes["sentences"] == len(sentences):
            return Units(sizes["words"] + len(sentences), sizes["characters"] + len(sentences))
        if sizes:
            logger.warning(
                f"{split} has {len(sentences)} sentences, and {sizes['sentences']} by tokenizer.json: its numbers of "
                "words and characters are not used"
            )
        return units_of_pieces(torch.cat(sentences), self.dictionary)

    def build_criterion(self, cfg, from_checkpoint=False):
        """Build the criterion of ``cfg``.

        Raises:
            InputError: a criterion for other tasks; --criterion adaptive_loss without an adaptive softmax, or another
                criterion with one; flags of fairseq-eval-lm; flags that do not go together.
        """
        self._refuse_evaluation()
        if self.cfg.variable_bptt and not self.cfg.sentence_avg:
            logger.warning(
                "--variable-bptt without --sentence-avg: the rate is not scaled with the length of a window, so a "
                "short one counts as much as a long one"
            )
        own = REGISTRIES["criterion"]["registry"].get(cfg._name)
        if own is not None and own.__module__.startswith("fairseq.") and cfg._name not in CRITERIA:
            raise InputError(
                f"--criterion {cfg._name} does not fit this task: use rnndrop_cross_entropy or {', '.join(CRITERIA)}"
            )
        adaptive = self.model is not None and self.model.decoder.adaptive_softmax is not None
        if cfg._name == "adaptive_loss" and not adaptive:
            raise InputError("--criterion adaptive_loss needs --adaptive-softmax-cutoff")
        if adaptive and self.cfg.cuda_graph:
            raise InputError("--cuda-graph cannot hold fairseq's adaptive softmax, which waits for the GPU")
        if adaptive and cfg._name != "adaptive_loss":
            raise InputError("the model has an adaptive softmax: use --criterion adaptive_loss")
        if self.cfg.teachers is not None:
            if cfg._name != "rnndrop_cross_entropy":
                raise InputError("--teachers needs --criterion rnndrop_cross_entropy")
            for path in map(Path, split_teachers(self.cfg.teachers)):
                if path.resolve().parent == Path(self.cfg.save_dir).resolve():
                    raise InputError(f"--teachers: {path}: is in --save-dir, where the training may write over it")
        elif self.cfg.teacher_text:
            raise InputError("--teacher-text needs --teachers")
        if self.cfg.teacher_text < 0:
            raise InputError(f"--teacher-text must not be negative, got {self.cfg.teacher_text}")
        return super().build_criterion(cfg, from_checkpoint)

    def _refuse_evaluation(self) -> None:
        if not self.evaluation.is_static:
            raise InputError(f"the flags of an evaluation are for fairseq-eval-lm: {self.evaluation}")

    def get_batch_iterator(self, dataset, *, max_sentences=None, num_shards=1, shard_id=0, epoch=1, **kwargs):
        """Batches of a stream, ``max_sentences`` rows of this shard each, in its order; prompts are batched by fairseq.

        Raises:
            InputError: there are no rows, or more than the stream can fill.
        """
        if not isinstance(dataset, TokenStream):
            shards = {"num_shards": num_shards, "shard_id": shard_id}
            return super().get_batch_iterator(dataset, max_sentences=max_sentences, epoch=epoch, **shards, **kwargs)
        if max_sentences is None:
            raise InputError(
                "give the rows of the stream by --batch-size; --max-tokens is not used (and fairseq-generate, "
                "which sets it, has no sentences to continue here: use fairseq-interactive)"
            )
        split = next(name for name, stream in self.datasets.items() if stream is dataset)
        rows, steps = max_sentences * num_shards, self.cfg.tokens_per_sample
        seed = self.cfg.seed if self.cfg.variable_bptt and self.trains(kwargs) else None
        taught = self.trains(kwargs) and self.cfg.teachers is not None
        tokens = dataset.tokens
        if taught:  # leave room for the teachers' text, which _learn fills in
            tokens = F.pad(tokens, (0, self.cfg.teacher_text), value=self.dictionary.unk())
        try:
            windows = ContiguousWindows(tokens, self.dictionary, rows, steps, num_shards, shard_id, seed, dataset.units)
        except InputError as error:
            raise InputError(f"{split}: {error}") from error
        if self.trains(kwargs):
            self.train_layout = {"rows": rows, "steps": steps, "tokens": len(tokens)}
            if seed is not None:
                self.train_layout["seed"] = seed
            if taught:
                self.train_layout["teachers"] = self._teachers_digest
            self.train_rows = windows.row_ids
        logger.info(f"{split}: {len(tokens):,} tokens in {rows} row{'s' if rows > 1 else ''}, each from a zero state")
        if taught:
            return WindowIterator(
                windows, epoch, functools.partial(self._learn, windows, dataset.tokens, shard_id == 0)
            )
        return WindowIterator(windows, epoch)

    @functools.cached_property
    def _teachers_digest(self) -> str:
        return teachers.digest(self.cfg.teachers, self.cfg.seed)

    def _learn(self, windows: ContiguousWindows, tokens: Tensor, keeps: bool) -> None:
        """Fill ``windows`` with the training text, the teachers' text, and the words that they expect at each token.

        The teachers read and write once, when the first epoch begins, so a command that stops before does not run
        them. The first process saves their results in --save-dir, for a resume.
        """
        cfg, path = self.cfg, Path(self.cfg.save_dir) / "teachers.pt"
        if self.lesson is None:
            self.lesson = teachers.load(self._teachers_digest, tokens, cfg.teacher_text, path)
        if self.lesson is None:
            device = next(self.model.parameters()).device
            of_task = Teachers(cfg.teachers, cfg.data, RnndropLanguageModelingTask, device, seed=cfg.seed)
            self.lesson = of_task.teach(tokens, cfg.teacher_text)
            if keeps and not cfg.no_save:
                teachers.save(self.lesson, self._teachers_digest, path)
        windows.fill(*self.lesson)

    def eval_lm_dataloader(
        self, dataset: TokenStream, *, batch_size=None, num_shards=1, shard_id=0, context_window=0, **kwargs
    ):
        """Batches for fairseq-eval-lm, of one row unless --batch-size is given.

        Raises:
            InputError: a --context-window (the carried state is the context), no such shard, or see
                :meth:`Evaluation.begin`.
        """
        if context_window:
            raise InputError("--context-window is not used: the carried state already holds all of the context")
        if not 0 <= shard_id < num_shards:
            raise InputError(f"--shard-id must be in [0, {num_shards}), the number of shards, got {shard_id}")
        rows = 1 if batch_size is None else batch_size
        epoch = self.get_batch_iterator(dataset, max_sentences=rows, num_shards=num_shards, shard_id=shard_id)
        batches = epoch.next_epoch_itr(shuffle=False)
        if self.evaluation.is_static:
            return batches
        validation = functools.partial(self._read_in_order, "valid", rows=1)
        training = functools.partial(self._read_in_order, self.cfg.train_subset, rows=100)
        return self.evaluation.begin(self.model, batches, validation, training)

    def _read_in_order(self, split: str, rows: int) -> WindowIterator:
        if split not in self.datasets:
            self.load_dataset(split)
        rows = min(rows, len(self.datasets[split]))
        return self.get_batch_iterator(self.datasets[split], max_sentences=rows).next_epoch_itr(shuffle=False)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """fairseq's training step; with --cuda-graph it uses a CUDA graph."""
        if self.cfg.cuda_graph and not ignore_grad:
            if self.graphed_criterion is None:
                self.graphed_criterion = GraphedCriterion(model, criterion)
            criterion = self.graphed_criterion
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(self, sample, model, criterion):
        """fairseq's validation step, which also logs the batch's numbers of words and characters, if known."""
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        return loss, sample_size, logging_output | {name: sample[name] for name in Units._fields if name in sample}

    def reduce_metrics(self, logging_outputs, criterion):
        """Log the criterion's metrics and, in evaluation, ``word_ppl``, the perplexity per word, and ``bpc``, the bits
        per character, if their numbers are known. These compare models of different tokens.
        """
        super().reduce_metrics(logging_outputs, criterion)
        if not logging_outputs or "words" not in logging_outputs[0]:
            return
        nats = sum(log.get("nll_loss", log["loss"]) for log in logging_outputs)
        words, characters = (sum(log[name] for log in logging_outputs) for name in Units._fields)
        metrics.log_scalar("_bits_per_word", nats / math.log(2) / words, words)
        metrics.log_derived("word_ppl", lambda meters: utils.get_perplexity(meters["_bits_per_word"].avg))
        metrics.log_scalar("bpc", nats / math.log(2) / characters, characters, round=4)

    def gather_state(self, group) -> None:
        """Gather the state of all rows for the checkpoint that the first of several processes is about to write.

        Args:
            group: the processes that train together, all of which call this.
        """
        carried = self.model.decoder.carried[True]
        if carried is not None:
            self.gathered = [torch.cat(all_gather(state, group), dim=1) for state in carried]

    def get_checkpoint_dict(self) -> dict:
        """What a checkpoint saves besides the task's ``state``: how the stream is cut, and the state carried in it."""
        carried = self.gathered or self.model.decoder.carried[True]
        if carried is not None:
            carried = [state.cpu() for state in carried]
        saved = super().get_checkpoint_dict()
        saved[type(self).__name__].update(layout=self.train_layout, carried=carried)
        return saved

    def set_checkpoint_dict(self, saved: dict) -> None:
        """Go on from the state in a checkpoint or, if the rows are different ones, from zero with a warning.

        Raises:
            InputError: the checkpoint is of another dictionary.
        """
        super().set_checkpoint_dict(saved)
        if saved["carried"] is None:
            return
        if saved["layout"] != self.train_layout:
            logger.warning(
                "the state starts from zero and the epoch goes on where it was, as a state can only go on with the "
                f"same rows: the checkpoint's is of {saved['layout']}, now there are {self.train_layout}"
            )
            return
        parameter = next(self.model.parameters())
        self.model.decoder.carried[True] = tuple(state[:, self.train_rows].to(parameter) for state in saved["carried"])

    def build_generator(self, models, args, **kwargs):
        """Build a generator that continues prompts, for fairseq-interactive.

        Raises:
            InputError: the command is fairseq-generate, which would treat the rows of the stream as prompts, or there
                are flags of fairseq-eval-lm or flags that do not go with a continuation.
        """
        self._refuse_evaluation()
        for name, hint in (("score_reference", ": fairseq-eval-lm scores a text"), ("print_alignment", "")):
            if getattr(args, name, None):
                raise InputError(f"{flag_of(name)} does not go with --task rnndrop_language_modeling{hint}")
        if self.datasets:
            raise InputError(
                "fairseq-generate has no sentences to continue: the data are one stream. Use fairseq-interactive "
                "to continue a prompt, fairseq-eval-lm to score a text"
            )
        return super().build_generator(models, args, **kwargs)

    def build_dataset_for_inference(self, src_tokens: list[Tensor], src_lengths: list[int], constraints=None, **kwargs):
        """Prompts for fairseq-interactive: ``</s>`` and the words. Their targets are the words and ``</s>``.

        Raises:
            InputError: --constraints is given.
        """
        if constraints is not None:
            raise InputError("--constraints is not supported by rnndrop_language_modeling")
        eos, pad = self.dictionary.eos(), self.dictionary.pad()
        prompts = ListDataset([torch.cat([t.new_tensor([eos]), t[:-1]]) for t in src_tokens], src_lengths)
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(prompts, pad_idx=pad),
                    "src_lengths": NumelDataset(prompts, reduce=False),
                },
                "target": RightPadDataset(ListDataset(src_tokens, src_lengths), pad_idx=pad),
            },
            sizes=[np.asarray(src_lengths)],
        )

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Continue the prompts of ``sample``, which begin with ``</s>``."""
        if prefix_tokens is None:
            prefix_tokens = sample["net_input"]["src_tokens"][:, 1:]
        size = prefix_tokens.size(1)
        if size >= (limit := int(generator.max_len_a * size + generator.max_len_b)):
            logger.warning(f"a prompt of {size} tokens is not continued: --max-len-b, {limit}, counts them, too")
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
