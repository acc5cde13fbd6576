"""Tagging: a tag for each word, such as those of named entities."""

import logging
from dataclasses import dataclass, field
from typing import Optional

from fairseq.tasks import register_task
from torch import Tensor

from rnndrop_plugin.data.sequence_dataset import TaggedSentences
from rnndrop_plugin.data.spans import SpanTags
from rnndrop_plugin.data.streams import TAG
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.tagger import RecurrentTagger
from rnndrop_plugin.tasks.sequence_task import SequencesConfig, SequencesTask

logger = logging.getLogger(__name__)


@dataclass
class RnndropTaggingConfig(SequencesConfig):
    extract_length: Optional[int] = field(
        default=None,
        metadata={
            "help": "train on a random extract of at most this many words of each sentence, drawn anew in each epoch "
            "(default: whole sentences)"
        },
    )


@register_task("rnndrop_tagging", dataclass=RnndropTaggingConfig)
class RnndropTaggingTask(SequencesTask):
    """Train recurrent taggers, on extracts of sentences if wanted, and evaluate them on whole sentences (section 4.4).

    Attributes:
        span_tags: reads the spans that the tags mark; None if they mark no spans.
    """

    target_stream = TAG
    model_class = RecurrentTagger
    model_kind = "a tagger"
    criterion = "rnndrop_tagging"

    def __init__(self, cfg: RnndropTaggingConfig, dictionaries, **kwargs):
        super().__init__(cfg, dictionaries)
        if cfg.extract_length is not None and cfg.extract_length < 1:
            raise InputError(f"--extract-length must be at least 1, got {cfg.extract_length}")
        try:
            self.span_tags = SpanTags(self.classes)
        except ValueError as error:
            self.span_tags = None
            logger.info(f"the tags do not mark spans ({error}): f1 is the mean F1 of the tags")

    def targets_of(self, words: Tensor) -> int:
        return len(words)

    def make_dataset(self, words, features, targets, split) -> TaggedSentences:
        extract_length = self.cfg.extract_length if split == self.cfg.train_subset else None
        return TaggedSentences(
            words,
            features,
            targets,
            self.source_dictionary.pad(),
            extract_length=extract_length,
            seed=self.cfg.seed,
        )
