import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnndrop_plugin.data.capitalisation import CAPITALISATIONS, capitalisation


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["the", "1st", "o'clock", "é", "ß", "日本"], "lower"),
        (["EU", "U.S.", "ÉTÉ", "G7X", "'TIS"], "upper"),
        (["The", "I", "A.", "Él", "O'clock", "Élan-vital"], "title"),
        (["McDonald", "iPhone", "eU", "X-ray-X", "'Tis", "EUs"], "mixed"),
        (["1996-08-22", ".", "%", "...", ""], "none"),
    ],
)
def test_capitalisation(words, expected):
    assert [capitalisation(word) for word in words] == [expected] * len(words)


@given(st.text())
def test_every_word_has_a_class(word):
    assert capitalisation(word) in CAPITALISATIONS
