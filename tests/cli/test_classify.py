import gzip
import io
import json
import sys

import pytest
import torch

from rnndrop_plugin.cli import classify, tag
from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.tasks import pretrained

COMMON = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_classification", "--cpu")


@pytest.fixture(scope="module")
def checkpoint(command, tagging_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    command(
        *("train", tagging_data, *COMMON, "--criterion", "rnndrop_classification", "--arch", "gru_rnndrop_classifier"),
        *(
            "--decoder-embed-dim",
            12,
            "--decoder-hidden-size",
            16,
            "--update-dropout",
            0.25,
            "--decoder-dropout-out",
            0.5,
        ),
        *("--optimizer", "adam", "--lr", 0.01, "--batch-size", 8, "--max-epoch", 4, "--save-dir", folder),
    )
    return folder / "checkpoint_last.pt"


@pytest.fixture
def classify_texts(call, checkpoint, monkeypatch):
    """Runs the script with the checkpoint on a text at standard input."""

    def classify_texts(text, *args):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call(classify, "--path", checkpoint, *args)

    return classify_texts


@pytest.fixture
def texts(tagging_data, read_split):
    """The test split, one text a line."""
    return [" ".join(words[:-1]) for words in read_split(tagging_data / "word", "test")]


def test_the_model_is_right_as_often_as_fairseq_validate_says(
    classify_texts, command, checkpoint, tagging_data, texts, read_split
):
    status, out, err = classify_texts("\n".join(texts), "--tokenize", "blanks")
    assert (status, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[2] for row in rows] == texts
    labels = [label for label, _ in read_split(tagging_data / "label", "test")]
    correct = sum(row[0] == label for row, label in zip(rows, labels, strict=True))
    log = command(
        *("validate", tagging_data, *COMMON, "--path", checkpoint, "--valid-subset", "test", "--batch-size", 8),
        *("--log-format", "json"),
    )
    accuracy = float(log.metrics("accuracy", "test")[0])
    assert 40 < accuracy < 100
    assert round(100 * correct / len(labels), 2) == accuracy


def test_json_has_all_labels(classify_texts, texts):
    _, columns, _ = classify_texts("\n".join(texts))
    status, out, err = classify_texts("\n".join(texts), "--json")
    assert (status, err) == (0, "")
    for line, columns_line, text in zip(out.splitlines(), columns.splitlines(), texts, strict=True):
        row = json.loads(line)
        label, probability, _ = columns_line.split("\t")
        assert (row["text"], row["label"], row["probabilities"][label]) == (text, label, float(probability))
        assert set(row["probabilities"]) == {"people", "places", "none"}
        assert max(row["probabilities"].values()) == row["probabilities"][label]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-4)


def test_batches_change_nothing(classify_texts, texts):
    outputs = [classify_texts("\n".join(texts), "--json", "--batch-size", size) for size in (1, 7, 1000)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][0] == 0


def test_texts_without_words_have_no_label(classify_texts):
    status, out, err = classify_texts("W1x\r\n\n \x01\nW2y ü\n")
    assert (status, err) == (0, "")
    first, *blank, last, end = out.split("\n")
    assert (blank, end) == (["", ""], "")
    assert (first.split("\t")[2], last.split("\t")[2]) == ("W1x", "W2y ü")
    _, out, _ = classify_texts("W1x\n\n", "--json")
    assert json.loads(out.splitlines()[1]) == {"text": "", "label": None, "probabilities": {}}
    assert classify_texts("\x01\n")[:2] == (0, "\n")


def test_how_texts_are_cut_into_words(classify_texts):
    """In tweets the comma is a word of its own, at blanks it makes an unknown word of both."""
    probabilities = {}
    for text, how in (("W1x,W1x", "tweets"), ("W1x , W1x", "blanks"), ("W1x,W1x", "blanks"), ("<pad>", "blanks")):
        _, out, _ = classify_texts(text, "--json", "--tokenize", how)
        probabilities[text, how] = json.loads(out)["probabilities"]
    assert probabilities["W1x,W1x", "tweets"] == probabilities["W1x , W1x", "blanks"]
    assert probabilities["W1x,W1x", "blanks"] != probabilities["W1x , W1x", "blanks"]


def test_texts_are_lower_cased_as_the_training_texts_were(classify_texts, monkeypatch):
    text, probabilities = "the w1x, W1x", {}
    for lower in (False, True):
        monkeypatch.setattr(pretrained, "Tokenization", lambda _, lower=lower: Tokenization("tweets", lower=lower))
        for given in (text, text.lower()):
            probabilities[lower, given] = json.loads(classify_texts(given, "--json")[1])["probabilities"]
    assert probabilities[True, text] == probabilities[False, text.lower()] != probabilities[False, text]


def test_several_files_one_of_them_compressed(call, checkpoint, classify_texts, tmp_path):
    (tmp_path / "a").write_text("W1x\nW2x")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"w3y\n"))
    assert call(classify, "--path", checkpoint, tmp_path / "a", tmp_path / "b.gz") == classify_texts("W1x\nW2x\nw3y\n")


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("", (), "<stdin>: has no text"),
        ("a\n" + "b" * 10_001, (), "<stdin>, line 2: a text of 10,001 characters, expected at most 10,000"),
        ("a", ("--tokenize", "letters"), "invalid choice: 'letters'"),
        ("a", ("--data", "absent"), "absent: no such folder"),
        ("a", ("--user-dir", "absent"), "--user-dir absent: no such folder"),
    ],
)
def test_input_that_cannot_be_used(classify_texts, text, args, message):
    status, out, err = classify_texts(text, *args)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_checkpoints_of_other_tasks_are_refused(call, checkpoint, tmp_path):
    (tmp_path / "text").write_text("a\n")
    status, out, err = call(tag, "--path", checkpoint, tmp_path / "text")
    assert (status, out) == (2, "")
    expected = f"{checkpoint}: a checkpoint of the task rnndrop_classification, expected rnndrop_tagging"
    assert err == f"tag.py: error: {expected}\n"
    state = torch.load(checkpoint, weights_only=True)
    state["cfg"]["task"]["_name"] = "language_modeling"
    torch.save(state, tmp_path / "other.pt")
    status, out, err = call(classify, "--path", tmp_path / "other.pt", tmp_path / "text")
    assert (status, out) == (2, "")
    assert "a checkpoint of the task language_modeling, expected rnndrop_classification" in err
