"""How the text of a data folder was cut into tokens.

``rnndrop prepare`` writes this beside the data, as tokenizer.json. Everything that reads new text for a model trained
on the data (scoring, sampling, tagging) cuts the text in the same way.
"""

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rnndrop_plugin.data.text import characters, lower_case, normalize

FILE = "tokenizer.json"
SIZES = ("sentences", "words", "characters")  # of a split, before it was cut
TOKENIZERS = ("moses", "tweets", "characters", None)  # None: at blanks


@dataclass
class Tokenization:
    """How a text becomes tokens.

    Attributes:
        tokenizer: what cuts a text into words: ``"moses"`` (sacremoses), ``"tweets"`` (user names and links replaced,
            as for SemEval), ``"characters"`` (each a token, ``_`` for a blank, as in the character-level Penn Treebank)
            or None, where words stand between blanks.
        language: the language of sacremoses's rules.
        lower: whether the text is lower-cased first.
        bpe: ``"sentencepiece"`` if a sentencepiece model cuts the text instead of a tokenizer, else None.
        model: the file of that model in the data folder.
        zero_digits: whether a model reads each digit of a word as 0, see :func:`rnndrop_plugin.data.text.zero_digits`;
            the tokens keep their digits.
        splits: what each split had before it was cut, see :func:`text_sizes`.
    """

    tokenizer: str | None = None
    language: str = "en"
    lower: bool = False
    bpe: str | None = None
    model: str | None = None
    zero_digits: bool = False
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    folder: Path | None = field(default=None, repr=False, compare=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into ``folder``."""
        content = {**self.settings(), "splits": self.splits}
        (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def settings(self) -> dict:
        """What a checkpoint keeps: everything but the sizes of the splits and the folder."""
        return {name: value for name, value in asdict(self).items() if name not in ("splits", "folder")}

    @classmethod
    def load(cls, folder: Path) -> "Tokenization | None":
        """The tokenization in ``folder``/tokenizer.json, None if there is no such file.

        Raises:
            ValueError: the file does not hold a tokenization.
            OSError: it cannot be read.
        """
        path = Path(folder, FILE)
        if not path.exists():
            return None
        try:
            tokenization = cls(**json.loads(path.read_text(encoding="utf-8")), folder=Path(folder))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not written by rnndrop prepare: {error}") from error
        if tokenization.tokenizer not in TOKENIZERS or tokenization.bpe not in ("sentencepiece", None):
            raise ValueError(f"{path}: unknown tokenizer {tokenization.tokenizer!r} or bpe {tokenization.bpe!r}")
        if tokenization.bpe and not isinstance(tokenization.model, str):
            raise ValueError(f"{path}: bpe {tokenization.bpe!r} without the file of a model")
        if not _are_sizes(tokenization.splits):
            raise ValueError(
                f"{path}: splits must give each split's sentences, words and characters, got {tokenization.splits}"
            )
        return tokenization

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one sentence.

        Raises:
            ValueError: the sentence is too long for the tokenizer of tweets.
        """
        text = normalize(text).strip()
        if self.lower:
            text = lower_case(text)
        if self.bpe:
            return self._sentencepiece.encode(text, out_type=str)
        if self.tokenizer == "moses":
            return _moses(self.language).tokenize(text, escape=False)
        if self.tokenizer == "tweets":
            from rnndrop_plugin.data import tweets  # nltk takes a second to import

            return tweets.tokenize(text)
        return list(characters(text)) if self.tokenizer == "characters" else text.split()

    def detokenize(self, tokens: list[str]) -> str:
        """The sentence that ``tokens`` make up; blanks may differ from those of the original text."""
        if self.bpe:
            return self._sentencepiece.decode(tokens)
        if self.tokenizer == "moses":
            return _moses_back(self.language).detokenize(tokens, unescape=False)
        return "".join(tokens).replace("_", " ") if self.tokenizer == "characters" else " ".join(tokens)

    @functools.cached_property
    def _sentencepiece(self):
        import sentencepiece

        path = Path(self.folder, self.model)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; it cut the text that the model was trained on: copy it from the data folder"
            )
        return sentencepiece.SentencePieceProcessor(model_file=str(path))


def text_sizes(texts: Iterable[str]) -> dict[str, int]:
    """The sizes of a split in tokenizer.json: its sentences, their words between blanks and their characters without
    line ends."""
    sizes = dict.fromkeys(SIZES, 0)
    for text in texts:
        for name, number in zip(SIZES, (1, len(text.split()), len(text)), strict=True):
            sizes[name] += number
    return sizes


def _are_sizes(splits: object) -> bool:
    """Whether ``splits`` has the form that it has in :class:`Tokenization`."""
    sizes = list(splits.values()) if isinstance(splits, dict) else [None]
    return all(
        isinstance(split, dict)
        and split.keys() == set(SIZES)
        and all(type(size) is int and size >= 0 for size in split.values())
        for split in sizes
    )


@functools.cache
def _moses(language: str):
    from sacremoses import MosesTokenizer

    return MosesTokenizer(language)


@functools.cache
def _moses_back(language: str):
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(language)
