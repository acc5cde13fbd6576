"""Tags that mark spans of words, such as the names of persons: which sets of tags do, and which spans they mark."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# What each letter stands for: L and U are BILOU's, M and W those of BMES and BMEW for I, E and S.
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_SCHEMES = ("BIES", "BILU", "BMES", "BMEW")
_TYPE_LAST = re.compile(r"(?P<letter>[BIMELSUW])([-_](?P<type>.+))?", re.IGNORECASE)
_TYPE_FIRST = re.compile(r"((?P<type>.+)[-_])?(?P<letter>[BIMELSUW])", re.IGNORECASE)

Span = tuple[str, int, int]  # its type, its first and its last word


class SpanTags:
    """Tags that mark spans: O outside of them, and letters such as B and I, with a type (B-PER) or without.

    The schemes are IOB1, IOB2, IOBES, BILOU and BMES. The type stands behind the letter or before it (PER-B), after
    ``-`` or ``_``; a type may have such signs of its own (B-geo-loc). Spans without a type are all of the type ``""``.

    Args:
        tags: all that there are.

    Attributes:
        types: the types of spans that the tags can mark, in order.
        iobes: whether the tags are such as B-PER, I-PER, E-PER and S-PER.

    Raises:
        ValueError: the tags do not mark spans; it says why.
    """

    def __init__(self, tags: Iterable[str]):
        every = list(tags)
        tags = [tag for tag in every if not _is_outside(tag)]
        if not tags:
            raise ValueError("there is none but O")
        others = [[tag for tag in tags if not form.fullmatch(tag)] for form in (_TYPE_LAST, _TYPE_FIRST)]
        if all(others):
            raise ValueError(f"{others[0][0]} is not such as B-PER or I")
        self._form = _TYPE_FIRST if others[0] else _TYPE_LAST
        split = [self._split(tag) for tag in tags]
        letters = {letter for letter, _ in split}
        if not any(letters <= set(scheme) for scheme in _SCHEMES):
            raise ValueError(f"{', '.join(sorted(letters))} are not the letters of one scheme")
        # E and S alone may stand for anything, but S-PER beside O are IOBES where each entity is one word
        single = self._form is _TYPE_LAST and all(type for _, type in split) and len(tags) < len(every)
        if not letters & {"B", "I"} and not (single and letters <= {"S", "U", "W"}):
            raise ValueError("there is no tag with B or I")
        self.types = sorted({type for _, type in split})
        self.iobes = bool(letters & {"E", "S"}) and all(re.fullmatch(r"[BIES]-\S+", tag) for tag in tags)

    def spans(self, tags: Sequence[str]) -> set[Span]:
        """The spans that the tags of a sentence mark, as conlleval reads them.

        Tags in an order that their scheme does not allow mark spans all the same: an I or E after O, or after another
        type, begins one.
        """
        found, begin, current = set(), 0, None  # current: the type of the span that goes on
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
        """Of each type, how many spans are correct, predicted and true. A span is correct where its type and both
        ends are.

        Args:
            sentences: of each sentence the predicted and the true tags.
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
