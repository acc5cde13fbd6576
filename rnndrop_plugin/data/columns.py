"""Files of columns, a word and its tag on each line."""

import re
from pathlib import Path

from rnndrop_plugin.data.entity_tags import TAG, Tagged, check_tag
from rnndrop_plugin.data.text import read_lines

BLANKS = " \t\r"
WORD_NUMBER = re.compile(r"\d+([-.]\d+)?")  # in CoNLL-U; with a second number it is of no word


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
