"""Tweets and text messages: their characters repaired, and cut into words."""

import html
import re

from nltk.tokenize import TweetTokenizer
from nltk.tokenize.casual import EMOTICON_RE

from rnndrop_plugin.data.text import normalize

USER = "<user>"
LINK = "<url>"
LONGEST = 10_000  # characters of a message: no tweet has more, and NLTK's tokenizer gives up on some texts that have

_TOKENIZER = TweetTokenizer(reduce_len=True, match_phone_numbers=False)
_PLAIN = str.maketrans("\u2018\u2019\u00b4\u201c\u201d", "'''\"\"")
_LOST = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")  # control characters, and what stands for bytes that were no UTF-8
_LINK = re.compile(r"https?:|www\.|([\w-]+\.)+[a-z]{2,13}/", re.IGNORECASE)
_SEAM = re.compile(r"(?<=#)(?=\w)|(?<=\w)(?=(?:n't|'(?:s|m|d|re|ve|ll))$)", re.IGNORECASE)


def _decode_again(match: re.Match) -> str:
    try:
        return match[0].encode("latin-1").decode()
    except UnicodeDecodeError:
        return match[0]


def _decode_escapes(match: re.Match) -> str:
    """The characters of ``\\uXXXX`` escapes, those of a surrogate pair joined, half a pair as U+FFFD."""
    halves = match[0].encode().decode("unicode_escape")
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text: str) -> str:
    """Undo what has been done to a message's characters on its way, the last first.

    UTF-8 that was read as Latin-1 and encoded once more is decoded, wherever a run of such characters is whole; then
    ``\\uXXXX`` escapes, then HTML entities. Characters that were lost become blanks (in some collections they tell the
    label, as only one class has them), typographic quotation marks and apostrophes the ASCII ones.
    """
    text = re.sub("[\x80-\xff]+", _decode_again, text)
    text = re.sub(r"(?:\\u[0-9a-fA-F]{4})+", _decode_escapes, text)
    text = html.unescape(html.unescape(text))  # some are escaped twice
    text = text.replace("&#", "& #")  # the tokenizer would decode a third time, halves of surrogate pairs, too
    return " ".join(normalize(_LOST.sub(" ", text).translate(_PLAIN)).split())


def tokenize(text: str, *, smileys: bool = True) -> list[str]:
    """The words of a message: NLTK's tokens of tweets in their case, with repetitions of a character cut to three.

    User names become ``<user>`` and links ``<url>``. The # of a hashtag is a word of its own, and contractions are two
    (do n't, I 'm), as in the Penn Treebank and in the text of GloVe's vectors.

    Args:
        smileys: whether to keep those made of ASCII, such as ``:-)``; hearts are kept anyway.

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
        # the tokenizer has hearts among its smileys, and the 8: of a time
        elif smileys or not EMOTICON_RE.fullmatch(token) or re.search(r"\d", token):
            words += _SEAM.sub(" ", token).split()  # a token such as . . . has blanks itself
    return words
