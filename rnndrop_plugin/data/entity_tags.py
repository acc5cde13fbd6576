"""Tagged sentences, and the tagging schemes of entities.

This module holds data for training to its scheme and says where the data break it. Predictions may have their tags in
any order; :mod:`rnndrop_plugin.data.spans` scores them. In both modules an entity begins at B-, and at an I- that does
not continue one.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

TAG = re.compile(r"O|[BIES]-\S+")


class Tagged(NamedTuple):
    """A sentence, with one word and its tag on each line.

    Attributes:
        path: the file that it stands in.
        lines: the line of each word, counted from 1.
        words, tags: as many tags as words, or no tags if none were read.
    """

    path: Path
    lines: Sequence[int]
    words: list[str]
    tags: list[str]

    def place(self, i: int = 0) -> str:
        """Where the ``i``-th word stands."""
        return f"{self.path}, line {self.lines[i]}"


def check_tag(place: str, tag: str) -> None:
    """Raise ValueError unless ``tag``, which stands at ``place``, is a tag for entities."""
    if not TAG.fullmatch(tag):
        raise ValueError(f"{place}: {tag!r} is not a tag, which is O or B-, I-, E- or S- and the entity's type")


def continues(before: str, tag: str) -> bool:
    """Whether ``tag`` belongs to the entity of the tag before it."""
    return before[0] in "BI" and tag[0] in "IE" and before[2:] == tag[2:]


def tag_scheme(sentences: list[Tagged]) -> str:
    """The scheme of the tags: IOBES if any tag is E- or S-, else IOB1 or IOB2, whichever more entities begin in.

    In IOB2 (BIO) every entity begins with B-, in IOB1 only the second of two adjacent entities of one type. Some files,
    such as those of CoNLL-2002 and CoNLL-2003, have a few entities that begin as in the other scheme.
    """
    tags = [tag for sentence in sentences for tag in ("O", *sentence.tags)]
    if any(tag[0] in "ES" for tag in tags):
        return "IOBES"
    begins_inside = sum(tag[0] == "I" and not continues(before, tag) for before, tag in pairwise(tags))
    begins_needlessly = sum(tag[0] == "B" and before[2:] != tag[2:] for before, tag in pairwise(tags))
    return "IOB1" if begins_inside >= max(begins_needlessly, 1) else "IOB2"


def to_iob2(sentence: Tagged, scheme: str, scheme_of: str = "the training file") -> Tagged:
    """The sentence in IOB2: an entity's first tag is B-, its others are I-.

    IOB1 and IOB2 are read in the same way, as in the task's own evaluation: an entity begins at B-, and at an I- that
    does not continue one. So a B- after O in IOB1 also begins one; CoNLL-2003 has two of these.

    Args:
        scheme: the one that :func:`tag_scheme` found in ``scheme_of``.

    Raises:
        ValueError: E- or S- where the scheme has none, or an order of tags that IOBES does not allow.
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
    """IOB2 tags in IOBES: the last tag of an entity becomes E-, and the tag of an entity of one word S-."""
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
