"""Trained models in Python: scoring and sampling, tagging and classifying.

The method ``from_pretrained`` of language models, taggers and classifiers returns an object of a class of this module.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

import rnndrop_plugin
from rnndrop_plugin.data.indexed import never_written
from rnndrop_plugin.data.text import normalize
from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.tasks import prediction
from rnndrop_plugin.tasks.classification import RnndropClassificationTask
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask
from rnndrop_plugin.tasks.tagging import RnndropTaggingTask

rnndrop_plugin.register()  # pickle imports this module before it reads a task, which must be registered by then


class Pretrained:
    """A trained model with its task, ready to use, on a GPU if there is one.

    Attributes:
        task, model: fairseq's objects.
        tokenization: cuts texts into tokens in the same way as the data that the model was trained on.
    """

    task_class: type[RnndropTask]
    tokenizer: str | None = None  # used if the data do not say how they were cut into tokens

    def __init__(self, task: FairseqTask, model: nn.Module):
        self.task = task
        self.model = model
        self.tokenization = task.tokenization or Tokenization(self.tokenizer)

    @classmethod
    def load(
        cls, path: str | Path, checkpoint_file: str = "checkpoint_best.pt", data: str | Path | None = None
    ) -> Self:
        """See :meth:`rnndrop_plugin.models.loading.FromPretrained.from_pretrained`."""
        path = Path(path)
        return cls(*prediction.load(path / checkpoint_file if path.is_dir() else path, data, cls.task_class))

    def words(self, text: str | Sequence[str]) -> list[str]:
        """The tokens of ``text``, which may already be a list of them.

        Raises:
            ValueError: the text is too long for the tokenizer of tweets.
        """
        if isinstance(text, str):
            return self.tokenization.tokenize(text)
        return [normalize(token, keep_lone=True) for token in text]

    def words_of_all(self, texts: Iterable[str | Sequence[str]]) -> list[list[str]]:
        """The tokens of each text.

        Raises:
            TypeError: ``texts`` is a single text, which would be read as a list of its characters, or one of them is
                neither a text nor a list of tokens.
            ValueError: a text is too long for the tokenizer of tweets.
        """
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got a single one: write [text]")
        texts = list(texts)
        for text in texts:
            tokens = [text] if isinstance(text, str) else text
            if not isinstance(tokens, Sequence) or not all(isinstance(token, str) for token in tokens):
                raise TypeError(f"a text must be a string or a list of tokens, got {text!r}")
        return [self.words(text) for text in texts]


class Score(NamedTuple):
    """How probable a text is.

    Attributes:
        tokens: the text's tokens and ``</s>``, which the model had to predict.
        log_probs: ``(tokens,)``, the natural logarithm of each token's probability.
    """

    tokens: list[str]
    log_probs: Tensor

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return self.log_probs.double().mean().neg().exp().item()  # infinity where math.exp overflows


class PretrainedLanguageModel(Pretrained):
    """A language model that scores texts and continues them.

    Example::

        model = RecurrentLanguageModel.from_pretrained("checkpoints")
        (score,) = model.score(["the cat sat on the mat"])
        print(score.perplexity, list(zip(score.tokens, score.log_probs.tolist())))
        print(model.sample("the cat", seed=1))
    """

    task_class = RnndropLanguageModelingTask

    @torch.no_grad()
    def score(self, texts: Iterable[str | Sequence[str]], carry_state: bool = False) -> list[Score]:
        """The log-probabilities of each text's tokens.

        Args:
            texts: sentences, or lists of their tokens. ``</s>`` is added to each.
            carry_state: read the texts as one stream, as fairseq-eval-lm reads a split. Otherwise each text is read by
                itself.

        Raises:
            TypeError: a single text, or something that is not a text.
        """
        dictionary, scores = self.task.dictionary, []
        for i, words in enumerate(self.words_of_all(texts)):
            targets = [*prediction.encode(words, dictionary).tolist(), dictionary.eos()]
            log_probs = self._log_probs(
                [dictionary.eos(), *targets[:-1]], starts_stream=i == 0 if carry_state else None
            )
            of_targets = log_probs.gather(1, torch.tensor(targets).unsqueeze(1)).squeeze(1)
            scores.append(Score([dictionary[k] for k in targets], of_targets))
        return scores

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str] = "",
        max_tokens: int = 100,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """``prompt`` and a continuation drawn from the model, up to ``</s>`` or ``max_tokens`` more tokens.

        ``<unk>`` is never drawn.

        Args:
            temperature: the logits are divided by it; below 1 likely tokens become even likelier.
            seed: the seed of the draws, to get the same continuation each time.

        Raises:
            TypeError: the prompt is not a text.
            ValueError: the temperature is not above 0, or the number of tokens is negative.
        """
        if max_tokens < 0:
            raise ValueError(f"max_tokens must not be negative, got {max_tokens}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        dictionary, generator = self.task.dictionary, torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        never = [*never_written(dictionary), dictionary.unk()]
        (tokens,), state = self.words_of_all([prompt]), {}
        new = [dictionary.eos(), *prediction.encode(tokens, dictionary).tolist()]
        for _ in range(max_tokens):
            logits = self._log_probs(new, incremental_state=state)[-1].double()
            logits[never] = -math.inf
            logits = (logits - logits.max()) / temperature  # the temperature may be tiny
            logits[never] = -math.inf  # a temperature of infinity has made them NaN
            new = torch.multinomial(logits.softmax(0), 1, generator=generator).tolist()
            if new == [dictionary.eos()]:
                break
            tokens.append(dictionary[new[0]])
        return self.tokenization.detokenize(tokens)

    def _log_probs(self, tokens: list[int], **state) -> Tensor:
        """The log-probabilities of what follows each token, ``(tokens, vocabulary)``, on the CPU."""
        device = next(self.model.parameters()).device
        output = self.model(torch.tensor([tokens], device=device), **state)
        return self.model.get_normalized_probs(output, log_probs=True).squeeze(0).cpu()


class PretrainedTagger(Pretrained):
    """A tagger of sentences.

    Example::

        tagger = RecurrentTagger.from_pretrained("checkpoints")
        tagger.predict(["Anna went to Paris .", ["Bob", "stayed", "."]])
    """

    task_class = RnndropTaggingTask
    tokenizer = "moses"

    def predict(self, sentences: Iterable[str | Sequence[str]], batch_size: int = 64) -> list[list[str]]:
        """The tag of each word. If the model uses IOBES tags, they are converted to IOB2.

        Args:
            sentences: texts, which are cut into words (:attr:`tokenization`), or lists of words.
            batch_size: how many sentences to tag at a time at most; this changes only the speed.

        Raises:
            TypeError: a single text, or something that is not a text.
            ValueError: a batch size below 1.
        """
        words = self.words_of_all(sentences)
        rows = prediction.predict(self.task, self.model, words, batch_size, self.model.decode)
        tags = [[self.task.classes[i] for i in row[: len(w)]] for row, w in zip(rows, words, strict=True)]
        span_tags = self.task.span_tags
        return [span_tags.to_iob2(own) for own in tags] if span_tags is not None and span_tags.iobes else tags


class PretrainedClassifier(Pretrained):
    """A classifier of sequences.

    Example::

        classifier = RecurrentClassifier.from_pretrained("checkpoints")
        (probabilities,) = classifier.predict(["what a day"])
        print(max(probabilities, key=probabilities.get))
    """

    task_class = RnndropClassificationTask
    tokenizer = "tweets"

    def predict(self, texts: Iterable[str | Sequence[str]], batch_size: int = 64) -> list[dict[str, float]]:
        """The probability of each label, by its name; an empty dictionary for a text without words.

        Args:
            texts: texts, which are cut into words (:attr:`tokenization`), or lists of words.
            batch_size: how many texts to classify at a time at most; this changes only the speed.

        Raises:
            TypeError: a single text, or something that is not a text.
            ValueError: a batch size below 1, or a text that is too long for the tokenizer of tweets.
        """
        words = self.words_of_all(texts)
        rows = prediction.predict(
            self.task, self.model, words, batch_size, lambda logits, _: logits.float().softmax(dim=1)
        )
        return [dict(zip(self.task.classes, row, strict=False)) for row in rows]  # not strict: a text without words
