from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from rnndrop_plugin.data import entity_tags


def encode(chunks, scheme, deviate=False):
    """The tags of a sentence of chunks: the entity's type, or O, and how many words it has."""
    tags, last = [], "O"
    for kind, length in chunks:
        if kind == "O":
            tags += ["O"] * length
        elif scheme == "IOBES":
            tags += [f"S-{kind}"] if length == 1 else [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"E-{kind}"]
        else:
            first = "B" if scheme == "IOB2" or last == kind or deviate else "I"
            tags += [f"{first}-{kind}", *[f"I-{kind}"] * (length - 1)]
        last = kind
    return tags


def tagged(tags):
    return entity_tags.Tagged(Path("here"), range(1, len(tags) + 1), ["a"] * len(tags), tags)


kinds = st.sampled_from(["PER", "LOC", "B-LOC", "geo-loc"])
chunks = st.lists(st.tuples(kinds | st.just("O"), st.integers(1, 4)), min_size=1, max_size=8)


@given(st.lists(st.tuples(chunks, st.booleans()), min_size=1, max_size=5), st.sampled_from(["IOB1", "IOB2", "IOBES"]))
@example([([("PER", 2), ("PER", 1)], False), ([("O", 1), ("LOC", 1)], True)], "IOB1")  # as CoNLL-2003 has it
def test_schemes(sentences, scheme):
    """Whatever the scheme, the entities are kept, and the tags become those of IOB2, and of these those of IOBES."""
    encoded = [tagged(encode(chunks, scheme, deviate)) for chunks, deviate in sentences]
    detected = entity_tags.tag_scheme(encoded)
    for (chunks, _), sentence in zip(sentences, encoded, strict=True):
        converted = entity_tags.to_iob2(sentence, detected)
        assert converted.tags == encode(chunks, "IOB2")
        assert entity_tags.to_iobes(converted.tags) == encode(chunks, "IOBES")
        assert get_entities(converted.tags) == get_entities(sentence.tags)
    entities = any(kind != "O" for chunks, _ in sentences for kind, _ in chunks)
    starts = [encode(chunks, scheme, deviate)[0][0] for chunks, deviate in sentences]
    deviations = sum(kind != "O" for chunks, deviate in sentences for kind, _ in chunks if deviate)
    if scheme == "IOBES" and entities:
        assert detected == "IOBES"
    elif scheme == "IOB1" and starts.count("I") >= max(deviations, 1):
        assert detected == "IOB1"
    elif scheme == "IOB2":
        assert detected == "IOB2"


@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=1))
def test_any_order_of_iob_tags_keeps_its_entities(tags):
    converted = entity_tags.to_iob2(tagged(tags), entity_tags.tag_scheme([tagged(tags)])).tags
    assert get_entities(converted) == get_entities(tags)
    assert entity_tags.tag_scheme([tagged(converted)]) == "IOB2"


@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "E-PER", "S-PER", "I-LOC", "E-LOC"]), min_size=1))
def test_iobes_is_refused_or_keeps_its_entities(tags):
    try:
        converted = entity_tags.to_iob2(tagged(tags), "IOBES").tags
    except ValueError as error:
        assert str(error).startswith("here, line ")
    else:
        entities = get_entities(converted)
        assert entities == get_entities(tags)
        assert encode_entities(entities, len(tags)) == tags  # there is but one way to write them in IOBES


def encode_entities(entities, length):
    tags = ["O"] * length
    for kind, first, last in entities:
        tags[first : last + 1] = encode([(kind, last - first + 1)], "IOBES")
    return tags


def test_a_few_entities_that_begin_as_in_another_scheme_do_not_make_it():
    """CoNLL-2002's files are IOB2 but for a few I- after O; CoNLL-2003's are IOB1 but for two B- after O."""

    def scheme(*tags):
        return entity_tags.tag_scheme([entity_tags.Tagged(None, [1], tags, line.split()) for line in tags])

    assert scheme("B-LOC I-LOC O B-PER", "B-PER O I-LOC", "O O B-MISC") == "IOB2"
    assert scheme("I-LOC I-LOC O I-PER", "I-PER O B-LOC", "O O I-MISC B-MISC") == "IOB1"
    assert scheme("O I-LOC B-LOC") == "IOB1"
    assert scheme("O O") == "IOB2"
