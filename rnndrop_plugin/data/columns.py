"""Files of columns, a word and its tag on each line, and the schemes of tags for entities."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rnndrop_plugin.data.text import read_lines

BLANKS = " \t\r"
TAG = re.compile(r"O|[BIES]-\S+")
WORD_NUMBER = re.compile(r"\d+([-.]\d+)?")  # in CoNLL-U; with a second number it is of no word


class Tagged(NamedTuple):
    """A sentence, one word and tag a line.

    Attributes:
        path: the file it stands in.
        lines: where each word stands, from 1.
        words, tags: equally many, or no tags where none are read.
    """

    path: Path
    lines: Sequence[int]
    words: list[str]
    tags: list[str]

    def place(self, i: int = 0) -> str:
        """Where its ``i``-th word stands."""
        return f"{self.path}, line {self.lines[i]}"


def read_sentences(
    path: Path,
    encoding: str,
    separator: str | None,
    word_column: int,
    tag_column: int | None,
    *,
    any_tags: bool = False,
) -> list[Tagged]:
    """The sentences of a file, which blank lines and ``-DOCSTART-`` lines separate.

    Comments before a sentence, lines that begin with #, are left out, and so are the lines of CoNLL-U for multi-word
    tokens (1-2) and empty nodes (1.1).

    Args:
        separator: what is between two columns; None for any number of blanks and tabs.
        word_column, tag_column: counted from 0, or from the last one, which is -1; without a tag_column no tags are
            read.
        any_tags: read tags that mark no entities, such as parts of speech, too.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or has no sentence, a line has other columns than the first one, or no tag.
    """
    numbered = [*enumerate(read_lines(path, encoding, keep_lone=True), 1)]
    rows = {number: _split(line, separator) for number, line in numbered if not _separates(line)}
    certain = {number: fields for number, fields in rows.items() if fields[0][:1] != "#"} or rows  # no comments
    first = next(iter(certain), None)
    if first is None:
        raise ValueError(f"{path}: has no sentence")
    columns = len(certain[first])
    _check_columns(f"{path}, line {first}", columns, word_column, tag_column)
    numbers_words = word_column % columns > 0 and WORD_NUMBER.fullmatch(certain[first][0]) is not None
    telling = -1 if tag_column is None else tag_column
    seen = {fields[telling] for fields in certain.values() if len(fields) == columns} | {"#"}

    def is_comment(fields: list[str]) -> bool:
        """Whether a line before a sentence is one, or has the token # with what other tokens have."""
        if fields[0][:1] != "#":
            return False
        if numbers_words or len(fields) != columns:
            return True
        known = fields[telling] in seen or (fields[0] != "#" if tag_column is None else TAG.fullmatch(fields[telling]))
        return columns > 1 and not known

    sentences: list[Tagged] = []
    sentence = Tagged(path, [], [], [])
    for number, _ in numbered:
        if number not in rows:
            if sentence.words:
                sentences.append(sentence)
                sentence = Tagged(path, [], [], [])
            continue
        place, fields = f"{path}, line {number}", rows[number]
        if not sentence.words and is_comment(fields):
            continue
        if len(fields) != columns:
            raise ValueError(f"{place}: has {len(fields)} columns, the file's first line has {columns}")
        if numbers_words and (match := WORD_NUMBER.fullmatch(fields[0])) and match[1]:
            continue
        word = fields[word_column]
        if not word or set(word) & set(BLANKS):
            raise ValueError(f"{place}: {word!r} is not a word" if word else f"{place}: has no word")
        sentence.lines.append(number)
        sentence.words.append(word)
        if tag_column is not None:
            tag = fields[tag_column]
            if not any_tags:
                check_tag(place, tag)
            elif not tag:
                raise ValueError(f"{place}: has no tag")
            sentence.tags.append(tag)
    if sentence.words:
        sentences.append(sentence)
    if not sentences:
        raise ValueError(f"{path}: has no sentence")
    return sentences


def _separates(line: str) -> bool:
    return not line.strip() or line.startswith("-DOCSTART-")


def _split(line: str, separator: str | None) -> list[str]:
    if separator:
        return [field.strip(BLANKS) for field in line.split(separator)]
    return re.split(f"[{BLANKS}]+", line.strip(BLANKS))


def _check_columns(place: str, columns: int, word_column: int, tag_column: int | None) -> None:
    """Raise ValueError unless a line with so many columns, which stands at ``place``, has those that are asked for."""
    for flag, column in (("--word-column", word_column), ("--tag-column", tag_column)):
        if column is not None and not -columns <= column < columns:
            raise ValueError(f"{place}: has {columns} columns, and {flag} asks for column {column}")
    if tag_column is not None and word_column % columns == tag_column % columns:
        raise ValueError(f"{place}: has {columns} columns, and word and tag would be the same")


def check_tag(place: str, tag: str) -> None:
    """Raise ValueError unless ``tag``, which stands at ``place``, is one of entities."""
    if not TAG.fullmatch(tag):
        raise ValueError(f"{place}: {tag!r} is not a tag, which is O or B-, I-, E- or S- and the entity's type")


def continues(before: str, tag: str) -> bool:
    """Whether ``tag`` belongs to the entity of the tag before it."""
    return before[0] in "BI" and tag[0] in "IE" and before[2:] == tag[2:]


def tag_scheme(sentences: list[Tagged]) -> str:
    """The scheme of entities' tags: IOBES if any is E- or S-, else the one that more entities begin as.

    In IOB2 (BIO) all begin with B-, in IOB1 only the second of two neighbours of one type. Files of either have a few
    that begin as in the other, such as CoNLL-2002's and CoNLL-2003's.
    """
    tags = [tag for sentence in sentences for tag in ("O", *sentence.tags)]
    if any(tag[0] in "ES" for tag in tags):
        return "IOBES"
    begins_inside = sum(tag[0] == "I" and not continues(before, tag) for before, tag in pairwise(tags))
    begins_needlessly = sum(tag[0] == "B" and before[2:] != tag[2:] for before, tag in pairwise(tags))
    return "IOB1" if begins_inside >= max(begins_needlessly, 1) else "IOB2"


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


def to_iobes(tags: Sequence[str]) -> list[str]:
    """Tags of IOB2 in IOBES: the last tag of an entity is E-, that of an entity of one word S-."""
    ends = {"B": "S", "I": "E", "O": "O"}
    return [(tag[0] if after[0] == "I" else ends[tag[0]]) + tag[1:] for tag, after in pairwise((*tags, "O"))]


def check_types(sentences: list[Tagged], types: Sequence[str], training: Path) -> None:
    """Raise ValueError if a tag's entity type is not among those of the training file."""
    for sentence in sentences:
        for i, tag in enumerate(sentence.tags):
            if tag != "O" and tag[2:] not in types:
                raise ValueError(
                    f"{sentence.place(i)}: entities of the type {tag[2:]} are not in {training} ({', '.join(types)})"
                )
