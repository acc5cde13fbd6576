import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary

from rnndrop_plugin.data.units import Units, units_of_pieces

TEXT = ["the cat sat on the mat", "a b", "the mat", "cats"]


def read(sentences: list[list[str]]) -> tuple[torch.Tensor, Dictionary]:
    dictionary = Dictionary()
    for symbol in sorted({symbol for sentence in sentences for symbol in sentence} - {"<unk>"}):
        dictionary.add_symbol(symbol)
    ids = [[*map(dictionary.index, sentence), dictionary.eos()] for sentence in sentences]
    return torch.tensor(sum(ids, [])), dictionary


def expected(text: list[str]) -> Units:
    return Units(sum(len(line.split()) + 1 for line in text), sum(len(line) + 1 for line in text))


@pytest.mark.parametrize(
    "pieces",
    [
        ["▁the ▁c at ▁s at ▁on ▁the ▁ m at", "▁a ▁b", "▁the ▁m a t", "▁cat s"],
        ["the c@@ at s@@ at on the m@@ at", "a b", "the ma@@ t", "cat@@ s"],
        ["the c@@ at s@@ at on the m@@ at", "a <unk>", "the ma@@ t", "cat@@ s"],
    ],
)
def test_pieces_tell_the_words_and_characters_of_their_text(pieces):
    assert units_of_pieces(*read([line.split() for line in pieces])) == expected(TEXT)


def test_pieces_of_sentencepiece_itself(tmp_path):
    lines = TEXT * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), vocab_size=16, minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    sentences = [model.encode(line, out_type=str) for line in lines]
    assert max(map(len, sentences)) > 6
    assert units_of_pieces(*read(sentences)) == expected(lines)


@pytest.mark.parametrize("text", [TEXT, [*TEXT, "a @@ b"]])
def test_words_are_no_pieces(text):
    assert units_of_pieces(*read([line.split() for line in text])) is None
