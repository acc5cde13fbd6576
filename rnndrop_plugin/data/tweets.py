"""Tweets and text messages: repairing their characters, and cutting them into words."""

import html
import re

from nltk.tokenize import TweetTokenizer
from nltk.tokenize.casual import EMOTICON_RE

from rnndrop_plugin.data.text import normalize

USER = "<user>"
LINK = "<url>"
LONGEST = 10_000  # characters of a message: no tweet has more, and NLTK's tokenizer gives up on some longer texts

_TOKENIZER = TweetTokenizer(reduce_len=True, match_phone_numbers=False)
_PLAIN = str.maketrans("\u2018\u2019\u00b4\u201c\u201d", "'''\"\"")
_LOST = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")  # control characters, and what replaces bytes that were not UTF-8
_LINK = re.compile(r"https?:|www\.|([\w-]+\.)+[a-z]{2,13}/", re.IGNORECASE)
_SEAM = re.compile(r"(?<=#)(?=\w)|(?<=\w)(?=(?:n't|'(?:s|m|d|re|ve|ll))$)", re.IGNORECASE)


def _decode_again(match: re.Match) -> str:
    try:
        return match[0].encode("latin-1").decode()
    except UnicodeDecodeError:
        return match[0]


def _decode_escapes(match: re.Match) -> str:
    """Decode ``\\uXXXX`` escapes: a surrogate pair becomes one character, and half a pair U+FFFD."""
    halves = match[0].encode().decode("unicode_escape")
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text: str) -> str:
    """Undo what has happened to a message's characters, the last change first.

    UTF-8 that was read as Latin-1 and encoded again is decoded, wherever a run of such characters is valid UTF-8. Then
    ``\\uXXXX`` escapes are decoded, and then HTML entities. Lost characters become blanks, because in some collections
    only one class has them and they would give the label away. Typographic quotation marks and apostrophes become
    ASCII.
    """
    text = re.sub("[\x80-\xff]+", _decode_again, text)
    text = re.sub(r"(?:\\u[0-9a-fA-F]{4})+", _decode_escapes, text)
    text = html.unescape(html.unescape(text))  # some are escaped twice
    text = text.replace("&#", "& #")  # or the tokenizer decodes a third time, even halves of surrogate pairs
    return " ".join(normalize(_LOST.sub(" ", text).translate(_PLAIN)).split())


def tokenize(text: str, *, smileys: bool = True) -> list[str]:
    """The words of a message: NLTK's tweet tokens, with their case kept and a repeated character cut to three.

    User names become ``<user>`` and links ``<url>``. The # of a hashtag is a word of its own, and a contraction becomes
    two words (do n't, I 'm), as in the Penn Treebank and in the text of GloVe's vectors.

    Args:
        smileys: whether to keep ASCII smileys, such as ``:-)``; hearts are always kept.

    Raises:
        ValueError: the text is longer than any message.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a text of {len(text):,} characters, expected at most {LONGEST:,}")
    words = []
    for token in _TOKENIZER.tokenize(clean(text)):
        if re.fullmatch(r"@\w+", token):
            words.append(USER)
        elif _LINK.match(token):
            words.append(LINK)
        # the tokenizer also counts hearts among the smileys, and the 8: of a time
        elif smileys or not EMOTICON_RE.fullmatch(token) or re.search(r"\d", token):
            words += _SEAM.sub(" ", token).split()  # a token such as . . . contains blanks
    return words
