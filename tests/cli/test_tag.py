import gzip
import io
import json
import shutil
import sys

import pytest
import torch

from rnndrop_plugin.cli import tag
from rnndrop_plugin.data.columns import read_sentences
from rnndrop_plugin.data.spans import SpanTags

COMMON = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_tagging", "--cpu")


@pytest.fixture(scope="module")
def checkpoint(command, tagging_data, tmp_path_factory):
    """A small tagger with all that looks at a word and its neighbours: convolutions, both directions, a CRF."""
    folder = tmp_path_factory.mktemp("tagger")
    command(
        *("train", tagging_data, *COMMON, "--criterion", "rnndrop_tagging", "--arch", "lstm_rnndrop_tagger"),
        *("--decoder-embed-dim", 12, "--decoder-hidden-size", 16, "--context", "conv", "--context-filters", 16),
        *(
            "--character-filters",
            8,
            "--bidirectional",
            "--crf",
            "--optimizer",
            "adam",
            "--lr",
            0.01,
            "--batch-size",
            8,
            "--max-epoch",
            10,
        ),
        *("--save-dir", folder, "--log-format", "json"),
    )
    return folder / "checkpoint_best.pt"


@pytest.fixture
def tag_texts(call, checkpoint, monkeypatch):
    """Runs the script with the checkpoint on a text at standard input."""

    def tag_texts(text, *args):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call(tag, "--path", checkpoint, *args)

    return tag_texts


@pytest.fixture
def gold_file(tagging_data, read_split, tmp_path):
    """The test split as a file of columns with IOB1 tags."""
    rows = []
    for words, tags in zip(*(read_split(tagging_data / name, "test") for name in ("word", "tag")), strict=True):
        before = "O"
        for word, own in zip(words[:-1], tags[:-1], strict=True):
            needed = own[0] == "B" and before[2:] == own[2:]  # IOB1 has B- between two neighbours of a type alone
            rows.append(f"{word} x {own if needed else own.replace('B-', 'I-')}")
            before = own
        rows.append("")
    path = tmp_path / "test.conll"
    path.write_text("\n".join(rows))
    return path


def sentences(out):
    """The rows of each sentence that the script wrote."""
    return [[line.split(" ") for line in part.splitlines()] for part in out.removesuffix("\n\n").split("\n\n")]


def test_words_and_tags(tag_texts):
    """Tags follow from the fixture's words; blank lines and words without a dictionary entry have their place, too."""
    status, out, err = tag_texts("w0x W1x, W2x.\r\n\n  \nW1y <pad> &\n")
    assert (status, err) == (0, "")
    rows = [line.split(" ") for line in out.split("\n")]
    words = ["w0x", "W1x", ",", "W2x", ".", "", "", "", "W1y", "<", "pad", ">", "&", "", ""]
    assert [row[0] for row in rows] == words
    assert [rows[i][1] for i in (0, 1, 3, 8)] == ["O", "B-PER", "B-PER", "B-LOC"]
    assert all(len(row) == 2 for row in rows if row[0])


def test_json(tag_texts):
    status, out, err = tag_texts("w0x W1x W2x w3y W4y ü\n\nw0x\n", "--json")
    assert (status, err) == (0, "")
    first, blank, last = map(json.loads, out.splitlines())
    assert first["words"] == ["w0x", "W1x", "W2x", "w3y", "W4y", "ü"]
    assert first["tags"][:5] == ["O", "B-PER", "I-PER", "O", "B-LOC"]
    assert first["entities"][0] == {"type": "PER", "start": 1, "end": 3, "text": "W1x W2x"}
    assert first["entities"][1]["start"] == 4
    assert blank == {"words": [], "tags": [], "entities": []}
    assert last == {"words": ["w0x"], "tags": ["O"], "entities": []}
    assert "ü" in out


def test_symbols_of_fairseq_are_unknown_words(tag_texts):
    """<pad> in a text must not be taken for the end of it, or for anything but an unknown word."""
    tags = {}
    for word in ("<pad>", "<s>", "</s>", "<unk>", "neverseen"):
        status, out, _ = tag_texts(f"W1x\n{word}\nW2x\n", "--conll")
        assert status == 0
        tags[word] = [row[1] for row in sentences(out)[0]]
    assert len(set(map(tuple, tags.values()))) == 1


def test_batches_change_nothing(call, checkpoint, gold_file):
    outputs = {}
    for size in (1, 7, 1000):
        status, outputs[size], err = call(tag, "--path", checkpoint, "--conll", "--batch-size", size, gold_file)
        assert (status, err) == (0, "")
    assert outputs[1] == outputs[7] == outputs[1000]
    expected = [part.splitlines() for part in gold_file.read_text().split("\n\n")]
    words = [[line.split()[0] for line in part] for part in expected]
    assert [[row[0] for row in part] for part in sentences(outputs[1])] == words


def test_scores_are_those_of_fairseq_validate(call, command, checkpoint, tagging_data, gold_file):
    path = checkpoint.with_name("checkpoint2.pt")  # which still makes mistakes
    status, out, err = call(tag, "--path", path, "--conll", "--gold", gold_file)
    assert status == 0
    log = command(
        *("validate", tagging_data, *COMMON, "--path", path, "--valid-subset", "test", "--batch-size", 8),
        *("--log-format", "json"),
    )
    logged = {name: float(log.metrics(name, "test")[0]) for name in ("accuracy", "precision", "recall", "f1", "f1_PER")}
    assert 10 < logged["f1"] < 100  # some entities are found, some are not
    processed, total, places, people = err.splitlines()
    accuracy, precision, recall, f1 = (float(part.split(":")[1].strip(" %")) for part in total.split(";"))
    assert (accuracy, precision, recall, f1) == tuple(
        logged[name] for name in ("accuracy", "precision", "recall", "f1")
    )
    assert people.split()[0] == "PER:" and float(people.split()[-2]) == logged["f1_PER"]
    rows = [row for part in sentences(out) for row in part]
    assert processed.startswith(f"processed {len(rows)} tokens with {sum(row[1][0] == 'B' for row in rows)} phrases;")
    assert accuracy == round(100 * sum(row[1] == row[2] for row in rows) / len(rows), 2)


def test_table_of_conlleval():
    """Counted by hand: an entity with one end wrong is none, I- after another type begins one."""
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "I-PER", "B-ORG"]]
    span_tags = SpanTags({tag for tags in gold + predicted for tag in tags})
    assert tag.conlleval(gold, predicted, span_tags).splitlines() == [
        "processed 7 tokens with 4 phrases; found: 5 phrases; correct: 2.",
        "accuracy:  57.14%; precision:  40.00%; recall:  50.00%; FB1:  44.44",
        "              LOC: precision: 100.00%; recall:  66.67%; FB1:  80.00  2",
        "              ORG: precision:   0.00%; recall:   0.00%; FB1:   0.00  1",
        "              PER: precision:   0.00%; recall:   0.00%; FB1:   0.00  2",
    ]


def test_columns_in_other_places(call, checkpoint, tmp_path):
    """IOBES tags, tabs, the word last, several files, one compressed."""
    (tmp_path / "a").write_bytes("S-LOC\tW1y\nO\tw\xe92x\n".encode("latin-1"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"B-PER\tW1x\nE-PER\tW2x\n"))
    flags = "--conll", "--gold", "--word-column", -1, "--tag-column", 0, "--separator", "\\t", "--encoding", "latin-1"
    status, out, err = call(tag, "--path", checkpoint, *flags, tmp_path / "a", tmp_path / "b.gz")
    assert status == 0
    assert [[row[:2] for row in part] for part in sentences(out)] == [
        [["W1y", "B-LOC"], ["wé2x", "O"]],
        [["W1x", "B-PER"], ["W2x", "I-PER"]],
    ]
    assert err.startswith("processed 4 tokens with 2 phrases;")


def test_true_tags_are_compared_in_iob2(gold_file):
    """Where the model's tags are IOB2 or IOBES, for its predictions are IOB2 then; others are left as they are."""
    gold = read_sentences(gold_file, "utf-8", None, 0, -1)
    iob2 = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    iobes = ["O", *(f"{letter}-{type}" for letter in "BIES" for type in ("PER", "LOC"))]
    expected = [SpanTags(iob2).to_iob2(sentence.tags) for sentence in gold]
    for classes in (iob2, iobes):
        assert tag.true_tags(gold, classes, SpanTags(classes)) == expected
    as_they_are = [sentence.tags for sentence in gold]
    assert as_they_are != expected
    assert tag.true_tags(gold, ["NN", "E-x", "O"], None) == as_they_are


def test_a_data_folder_that_was_moved(call, checkpoint, tagging_data, tag_texts, tmp_path):
    """--data says where the folder is; without it the line says so."""
    state = torch.load(checkpoint, weights_only=True)
    state["cfg"]["task"]["data"] = state["task_state"]["data"] = str(tmp_path / "gone")
    torch.save(state, tmp_path / "moved.pt")
    (tmp_path / "text").write_text("W1x w2y\n")
    args = "--path", tmp_path / "moved.pt", tmp_path / "text"
    status, out, err = call(tag, *args)
    assert (status, out) == (2, "")
    hint = "--data (data= in Python) says where it is now"
    assert f"{tmp_path}/gone: no such folder; {tmp_path}/moved.pt was trained on it, {hint}" in err
    assert call(tag, *args, "--data", tagging_data)[:2] == tag_texts("W1x w2y\n")[:2]
    status, out, err = call(tag, *args, "--data", tmp_path / "absent")
    assert (status, out) == (2, "") and err.endswith("absent: no such folder\n")


def test_a_data_folder_with_another_dictionary(tag_texts, tagging_data, tmp_path):
    other = shutil.copytree(tagging_data, tmp_path / "other")
    (other / "tag" / "dict.txt").write_text("O 1\nB-PER 1\n")
    status, out, err = tag_texts("W1x\n", "--data", other)
    assert (status, out) == (2, "")
    assert "the checkpoint's tag/dict.txt has 9 types and is not the one of" in err


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("", (), "<stdin>: has no text"),
        ("\n \n", (), "<stdin>: has no text"),
        ("a", ("absent.txt",), "absent.txt: No such file"),
        ("a", ("--gold",), "--gold goes with --conll"),
        ("a O", ("--conll", "--gold", "--json"), "--gold goes with --conll, and not with --json"),
        ("a", ("--separator", ","), "--separator go with --conll"),
        ("a O", ("--conll", "--tag-column", 0), "--tag-column with --gold"),
        ("a O", ("--conll", "--word-column", 2), "<stdin>, line 1: has 2 columns, and --word-column asks for column 2"),
        ("a b\n", ("--conll", "--gold"), "<stdin>, line 1: 'b' is not a tag"),
        ("a B-X\nb O\nc S-X", ("--conll", "--gold"), "line 2: O after B-X is not in IOBES, the scheme of these files"),
        ("-DOCSTART- O\n", ("--conll",), "<stdin>: has no sentence"),
        ("a", ("--batch-size", 0), "'0' is not a whole number of at least 1"),
        ("a", ("--language", "xx"), "'xx' is not one of"),
        ("a", ("--conll", "--language", "de"), "--language does not go with --conll, whose words are cut already"),
    ],
)
def test_input_that_cannot_be_used(tag_texts, text, args, message):
    status, out, err = tag_texts(text, *args)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_bytes_that_are_not_utf_8(call, checkpoint, tmp_path):
    (tmp_path / "text").write_bytes(b"a\nb\xff\n")
    status, out, err = call(tag, "--path", checkpoint, tmp_path / "text")
    assert (status, out) == (2, "")
    assert "text, line 2: not utf-8 (byte 0xff)" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "checkpoint.pt: cannot load this checkpoint: No such file"),
        (b"", "checkpoint.pt: cannot load this checkpoint: it is damaged"),
        ({"model": {}}, "checkpoint.pt: cannot load this checkpoint: the file is whole, but not one of fairseq's"),
    ],
)
def test_checkpoints_that_cannot_be_loaded(call, tmp_path, content, message):
    (tmp_path / "text").write_text("a\n")
    if isinstance(content, bytes):
        (tmp_path / "checkpoint.pt").write_bytes(content)
    elif content:
        torch.save(content, tmp_path / "checkpoint.pt")
    status, out, err = call(tag, "--path", tmp_path / "checkpoint.pt", tmp_path / "text")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err
