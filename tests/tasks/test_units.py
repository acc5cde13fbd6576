"""Perplexity of a word and bits of a character, by which models of different tokens can be compared."""

import math
import re
import shutil

import pytest
import torch

from rnndrop_plugin.data.tokenization import Tokenization

TASK = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--cpu")
SPLITS = {
    "valid": {"sentences": 20, "words": 60, "characters": 300},
    "test": {"sentences": 15, "words": 40, "characters": 200},
}


def train(command, data, folder, *options):
    return command(
        *("train", data, *TASK, "--arch", "lstm_rnndrop", "--decoder-embed-dim", 8, "--decoder-hidden-size", 8),
        *("--optimizer", "sgd", "--lr", 1, "--batch-size", 4, "--tokens-per-sample", 7, "--max-epoch", 1),
        *("--save-dir", folder, "--log-format", "json", *options),
    )


@pytest.fixture
def data(stream_data, tmp_path):
    folder = shutil.copytree(stream_data, tmp_path / "data")
    Tokenization("moses", lower=True, splits=SPLITS).save(folder)
    return folder


def tokens_of(log, split: str) -> int:
    return int(re.search(rf"{split}: ([\d,]+) tokens", log.text())[1].replace(",", ""))


@pytest.mark.parametrize(
    ("criterion", "nll"),
    [
        (["rnndrop_cross_entropy"], "nll_loss"),
        (["rnndrop_cross_entropy", "--label-smoothing", 0.3], "nll_loss"),
        (["cross_entropy"], "loss"),
    ],
)
def test_validation_logs_them(command, data, tmp_path, criterion, nll):
    log = train(command, data, tmp_path / "run", "--criterion", *criterion, "--best-checkpoint-metric", "word_ppl")
    nats = float(log.metrics(nll, "valid")[0]) * math.log(2) * tokens_of(log, "valid")
    assert float(log.metrics("word_ppl", "valid")[0]) == pytest.approx(math.exp(nats / 80), rel=0.01)
    assert float(log.metrics("bpc", "valid")[0]) == pytest.approx(nats / math.log(2) / 320, rel=0.001)
    with pytest.raises(KeyError):  # the training stream has no counts here
        log.metrics("word_ppl", "train")


def test_eval_lm_says_them(command, data, tmp_path):
    train(command, data, tmp_path / "run")
    path = ("--path", tmp_path / "run" / "checkpoint_last.pt", "--gen-subset", "test")
    log = command("eval_lm", data, *TASK, *path)
    bits = float(re.search(r"Loss \(base 2\): ([\d.]+)", log.text())[1]) * tokens_of(log, "test")
    line = r"Per word: perplexity ([\d.]+); per character: ([\d.]+) bits \(55 words and 215 characters"
    word, character = map(float, re.search(line, log.text()).groups())
    assert word == pytest.approx(2 ** (bits / 55), rel=0.001)
    assert character == pytest.approx(bits / 215, rel=0.001)
    (data / "tokenizer.json").unlink()
    assert "Per word" not in command("eval_lm", data, *TASK, *path).text()  # the words may be anything


def test_counts_of_another_text_are_not_used(command, data, tmp_path):
    Tokenization("moses", splits={"valid": {**SPLITS["valid"], "sentences": 21}}).save(data)
    log = train(command, data, tmp_path / "run")
    assert "valid has 20 sentences, and 21 by tokenizer.json" in log.text()
    with pytest.raises(KeyError):
        log.metrics("word_ppl", "valid")


def test_a_checkpoint_keeps_how_its_text_was_cut(command, data, tmp_path):
    train(command, data, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint_last.pt"
    state = torch.load(path, weights_only=True)
    saved = state["task_state"]["tokenization"]
    settings = {"tokenizer": "moses", "language": "en", "lower": True, "bpe": None, "model": None}
    assert saved == {**settings, "zero_digits": False}
    evaluate = ("eval_lm", data, *TASK, "--path", path, "--gen-subset", "test")
    del saved["zero_digits"]  # an older checkpoint has no such setting
    torch.save(state, path)
    assert "in another way" not in command(*evaluate).text()
    Tokenization("tweets").save(data)
    assert "was cut into tokens in another way" in command(*evaluate).text()


def test_a_file_that_says_something_else_is_refused(command, data, tmp_path, capsys):
    (data / "tokenizer.json").write_text('{"tokenizer": "guess"}')
    with pytest.raises(SystemExit) as exit:
        train(command, data, tmp_path / "run")
    assert exit.value.code == 2
    assert "tokenizer.json: unknown tokenizer 'guess'" in capsys.readouterr().err
