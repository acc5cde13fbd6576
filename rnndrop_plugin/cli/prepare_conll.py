"""Prepare CoNLL-2003, or other files with a word and its entity tag on each line, for tagging with fairseq."""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rnndrop_plugin.cli.arguments import add_column_arguments, add_vectors_argument, positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.splits import SPECIAL, SPLITS, UNK, Sentence, write_splits
from rnndrop_plugin.cli.vocabulary import prepare_words, word_streams
from rnndrop_plugin.data.columns import read_sentences
from rnndrop_plugin.data.entity_tags import Tagged, check_types, tag_scheme, to_iob2, to_iobes
from rnndrop_plugin.data.streams import CHARACTERS, TAG
from rnndrop_plugin.data.text import find_file, zero_digits
from rnndrop_plugin.data.tokenization import Tokenization

# The (sentences, words, entities of each type) of the CoNLL-2003 shared task, not counting -DOCSTART- lines
PUBLISHED = {
    "eng.train": (14041, 203621, {"LOC": 7140, "MISC": 3438, "ORG": 6321, "PER": 6600}),
    "eng.testa": (3250, 51362, {"LOC": 1837, "MISC": 922, "ORG": 1341, "PER": 1842}),
    "eng.testb": (3453, 46435, {"LOC": 1668, "MISC": 702, "ORG": 1661, "PER": 1617}),
}


def describe(sentences: list[Tagged], kept: set[str], path: Path, plain_tags: bool) -> str:
    """The counts of a split, compared with the published ones if the file has the name of a published file."""
    words = [word for sentence in sentences for word in sentence.words]
    unknown = sum(word not in kept for word in words)  # this includes words that are <unk> in the text itself
    comparison = ""
    if plain_tags:
        tags = {tag for sentence in sentences for tag in sentence.tags}
        numbers = f"{len(sentences):,} sentences, {len(words):,} words, {len(tags)} tags"
    else:
        entities = Counter(tag[2:] for sentence in sentences for tag in sentence.tags if tag[0] in "BS")
        numbers = counts(len(sentences), len(words), entities)
        if published := PUBLISHED.get(path.name.removesuffix(".gz")):
            same = published == (len(sentences), len(words), entities)
            comparison = "; as published" if same else f"; the published file has {counts(*published)}"
    return f"{numbers}; {unknown:,} words are {UNK}{comparison}; from {path}"


def entity_tags(splits: dict[str, list[Tagged]], training: Path, letters: str) -> list[str]:
    """All tags of the entity types in the training file, including tags that do not occur.

    Args:
        letters: the letters of the tag scheme, such as "BI".

    Raises:
        ValueError: the training file has no entity, or another split has an entity of another type.
    """
    types = sorted({tag[2:] for sentence in splits["train"] for tag in sentence.tags if tag != "O"})
    if not types:
        raise ValueError(f"{training}: has no entity, all tags are O; --plain-tags reads tags that mark none")
    for split in SPLITS[1:]:
        check_types(splits[split], types, training)
    return ["O", *(f"{prefix}-{name}" for name in types for prefix in letters)]


def plain_tags(splits: dict[str, list[Tagged]], training: Path) -> list[str]:
    """All tags of all files, so that a rare tag that the training file lacks counts as an error in evaluation.

    Raises:
        ValueError: there are fewer than two tags, or one is a symbol of fairseq's own.
    """
    tags = sorted({tag for part in splits.values() for sentence in part for tag in sentence.tags})
    if len(tags) < 2:
        raise ValueError(f"{training}: all tags are {tags[0]}; two or more are needed")
    for sentence in [sentence for part in splits.values() for sentence in part]:
        for i, tag in enumerate(sentence.tags):
            if tag in SPECIAL:
                raise ValueError(f"{sentence.place(i)}: {tag} is a symbol of fairseq's own, which a tag must not be")
    return tags


def counts(sentences: int, words: int, entities: dict[str, int]) -> str:
    """The counts as a text."""
    types = ", ".join(f"{count:,} {name}" for name, count in sorted(entities.items()))
    return f"{sentences:,} sentences, {words:,} words, {sum(entities.values()):,} entities ({types or 'none'})"


def change(splits: dict[str, list[Tagged]], of: Callable[[Tagged], Tagged]) -> dict[str, list[Tagged]]:
    """The splits with ``of`` applied to each sentence."""
    return {split: [of(sentence) for sentence in part] for split, part in splits.items()}


def read(args: argparse.Namespace, paths: dict[str, Path]) -> tuple[dict[str, list[Tagged]], list[str], str]:
    """The sentences of each split with the tags to write, all tags, and a short description of the tags."""
    splits = {
        split: read_sentences(
            path, args.encoding, args.separator, args.word_column, args.tag_column, any_tags=args.plain_tags
        )
        for split, path in paths.items()
    }
    if args.zero_digits:
        splits = change(splits, lambda sentence: sentence._replace(words=[*map(zero_digits, sentence.words)]))
    if args.plain_tags:
        return splits, plain_tags(splits, paths["train"]), "tags as they are"
    scheme = tag_scheme(splits["train"])
    splits = change(splits, lambda sentence: to_iob2(sentence, scheme))
    name, letters = "IOB2", "BI"
    if args.iobes:
        splits = change(splits, lambda sentence: sentence._replace(tags=to_iobes(sentence.tags)))
        name, letters = "IOBES", "BIES"
    return splits, entity_tags(splits, paths["train"], letters), f"tags of {scheme} as {name}"


def write(folder: Path, splits: dict[str, list[Tagged]], kept: set[str], tags: list[str]) -> dict[str, int]:
    """Write each stream into a sub-folder. Returns the number of entries of each dictionary.

    Args:
        kept: the words of the dictionary; other words become ``<unk>``.
        tags: all tags, whether they occur or not.
    """
    streams = word_streams(kept) | {TAG: (lambda sentence: sentence.tags, tags)}
    entries = {}
    for stream, (symbols_of, symbols) in streams.items():
        parts = {
            split: [Sentence(sentence.place(), symbols_of(sentence)) for sentence in part]
            for split, part in splits.items()
        }
        entries[stream], _ = write_splits(folder / stream, parts, symbols=symbols)
    parts = {
        split: [Sentence(sentence.place(i), word) for sentence in part for i, word in enumerate(sentence.words)]
        for split, part in splits.items()
    }
    entries[CHARACTERS], _ = write_splits(folder / CHARACTERS, parts, min_count=2)  # rarer ones become <unk>
    return entries


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare CoNLL-2003, or other files with a word and its entity tag on each line, for tagging with "
        "fairseq: writes the words, their characters, their capitalisation and the tags to DIR/word, DIR/characters, "
        "DIR/capitalisation and DIR/tag (dict.txt and {train,valid,test}.{bin,idx} in each), and with --vectors the "
        "words' vectors to DIR/vectors.txt. A blank line ends a sentence; lines that begin with -DOCSTART- are left "
        "out. The tags may be IOB1, IOB2 (BIO) or IOBES, which is found out from the training file. They are written "
        "as IOB2, or with --iobes as IOBES. The following become <unk>: words that are not in the training file and "
        "have no vector, words that are symbols of fairseq's own, such as <pad>, and characters that occur fewer than "
        "two times in the training file.",
    )
    parser.add_argument(
        "--source", type=Path, required=True, metavar="DIR", help="folder with the files, which may be .gz"
    )
    add_destination_argument(parser)
    for split, name in zip(SPLITS, PUBLISHED, strict=True):
        parser.add_argument(
            f"--{split}", default=name, metavar="NAME", help=f"file for {split} in --source (default: %(default)s)"
        )
    add_column_arguments(parser)
    tags_as = parser.add_mutually_exclusive_group()
    tags_as.add_argument(
        "--iobes",
        action="store_true",
        help="write the tags of entities in IOBES, which also marks the last word of an entity and entities of one "
        "word. The model's predictions are still written in IOB2",
    )
    tags_as.add_argument(
        "--plain-tags",
        action="store_true",
        help="take each tag as it is; for tags that mark no entities, such as parts of speech. For the universal parts "
        "of speech of a CoNLL-U file add --separator '\\t' --word-column 1 --tag-column 3",
    )
    parser.add_argument(
        "--zero-digits",
        action="store_true",
        help="write 0 for each digit of a word, so that numbers that the training file lacks are known; `rnndrop tag` "
        "then reads numbers in the same way",
    )
    add_vectors_argument(parser)
    parser.add_argument(
        "--min-count",
        type=positive,
        default=1,
        metavar="N",
        help="replace words without a vector that occur fewer than N times in the training file by <unk> (default: "
        "%(default)s, no cut-off)",
    )
    args = parser.parse_args()

    paths = {split: find_file(args.source, (getattr(args, split),)) for split in SPLITS}
    with destination(args.dest) as folder:
        splits, tags, what = read(args, paths)
        held_out = [sentence for split in SPLITS[1:] for sentence in splits[split]]
        kept, coverages = prepare_words(folder, args.vectors, splits["train"], held_out, args.min_count)
        entries = write(folder, splits, kept, tags)
        if args.zero_digits:
            Tokenization("moses", zero_digits=True).save(folder)
    for split, path in paths.items():
        print(f"{split}: {describe(splits[split], kept, path, args.plain_tags)}")
    for line in coverages:
        print(line)
    sizes = ", ".join(f"{number:,} of {stream}" for stream, number in entries.items())
    print(f"{args.dest}: {what}; dictionary entries: {sizes}, <s>, <pad>, </s> and <unk> among each")
