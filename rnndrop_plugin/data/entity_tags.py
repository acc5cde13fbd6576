"""Tagged sentences, and the schemes of tags for entities.

What is prepared for training is held to its scheme here, and says where it is broken. How predictions are scored, in
whatever order a model puts its tags, is in :mod:`rnndrop_plugin.data.spans`. Both know that an entity begins at B-, and
at an I- that continues none.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

TAG = re.compile(r"O|[BIES]-\S+")


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
