"""Prepare texts with any labels for classification with fairseq."""

import argparse
import random
import reprlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rnndrop_plugin.cli.arguments import (
    SHARE,
    add_split_arguments,
    add_vectors_argument,
    check_split_arguments,
    language,
    positive,
)
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.labelled import write_streams
from rnndrop_plugin.cli.splits import SPECIAL, UNK, cut, describe_dictionary
from rnndrop_plugin.cli.vocabulary import prepare_words
from rnndrop_plugin.data.text import read_lines
from rnndrop_plugin.data.tokenization import Tokenization, text_sizes
from rnndrop_plugin.errors import at
from rnndrop_plugin.progress import progress_bar


class Text(NamedTuple):
    """A labelled text.

    Attributes:
        place: its file and line, for error messages.
        label: the name of its class.
        text: the text as it is in the file.
        words: its words.
    """

    place: str
    label: str
    text: str
    words: list[str]


def read_texts(path: Path, tokenization: Tokenization) -> list[Text]:
    """The texts of a file with a label, a tab and a text on each line that is not blank.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or a line has no label or no words.
    """
    texts = []
    lines = read_lines(path)
    for number, line in enumerate(progress_bar(lines, desc=path.name, unit=" lines"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        label, tab, text = line.partition("\t")
        label, text = " ".join(label.split()), text.strip()
        if not tab or not label:
            raise ValueError(f"{place}: {reprlib.repr(line)}, expected a label, a tab and a text")
        if label in SPECIAL:
            raise ValueError(f"{place}: {label} is a symbol of fairseq's own, which a label must not be")
        with at(place):
            words = tokenization.tokenize(text)
        if not words:
            raise ValueError(f"{place}: the text is empty")
        texts.append(Text(place, label, text, words))
    return texts


def split(texts: list[Text], valid: float, test: float, seed: int) -> dict[str, list[Text]]:
    """Split the texts at random into three parts, each of which keeps the order of its texts."""
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    return {name: [texts[i] for i in sorted(part)] for name, part in cut(order[::-1], valid, test).items()}


def check_labels(splits: dict[str, list[Text]]) -> list[str]:
    """The labels of the training texts, in alphabetical order.

    Raises:
        ValueError: there are fewer than two labels, or a text of another split has another label.
    """
    labels = sorted({text.label for text in splits["train"]})
    if len(labels) < 2:
        raise ValueError(f"{splits['train'][0].place} and all after it: one label, {labels[0]}; two or more are needed")
    for text in [text for texts in splits.values() for text in texts]:
        if text.label not in labels:
            shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
            raise ValueError(f"{text.place}: label {reprlib.repr(text.label)} is not in the training texts ({shown})")
    return labels


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare texts with any labels for classification with fairseq. Each line of the files (UTF-8, may "
        "be .gz) has a label, a tab and a text. Writes the words of the texts, their "
        "capitalisation and the labels into DIR/word, DIR/capitalisation and DIR/label, each with dict.txt and "
        "{train,valid,test}.{bin,idx}, and tokenizer.json, which says how the texts were cut into words. Words that "
        "are rarer than --min-count in the training texts and have no vector become <unk>.",
    )
    add_split_arguments(
        parser, "labelled texts to split at random, in one or more files", "the texts are drawn at random"
    )
    add_destination_argument(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random split (default: 1)")
    parser.add_argument(
        "--tokenizer",
        choices=("moses", "tweets", "blanks"),
        default="moses",
        help="how to cut a text into words: moses, by sacremoses; tweets, by NLTK's tokenizer for tweets, with user "
        "names and links replaced; blanks, only at blanks (default: %(default)s)",
    )
    parser.add_argument(
        "--language",
        type=language,
        metavar="CODE",
        help="language of sacremoses's rules, such as de (default: en)",
    )
    parser.add_argument("--lower", action="store_true", help="lower-case the texts first")
    add_vectors_argument(parser)
    parser.add_argument(
        "--min-count",
        type=positive,
        default=2,
        metavar="N",
        help="replace words without a vector that occur fewer than N times in the training texts by <unk> (default: "
        "%(default)s)",
    )
    args = parser.parse_args()
    named = check_split_arguments(parser, args)
    if named and "train" not in named:
        parser.error("--train is needed to make the dictionaries")
    if named and args.seed is not None:
        parser.error("--seed goes with FILE, which is split at random")
    if args.language and args.tokenizer != "moses":
        parser.error("--language goes with --tokenizer moses")

    tokenizer = None if args.tokenizer == "blanks" else args.tokenizer
    tokenization = Tokenization(tokenizer, args.language or "en", args.lower)
    if named:
        splits = {name: [t for path in paths for t in read_texts(path, tokenization)] for name, paths in named.items()}
    else:
        texts = [text for path in args.files for text in read_texts(path, tokenization)]
        seed = 1 if args.seed is None else args.seed
        splits = split(texts, args.valid_fraction or SHARE, args.test_fraction or SHARE, seed)
    labels = check_labels(splits)
    evaluation = [text for name, texts in splits.items() if name != "train" for text in texts]
    with destination(args.dest) as folder:
        words, lines = prepare_words(folder, args.vectors, splits["train"], evaluation, args.min_count)
        entries, counts = write_streams(folder, splits, words, splits["train"], labels)
        tokenization.splits = {name: text_sizes(text.text for text in texts) for name, texts in splits.items()}
        tokenization.save(folder)
    for line in lines:
        print(line)
    for name, texts in splits.items():
        of_labels = Counter(text.label for text in texts)
        shown = ", ".join(f"{of_labels[label]:,} {label}" for label in labels)
        size = counts[name].tokens - len(texts)
        print(f"{name}: {len(texts):,} texts ({shown}), {size:,} words, {counts[name].unknown:,} of them {UNK}")
    print(describe_dictionary(args.dest, entries))
