from rnndrop_plugin.data.entity_tags import Tagged, tag_scheme


def test_a_few_entities_that_begin_as_in_another_scheme_do_not_make_it():
    """CoNLL-2002's files are IOB2 but for a few I- after O; CoNLL-2003's are IOB1 but for two B- after O."""

    def scheme(*tags):
        return tag_scheme([Tagged(None, [1], tags, line.split()) for line in tags])

    assert scheme("B-LOC I-LOC O B-PER", "B-PER O I-LOC", "O O B-MISC") == "IOB2"
    assert scheme("I-LOC I-LOC O I-PER", "I-PER O B-LOC", "O O I-MISC B-MISC") == "IOB1"
    assert scheme("O I-LOC B-LOC") == "IOB1"
    assert scheme("O O") == "IOB2"
