import pytest

from rnndrop_plugin.data.tweets import clean, tokenize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Gr\u00c3\u00bc\u00c3\u009fe", "Gr\u00fc\u00dfe"),  # UTF-8 that was encoded twice
        ("\u00c3\u00bc \\u2019n \u2026", "\u00fc 'n \u2026"),  # beside an escape, and beside what Latin-1 lacks
        ("caf\u00e9 S\u00e3o", "caf\u00e9 S\u00e3o"),  # encoded once
        ("\u00c4\u2018 \u00e2?\u00a4", "\u00c4' \u00e2?\u00a4"),  # damaged
        ("can\\u2019t\\u002c no", "can't, no"),
        ("\\ud83d\\ude00\\u00E9", "\U0001f600\u00e9"),  # a surrogate pair, upper-case digits
        ("a\\ud83db \\ude00 c\\u12g", "a b c\\u12g"),  # halves of pairs, and no escape
        ("&lt;3 &amp;amp; &amp;#8217; &eacute; AT&T &#39;", "<3 & ' \u00e9 AT&T '"),
        ("&amp;amp;#xd83d;", "& #xd83d;"),
        ("it\ufffds\tlost \u0080 \u00a0 two", "it s lost two"),
        ("\u2018a\u2019 \u201cb\u201d I\u00b4m", "'a' \"b\" I'm"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@you RT@me_2: so GOOD", "<user> RT <user> : so GOOD"),
        (
            "see http://t.co/a1?b=c. WWW.x.org/yz bit.ly/Ab x@y.org Jets/Colts",
            "see <url> . <url> <url> x@y.org Jets / Colts",
        ),
        ("sooooo loooong!!!!!", "sooo looong ! ! !"),
        ("I'm DON'T y'all can\u2019t it's", "I 'm DO N'T y'all ca n't it 's"),
        ("#day #it's", "# day # it 's"),
        ("so . . . what", "so . . . what"),
        (":-) <3 =D at 8:30", ":-) <3 =D at 8: 30"),
    ],
)
def test_tokenize(text, expected):
    assert " ".join(tokenize(text)) == expected


def test_tokenize_without_smileys():
    assert tokenize("a :-) b ;) :( <3 </3 =D at 8:30 :", smileys=False) == [
        "a",
        "b",
        "<3",
        "</3",
        "at",
        "8:",
        "30",
        ":",
    ]


def test_a_text_that_no_message_is_as_long_as():
    assert tokenize("ab " * 3_333) == ["ab"] * 3_333
    with pytest.raises(ValueError, match="^a text of 10,001 characters, expected at most 10,000$"):
        tokenize("b" * 10_001)
