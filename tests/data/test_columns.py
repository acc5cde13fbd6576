"""Files of columns: comments, and CoNLL-U's lines that are no words."""

import pytest

from rnndrop_plugin.data.columns import read_sentences


@pytest.fixture
def read(tmp_path):
    """Reads a text: the words and tags of each sentence."""

    def read(text, word=0, tag=-1, separator=None, any_tags=False):
        (tmp_path / "file").write_text(text, encoding="utf-8", newline="")
        sentences = read_sentences(tmp_path / "file", "utf-8", separator, word, tag, any_tags=any_tags)
        return [(" ".join(sentence.words), " ".join(sentence.tags)) for sentence in sentences]

    return read


MULTICONER = "# id 5ab\tdomain=train\nAnna _ _ B-PER\nsaw _ _ O\n\n# id 5ac\tdomain=train\nBob _ _ B-PER\n"
GERMEVAL = "#\thttp://example.org [2012-01-01]\n1\tAnna\tB-PER\tO\n2\tsah\tO\tO\n\n#\tn-tv.de\n1\tBob\tB-PER\tO\n"
CONLL_U = """# sent_id = 1
# text = Vámonos al mar # O
1-2\tVámonos\t_\t_\tSpaceAfter=No
1\tVamos\tir\tVERB\t_
2\tnos\tnosotros\tPRON\t_
3-4\tal\t_\t_\t_
3\ta\ta\tADP\t_
4\tel\tel\tDET\t_
5\tmar\tmar\tNOUN\t_
5.1\tvisto\tver\tVERB\t_

# sent_id = 2
1\t#\t#\tSYM\t_
2\t5-6\t5-6\tNUM\t_
"""


def test_comments(read):
    assert read(MULTICONER) == [("Anna saw", "B-PER O"), ("Bob", "B-PER")]
    assert read(MULTICONER, tag=None) == [("Anna saw", ""), ("Bob", "")]
    assert read(GERMEVAL, 1, 2, "\t") == [("Anna sah", "B-PER O"), ("Bob", "B-PER")]
    assert read(GERMEVAL, 1, None, "\t") == [("Anna sah", ""), ("Bob", "")]


def test_conll_u(read):
    """Multi-word tokens and empty nodes are no words; the columns are counted where the words are."""
    expected = [("Vamos nos a el mar", "VERB PRON ADP DET NOUN"), ("# 5-6", "SYM NUM")]
    assert read(CONLL_U, 1, 3, "\t", any_tags=True) == expected
    assert read(CONLL_U, 1, None, "\t") == [(words, "") for words, _ in expected]


@pytest.mark.parametrize("tag", [-1, None])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# O\n1 O\n\nAnna B-PER\n# O\n", ["# 1", "Anna #"]),
        ("# a comment\n# O\n1 O\n\n#tag O\n#1 B-X\n", ["# 1", "#tag #1"]),
        ("# O\n", ["#"]),
        ("# # #\nfive CD O\n\n# # O\nsix CD O\n", ["# five", "# six"]),
    ],
)
def test_the_token_is_no_comment(read, text, words, tag):
    assert [sentence for sentence, _ in read(text, tag=tag, any_tags=True)] == words


def test_a_word_that_begins_with_a_hash_is_read(read):
    tags = "#MAGA B-ORG\nrally O\n\nBob B-PER\n"  # a tag that no other word has
    assert read(tags) == [("#MAGA rally", "B-ORG O"), ("Bob", "B-PER")]
    assert read("#nlp NN nlp\nrocks VB rock\n", tag=None) == [("#nlp rocks", "")]
    assert read("# NN nlp\nrocks VB rock\n", tag=None) == [("rocks", "")]


def test_a_file_of_words_alone(read):
    assert read("# text = a b\na\nb\n\n#\nc\n\n#hash\n", tag=None) == [("a b", ""), ("# c", ""), ("#hash", "")]


def test_a_broken_line_within_a_sentence_is_no_comment(read):
    with pytest.raises(ValueError, match="line 2: has 1 columns, the file's first line has 2"):
        read("Anna B-PER\n#\n")
    with pytest.raises(ValueError, match="file: has no sentence"):
        read("\n\n-DOCSTART- O\n \t\n")
    with pytest.raises(ValueError, match="line 4: 'B_PER' is not a tag"):
        read("# x\n\n\nAnna B_PER\n")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\r\r\n"])
def test_line_ends(read, end):
    assert read(f"Anna B-PER{end}saw O{end}{end}Bob B-PER{end}") == [("Anna saw", "B-PER O"), ("Bob", "B-PER")]
    assert read("a\xa0b O\n\u2028\nc\u200b O\n\u200b O\n") == [("a\xa0b", "O"), ("c \u200b", "O O")]
