"""Prepare the messages of SemEval's sentiment tasks, and weakly labelled tweets, for classification with fairseq."""

import argparse
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rnndrop_plugin.cli.arguments import add_vectors_argument, positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.labelled import write_streams
from rnndrop_plugin.cli.splits import UNK, describe_dictionary
from rnndrop_plugin.cli.vocabulary import prepare_words
from rnndrop_plugin.data.text import find_file, read_lines
from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.data.tweets import tokenize
from rnndrop_plugin.errors import at
from rnndrop_plugin.progress import progress_bar

LABELS = ("positive", "negative", "neutral")
TRAIN = "twitter-2013train-A.txt"
VALID = "twitter-2013dev-A.txt"
TEST_2014 = "semeval2014-task9-test-B-gold.txt"
TEST_2015 = "twitter-2015test-A.txt"
PARTS_2014 = {"twitter13": "T13", "sms13": "SM", "livejournal14": "LJ", "twitter14": "T14", "sarcasm14": "TS"}
# How many messages are positive, negative and neutral. The counts of train are those of its cleansed release.
PUBLISHED = {
    "train": (3640, 1458, 4586),
    "valid": (575, 340, 739),
    "twitter13": (1572, 601, 1640),
    "sms13": (492, 394, 1207),
    "livejournal14": (427, 304, 411),
    "twitter14": (982, 202, 669),
    "sarcasm14": (33, 40, 13),
    "twitter15": (1038, 365, 987),
}


class Message(NamedTuple):
    """A message and its label.

    Attributes:
        place: its file and line, for error messages.
        id: its number, or its words if it has no number.
        label: one of ``LABELS``.
        words: its words.
        test_id: its number in the test of 2014, "" for other messages.
    """

    place: str
    id: str
    label: str
    words: list[str]
    test_id: str = ""


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The numbers and lines of a file, with a progress bar."""
    yield from progress_bar(enumerate(read_lines(path), 1), desc=path.name, unit=" lines")


def unquote(text: str) -> str:
    """Undo the quotation marks that CSV writers have put around a text and doubled within it, some of them twice.

    Some writers put a backslash before a mark, and some files have lost only the outer marks.
    """
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return re.sub(r'\\?"+', '"', text)


def read_labelled(path: Path, columns: Sequence[str] = ("id", "label", "text")) -> list[Message]:
    """The messages of a file, one per line, with tabs between columns. Quotation marks do not enclose columns.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or a line is malformed or has no text.
    """
    messages = []
    for number, line in numbered(path):
        place = f"{path}, line {number}"
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise ValueError(
                f"{place}: {len(fields)} columns separated by tabs, expected {len(columns)} ({', '.join(columns)})"
            )
        row = dict(zip(columns, fields, strict=True))
        if row["label"] not in LABELS:
            raise ValueError(f"{place}: label {reprlib.repr(row['label'])}, expected one of {', '.join(LABELS)}")
        text = unquote(row["text"].strip())
        if text == "Not Available":
            raise ValueError(f"{place}: the text is 'Not Available', expected a distribution that has all texts")
        with at(place):
            words = tokenize(text)
        if not words:
            raise ValueError(f"{place}: the text is empty")
        messages.append(Message(place, row["id"], row["label"], words, row.get("test id", "")))
    return messages


def read_2014(path: Path) -> dict[str, list[Message]]:
    """The messages of the test of 2014 by test set, which is determined by the first letters of a test id."""
    parts: dict[str, list[Message]] = {name: [] for name in PARTS_2014}
    for message in read_labelled(path, ("id", "test id", "label", "text")):
        name = next((name for name, prefix in PARTS_2014.items() if message.test_id.startswith(prefix)), None)
        if name is None:
            raise ValueError(
                f"{message.place}: test id {reprlib.repr(message.test_id)}, expected one that begins with "
                f"{', '.join(PARTS_2014.values())}"
            )
        parts[name].append(message)
    for name, prefix in PARTS_2014.items():
        if not parts[name]:
            raise ValueError(f"{path}: has no message of {name}, whose test ids begin with {prefix}")
    return parts


def read_weak(path: Path, label: str) -> list[Message]:
    """The tweets of a file, one per line, without their smileys. A tweet may have no words left."""
    messages = []
    for number, line in numbered(path):
        place = f"{path}, line {number}"
        with at(place):
            words = tokenize(line, smileys=False)
        messages.append(Message(place, " ".join(words), label, words))
    return messages


def select(messages: list[Message], evaluation: list[Message]) -> tuple[list[Message], Counter[str]]:
    """The messages to train on: those that have only one label and are in no validation or test set, each once.

    Returns:
        These messages, and how many messages were left out, by the reason.

    Raises:
        ValueError: no message is left.
    """
    labels = defaultdict(set)
    for message in messages:
        labels[message.id].add(message.label)
    ids = {message.id for message in evaluation}
    texts = {tuple(message.words) for message in evaluation}
    kept: dict[str, Message] = {}
    dropped: Counter[str] = Counter()
    for message in messages:
        if not message.words:
            dropped["without words"] += 1
        elif len(labels[message.id]) > 1:
            dropped["with two labels"] += 1
        elif message.id in kept:
            dropped["repeated"] += 1
        elif message.id in ids:
            dropped["in a validation or test set by id"] += 1
        elif tuple(message.words) in texts:
            dropped["in a validation or test set by text"] += 1
        else:
            kept[message.id] = message
    if not kept:
        raise ValueError(f"{messages[0].place} and all after it: nothing to train on, {format_counts(dropped)}")
    return list(kept.values()), dropped


def format_counts(counts: Counter[str]) -> str:
    """Counts as a text, such as "3 repeated, 2 without words"."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "none"


def format_messages(messages: list[Message]) -> str:
    """How many messages there are, in total and with each label."""
    labels = Counter(message.label for message in messages)
    return f"{len(messages):,} messages ({format_counts(Counter({label: labels[label] for label in LABELS}))})"


def compare_with_published(split: str, messages: list[Message]) -> str:
    """How the counts of a split compare with the published ones."""
    labels = Counter(message.label for message in messages)
    published = Counter(dict(zip(LABELS, PUBLISHED[split], strict=True)))
    return "as published" if labels == published else f"published: {published.total():,} ({format_counts(published)})"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare SemEval's messages, which are positive, negative or neutral, for classification with "
        "fairseq: writes their words, the words' capitalisation and the labels into DEST/word, DEST/capitalisation and "
        "DEST/label, each with dict.txt and {train,valid,twitter13,sms13,livejournal14,twitter14,sarcasm14,twitter15}."
        f"{{bin,idx}}. The source folder holds {TRAIN}, {VALID}, {TEST_2014} and {TEST_2015}, which may be .gz, in "
        "UTF-8. What distributions have done to the texts (escapes, quotation marks, double encoding) is undone. User "
        "names become <user>, links become <url>, and NLTK's tokenizer for tweets cuts the texts into words. Training "
        "messages that occur with two labels, or in a validation or test set, are left out. Validation and test sets "
        "are complete.",
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder with the four text files")
    add_destination_argument(parser)
    parser.add_argument(
        "--weak",
        type=Path,
        metavar="DIR",
        help="folder with positive.txt and negative.txt (may be .gz), one tweet per line, for pre-training. They "
        "become DEST/weak, a data folder with the same dictionaries; its train has the tweets and its valid is "
        "SemEval's. The smileys, which gave the tweets their labels, are removed",
    )
    add_vectors_argument(parser, "DEST/vectors.txt (for DEST/weak, too)")
    parser.add_argument(
        "--min-count",
        type=positive,
        default=5,
        metavar="N",
        help="replace words without a vector that occur fewer than N times in the training texts, including the weakly "
        "labelled ones, by <unk> (default: %(default)s, because smileys and abbreviations that the vectors lack are "
        "worth learning, and rarer words cannot be learned)",
    )
    args = parser.parse_args()

    paths = {name: find_file(args.source, (name,)) for name in (TRAIN, VALID, TEST_2014, TEST_2015)}
    weak_paths = {label: find_file(args.weak, (f"{label}.txt",)) for label in LABELS[:2]} if args.weak else {}
    with destination(args.dest) as folder:
        train = read_labelled(paths[TRAIN])
        evaluation = {
            "valid": read_labelled(paths[VALID]),
            **read_2014(paths[TEST_2014]),
            "twitter15": read_labelled(paths[TEST_2015]),
        }
        weak = [message for label, path in weak_paths.items() for message in read_weak(path, label)]

        held_out = [message for messages in evaluation.values() for message in messages]
        kept, dropped = select(train, held_out)
        read = f"{format_messages(train)}, {compare_with_published('train', train)}"
        lines = [f"{paths[TRAIN]}: {read}; left out: {format_counts(dropped)}"]
        weak_kept: list[Message] = []
        if weak:
            weak_kept, dropped = select(weak, held_out)
            lines.append(f"{args.weak}: {format_messages(weak)}; left out: {format_counts(dropped)}")
        training = kept + weak_kept

        words, coverage = prepare_words(folder, args.vectors, training, held_out, args.min_count)
        lines += coverage

        splits = {"train": kept, **evaluation}
        Tokenization("tweets").save(folder)
        entries, counts = write_streams(folder, splits, words, training, LABELS)
        if weak:
            pretraining = {"train": weak_kept, "valid": evaluation["valid"]}
            counts["weak/train"] = write_streams(folder / "weak", pretraining, words, training, LABELS)[1]["train"]
            splits["weak/train"] = weak_kept
            Tokenization("tweets").save(folder / "weak")
    for line in lines:
        print(line)
    for name, messages in splits.items():
        size = counts[name].tokens - len(messages)
        line = f"{name}: {format_messages(messages)}, {size:,} words, {counts[name].unknown:,} of them {UNK}"
        print(f"{line}; {compare_with_published(name, messages)}" if name in evaluation else line)
    print(describe_dictionary(args.dest, entries))
