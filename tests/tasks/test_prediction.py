"""Prediction: how sequences are batched, and how their words are looked up."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.tasks import prediction
from rnndrop_plugin.tasks.sequence_task import CAPITALISATION, CHARACTERS


class Echo(torch.nn.Module):
    """Says which ids it was given, and keeps the shapes of its batches."""

    def __init__(self):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.shapes = []

    def forward(self, src_tokens, src_lengths, characters=None, capitalisation=None):
        self.shapes.append(tuple(src_tokens.shape))
        if capitalisation is not None:
            return capitalisation
        return src_tokens if characters is None else characters.flatten(1)


@pytest.fixture
def predict():
    """Predicts with the model, over the words a, é and cat and their characters if asked."""

    def predict(model, sequences, batch_size=64, characters=False, tokenization=None, kinds=()):
        words, letters = Dictionary(), Dictionary()
        for word in ("a", "é", "cat", "00-0"):
            words.add_symbol(word)
        for letter in "catsé0":
            letters.add_symbol(letter)
        dictionaries = {"word": words} | ({CHARACTERS: letters} if characters else {})
        if kinds:
            dictionaries[CAPITALISATION] = Dictionary()
            for kind in kinds:
                dictionaries[CAPITALISATION].add_symbol(kind)
        task = SimpleNamespace(source_dictionary=words, dictionaries=dictionaries, tokenization=tokenization)
        return prediction.predict(task, model, sequences, batch_size, lambda logits, _: logits)

    return predict


def test_no_batch_is_larger_than_its_words_or_one_sequence(predict, monkeypatch):
    monkeypatch.setattr(prediction, "BATCH_WORDS", 12)
    model = Echo()
    lengths = [3, 1, 30, 2, 0, 3, 3, 3, 3]
    results = predict(model, [["a"] * length for length in lengths])
    assert [row[:length] for row, length in zip(results, lengths, strict=True)] == [[4] * n for n in lengths]
    assert all(rows * longest <= 30 for rows, longest in model.shapes) and (1, 30) in model.shapes
    assert sum(rows for rows, _ in model.shapes) == 8
    model = Echo()
    predict(model, [["a"] * 3] * 9, batch_size=2)
    assert model.shapes == [(2, 3)] * 4 + [(1, 3)]
    predict(model, [["a"] * 3] * 2, batch_size=10**20)
    assert model.shapes[5:] == [(2, 3)]
    for sequences in ([["a"]], []):
        with pytest.raises(ValueError, match="^batch_size must be at least 1, got 0$"):
            predict(model, sequences, batch_size=0)


def test_digits_are_read_as_the_training_data_have_them(predict):
    zeros = Tokenization("moses", zero_digits=True)
    assert predict(Echo(), [["12-5", "00-0", "cat"]], tokenization=zeros) == [[7, 7, 6]]
    assert predict(Echo(), [["12-5", "00-0", "cat"]], tokenization=Tokenization("moses")) == [[3, 7, 6]]
    (row,) = predict(Echo(), [["c3"]], characters=True, tokenization=zeros)
    assert row == [4, 9]


def test_symbols_of_fairseq_are_unknown_words(predict):
    assert predict(Echo(), [["<s>", "<pad>", "</s>", "<unk>", "a"]]) == [[3, 3, 3, 3, 4]]


def test_words_are_read_with_the_class_of_their_capitals(predict):
    kinds = ("lower", "title", "upper", "mixed", "none")
    words = ["cat", "Cat", "CAT", "cAt", "00-0"]
    assert predict(Echo(), [words, ["Cat"]], kinds=kinds)[0] == [4, 5, 6, 7, 8]
    assert predict(Echo(), [words], kinds=kinds[:3]) == [[4, 5, 6, 3, 3]]  # classes that the dictionary lacks
