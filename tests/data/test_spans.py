import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities

from rnndrop_plugin.data.entity_tags import Tagged, tag_scheme
from rnndrop_plugin.data.spans import SpanTags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O B-PER", {("PER", 2, 2)}),
        ("B-PER I-PER O", {("PER", 0, 1)}),
        ("O I-PER I-PER", {("PER", 1, 2)}),  # I- after O begins one
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),  # neighbours of one type
        ("I-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),  # another type begins another one
        ("I-PER I-LOC I-LOC O B-LOC", {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 4, 4)}),
        ("B I O B B", {("", 0, 1), ("", 3, 3), ("", 4, 4)}),  # no types
        ("O I I", {("", 1, 2)}),
        ("B-geo-loc I-geo-loc B-geo_x", {("geo-loc", 0, 1), ("geo_x", 2, 2)}),
        ("B_PER I_PER O B_LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("PER-B PER-I O geo-loc-B", {("PER", 0, 1), ("geo-loc", 3, 3)}),
        ("b-per i-per o b-per b-per", {("per", 0, 1), ("per", 3, 3), ("per", 4, 4)}),
        ("B-PER I-PER E-PER S-PER S-LOC", {("PER", 0, 2), ("PER", 3, 3), ("LOC", 4, 4)}),
        ("B-PER I-PER L-PER U-PER B-PER L-PER", {("PER", 0, 2), ("PER", 3, 3), ("PER", 4, 5)}),
        ("O S-PER S-PER", {("PER", 1, 1), ("PER", 2, 2)}),  # every one of a single word
        ("U_PER O U_LOC", {("PER", 0, 0), ("LOC", 2, 2)}),
        ("B M E W E", {("", 0, 2), ("", 3, 3), ("", 4, 4)}),  # E after a word of its own begins one
        ("B M E S B E", {("", 0, 2), ("", 3, 3), ("", 4, 5)}),  # Chinese words
    ],
)
def test_spans_of_every_scheme(tags, expected):
    tags = tags.split()
    assert SpanTags(tags).spans(tags) == expected


@pytest.mark.parametrize("letters", ["BI", "BIES"])
def test_any_order_of_tags_marks_what_conlleval_reads(letters):
    """Against seqeval's translation of conlleval, which knows tags such as B-PER alone."""
    tags = ["O", *(f"{letter}-{type}" for letter in letters for type in ("PER", "geo-loc"))]
    spans = SpanTags(tags)
    assert spans.types == ["PER", "geo-loc"]
    for length in range(1, 9):
        for row in torch.randint(len(tags), (200, length)).tolist():
            sentence = [tags[i] for i in row]
            assert spans.spans(sentence) == set(get_entities(sentence)), sentence
            iob2 = spans.to_iob2(sentence)
            assert spans.spans(iob2) == spans.spans(sentence), sentence
            assert tag_scheme([Tagged(None, [], [], iob2)]) == "IOB2"


@pytest.mark.parametrize(
    ("tags", "iobes"),
    [
        ("O B-PER I-PER E-PER S-PER", True),
        ("O S-PER", True),
        ("O B-PER I-PER", False),
        ("B I E S", False),
        ("O PER-B PER-E", False),
        ("O b-per e-per", False),
        ("O B-PER I-PER L-PER U-PER", False),
    ],
)
def test_which_tags_are_iobes(tags, iobes):
    assert SpanTags(tags.split()).iobes == iobes


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ("NNP VB O", "NNP is not a tag like B-PER or I"),
        ("B-PER I-PER O X", "X is not a tag like B-PER or I"),
        ("O", "O is the only tag"),
        ("B-PER L-PER E-PER", "B, E, L are not the letters of one scheme"),
        ("N-S V-S", "there is no tag with B or I"),
        ("S O", "there is no tag with B or I"),
        ("S-1 S-2", "there is no tag with B or I"),
        ("E-PER O", "there is no tag with B or I"),
    ],
)
def test_other_tags_mark_none(tags, reason):
    with pytest.raises(ValueError, match=reason):
        SpanTags(tags.split())


def test_counts_are_sums_over_sentences():
    spans = SpanTags(["B-PER", "I-PER", "B-LOC", "O"])
    correct, predicted, there = spans.count(
        [("B-PER O B-LOC".split(), "B-PER I-PER B-LOC".split()), (["B-LOC", "O"], ["B-LOC", "B-LOC"])]
    )
    assert (dict(correct), dict(predicted), dict(there)) == (
        {"LOC": 2},
        {"PER": 1, "LOC": 2},
        {"PER": 1, "LOC": 3},
    )
