"""Tags that mark spans of words, such as the names of persons: which sets of tags do so, and which spans they mark."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# What each letter means: BILOU has L for E and U for S, BMES and BMEW have M for I, and BMEW has W for S.
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_SCHEMES = ("BIES", "BILU", "BMES", "BMEW")
_TYPE_LAST = re.compile(r"(?P<letter>[BIMELSUW])([-_](?P<type>.+))?", re.IGNORECASE)
_TYPE_FIRST = re.compile(r"((?P<type>.+)[-_])?(?P<letter>[BIMELSUW])", re.IGNORECASE)

Span = tuple[str, int, int]  # its type, its first and its last word


class SpanTags:
    """Tags that mark spans: O outside of them, and letters such as B and I, with a type (B-PER) or without.

    The schemes are IOB1, IOB2, IOBES, BILOU, BMES and BMEW. The type stands after the letter or before it (PER-B),
    separated by ``-`` or ``_``, which a type may also contain (B-geo-loc). Spans without a type have the type ``""``.

    Args:
        tags: all tags that occur.

    Attributes:
        types: the types of spans that the tags can mark, in order.
        iobes: whether the tags are IOBES with types: B-PER, I-PER, E-PER and S-PER.

    Raises:
        ValueError: the tags do not mark spans; the message says why.
    """

    def __init__(self, tags: Iterable[str]):
        every = list(tags)
        tags = [tag for tag in every if not _is_outside(tag)]
        if not tags:
            raise ValueError("O is the only tag")
        others = [[tag for tag in tags if not form.fullmatch(tag)] for form in (_TYPE_LAST, _TYPE_FIRST)]
        if all(others):
            raise ValueError(f"{others[0][0]} is not a tag like B-PER or I")
        self._form = _TYPE_FIRST if others[0] else _TYPE_LAST
        split = [self._split(tag) for tag in tags]
        letters = {letter for letter, _ in split}
        if not any(letters <= set(scheme) for scheme in _SCHEMES):
            raise ValueError(f"{', '.join(sorted(letters))} are not the letters of one scheme")
        # E and S alone may mean anything, but S-PER beside O is IOBES in which each entity is one word
        single = self._form is _TYPE_LAST and all(type for _, type in split) and len(tags) < len(every)
        if not letters & {"B", "I"} and not (single and letters <= {"S", "U", "W"}):
            raise ValueError("there is no tag with B or I")
        self.types = sorted({type for _, type in split})
        self.iobes = bool(letters & {"E", "S"}) and all(re.fullmatch(r"[BIES]-\S+", tag) for tag in tags)

    def spans(self, tags: Sequence[str]) -> set[Span]:
        """The spans that the tags of a sentence mark, as conlleval reads them.

        Tags in an order that their scheme does not allow still mark spans: an I or E after O, or after another type,
        begins one.
        """
        found, begin, current = set(), 0, None  # current: the type of the open span
        for place, tag in enumerate([*tags, "O"]):
            letter, type = self._split(tag)
            letter = _LETTERS.get(letter, "O")
            if current is not None and (letter not in ("I", "E") or type != current):
                found.add((current, begin, place - 1))
                current = None
            if current is None and letter != "O":
                begin, current = place, type
            if letter in ("E", "S"):
                found.add((type, begin, place))
                current = None
        return found

    def to_iob2(self, tags: Sequence[str]) -> list[str]:
        """The spans of a sentence in IOB2, such as B-PER and I-PER, whatever the tags' own scheme."""
        own = ["O"] * len(tags)
        for type, first, last in self.spans(tags):
            own[first : last + 1] = [f"B-{type}", *[f"I-{type}"] * (last - first)]
        return own

    def count(self, sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> tuple[Counter, Counter, Counter]:
        """For each type, how many spans are correct, predicted and true. A span is correct if its type and both ends
        are.

        Args:
            sentences: the predicted and the true tags of each sentence.
        """
        correct, predicted, gold = Counter(), Counter(), Counter()
        for own, true in sentences:
            found, expected = self.spans(own), self.spans(true)
            for counter, some in ((correct, found & expected), (predicted, found), (gold, expected)):
                counter.update(type for type, _, _ in some)
        return correct, predicted, gold

    def _split(self, tag: str) -> tuple[str, str]:
        """The letter of a tag and its type."""
        if _is_outside(tag):
            return "O", ""
        match = self._form.fullmatch(tag)
        if match is None:
            raise ValueError(f"{tag} does not mark spans as the other tags do")
        return match["letter"].upper(), match["type"] or ""


def _is_outside(tag: str) -> bool:
    return tag in ("O", "o")
