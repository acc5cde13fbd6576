"""Files in columns, with a word and its tag on each line."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from rnndrop_plugin.data.entity_tags import TAG, Tagged, check_tag
from rnndrop_plugin.data.text import read_lines

BLANKS = " \t\r"
WORD_NUMBER = re.compile(r"\d+([-.]\d+)?")  # in CoNLL-U; with a second number the line is not a word


def read_sentences(
    path: Path,
    encoding: str,
    separator: str | None,
    word_column: int,
    tag_column: int | None,
    *,
    any_tags: bool = False,
) -> list[Tagged]:
    """The sentences of a file. Blank lines and ``-DOCSTART-`` lines separate them.

    Comments before a sentence (lines that begin with #) are left out, and so are CoNLL-U's lines for multi-word tokens
    (1-2) and empty nodes (1.1).

    Args:
        separator: what separates two columns; None for any number of blanks and tabs.
        word_column, tag_column: counted from 0, or backwards from the last one, which is -1; without a tag_column no
            tags are read.
        any_tags: also read tags that do not mark entities, such as parts of speech.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or has no sentence, or a line has no tag or not as many columns as the first one.
    """
    lines = [*enumerate(read_lines(path, encoding, keep_lone=True), 1)]
    rows = {number: _split(line, separator) for number, line in lines if not _separates(line)}
    if not rows:
        raise ValueError(f"{path}: has no sentence")
    layout = _Layout.of(path, rows, word_column, tag_column)
    sentences = []
    for within, group in itertools.groupby((number for number, _ in lines), rows.__contains__):
        sentence = Tagged(path, [], [], [])
        for number in group if within else ():
            place, fields = f"{path}, line {number}", rows[number]
            if (not sentence.words and layout.is_comment(fields)) or layout.is_no_word(place, fields):
                continue
            sentence.lines.append(number)
            sentence.words.append(_word(place, fields[word_column]))
            if tag_column is not None:
                sentence.tags.append(_tag(place, fields[tag_column], any_tags))
        if sentence.words:
            sentences.append(sentence)
    if not sentences:
        raise ValueError(f"{path}: has no sentence")
    return sentences


class _Layout(NamedTuple):
    """The structure of a file's lines."""

    columns: int
    numbers_words: bool  # in the first column, as in CoNLL-U
    tag_column: int | None
    telling: set[str]  # what lines that are surely not comments have in the tag column, or in the last one

    @classmethod
    def of(cls, path: Path, rows: dict[int, list[str]], word_column: int, tag_column: int | None) -> "_Layout":
        """The layout of the first line that is surely not a comment. Raise ValueError if it lacks a column."""
        certain = {number: fields for number, fields in rows.items() if fields[0][:1] != "#"} or rows
        number, first = next(iter(certain.items()))
        _check_columns(f"{path}, line {number}", len(first), word_column, tag_column)
        numbers_words = word_column % len(first) > 0 and WORD_NUMBER.fullmatch(first[0]) is not None
        column = -1 if tag_column is None else tag_column
        telling = {fields[column] for fields in certain.values() if len(fields) == len(first)} | {"#"}
        return cls(len(first), numbers_words, tag_column, telling)

    def is_comment(self, fields: list[str]) -> bool:
        """Whether a line before a sentence is a comment, and not a token # with a tag such as other tokens have."""
        if fields[0][:1] != "#":
            return False
        if self.numbers_words or len(fields) != self.columns:
            return True
        if self.tag_column is None:
            known = fields[-1] in self.telling or fields[0] != "#"
        else:
            tag = fields[self.tag_column]
            known = tag in self.telling or TAG.fullmatch(tag)
        return self.columns > 1 and not known

    def is_no_word(self, place: str, fields: list[str]) -> bool:
        """Whether it is a CoNLL-U line for several words or none. Raise ValueError if it has more or fewer columns."""
        if len(fields) != self.columns:
            raise ValueError(f"{place}: has {len(fields)} columns, the file's first line has {self.columns}")
        number = WORD_NUMBER.fullmatch(fields[0]) if self.numbers_words else None
        return number is not None and number[1] is not None


def _word(place: str, word: str) -> str:
    if not word:
        raise ValueError(f"{place}: has no word")
    if set(word) & set(BLANKS):
        raise ValueError(f"{place}: {word!r} is not a word")
    return word


def _tag(place: str, tag: str, any_tags: bool) -> str:
    if not any_tags:
        check_tag(place, tag)
    elif not tag:
        raise ValueError(f"{place}: has no tag")
    return tag


def _separates(line: str) -> bool:
    return not line.strip() or line.startswith("-DOCSTART-")


def _split(line: str, separator: str | None) -> list[str]:
    if separator:
        return [field.strip(BLANKS) for field in line.split(separator)]
    return re.split(f"[{BLANKS}]+", line.strip(BLANKS))


def _check_columns(place: str, columns: int, word_column: int, tag_column: int | None) -> None:
    """Raise ValueError unless the line at ``place``, which has ``columns`` columns, has those that are asked for."""
    for flag, column in (("--word-column", word_column), ("--tag-column", tag_column)):
        if column is not None and not -columns <= column < columns:
            raise ValueError(f"{place}: has {columns} columns, and {flag} asks for column {column}")
    if tag_column is not None and word_column % columns == tag_column % columns:
        raise ValueError(f"{place}: has {columns} columns, and word and tag would be the same")
