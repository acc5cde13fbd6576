import pytest
import sentencepiece

from rnndrop_plugin.data.tokenization import Tokenization


@pytest.mark.parametrize(
    ("tokenization", "text", "tokens"),
    [
        (Tokenization(), "  no  more, now ", ["no", "more,", "now"]),
        (Tokenization("moses"), "No more, now.", ["No", "more", ",", "now", "."]),
        (Tokenization("moses", "fr", lower=True), "L'eau, là.", ["l'", "eau", ",", "là", "."]),
        (Tokenization("tweets"), "@someone look", None),
        (Tokenization("characters"), "a b", ["a", "_", "b"]),
        (Tokenization("characters"), "a\u00a0b", ["a", "_", "b"]),
        (Tokenization(lower=True), "\u03aa\u0301x", ["\u0390x"]),
    ],
    ids=lambda value: value.tokenizer if isinstance(value, Tokenization) else None,
)
def test_tokens(tokenization, text, tokens, tmp_path):
    tokenization.splits = {"train": {"sentences": 1, "words": 2, "characters": 3}}
    tokenization.save(tmp_path)
    loaded = Tokenization.load(tmp_path)
    assert loaded == tokenization
    assert loaded.tokenize(text) == (tokens or tokenization.tokenize(text))
    if tokens:
        written = loaded.detokenize(tokens)
        assert loaded.tokenize(written) == tokens
    else:
        assert "@someone" not in loaded.tokenize(text) and "look" in loaded.tokenize(text)


def test_pieces(tmp_path):
    lines = [f"the {noun} saw the {other}" for noun in ("cat", "dog", "house") for other in ("tree", "car", "sea")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "pieces"),
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    Tokenization(bpe="sentencepiece", model="pieces.model", lower=True).save(tmp_path)
    tokenization = Tokenization.load(tmp_path)
    pieces = tokenization.tokenize("The CAT saw the sea")
    assert pieces[0].startswith("▁") and "".join(pieces).replace("▁", " ").strip() == "the cat saw the sea"
    assert tokenization.detokenize(pieces) == "the cat saw the sea"
    (tmp_path / "pieces.model").unlink()
    with pytest.raises(FileNotFoundError, match="pieces.model: no such file"):
        Tokenization.load(tmp_path).tokenize("the cat")


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"cutter": 1}', '{"tokenizer": "knife"}', '{"bpe": "scissors"}', '{"bpe": "sentencepiece"}'),
        *('{"splits": 3}', '{"splits": {"valid": {"sentences": 40}}}', '{"splits": {"valid": [1, 2, 3]}}'),
        *(f'{{"splits": {{"train": {{"sentences": 4, "words": {n}, "characters": 9}}}}}}' for n in (-4, '"x"', 1.5)),
    ],
)
def test_a_file_that_says_something_else_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json: "):
        Tokenization.load(tmp_path)


def test_a_folder_without_the_file(tmp_path):
    assert Tokenization.load(tmp_path) is None
