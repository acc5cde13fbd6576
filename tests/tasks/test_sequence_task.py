"""Taggers and classifiers through fairseq's own commands."""

import shutil
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary, indexed_dataset

from rnndrop_plugin.data.indexed import load_split, real_symbols

TASKS = {"tagging": "tagger", "classification": "classifier"}


def flags(task: str, data: Path, save_dir: Path, *options) -> list:
    return [
        *(data, "--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--criterion", f"rnndrop_{task}"),
        *("--arch", f"lstm_rnndrop_{TASKS[task]}", "--decoder-embed-dim", 12, "--decoder-hidden-size", 16),
        *("--batch-size", 8, "--optimizer", "adam", "--lr", 0.01, "--clip-norm", 5, "--cpu", "--seed", 3),
        *("--save-dir", save_dir, "--log-format", "json", "--best-checkpoint-metric", "f1"),
        *("--maximize-best-checkpoint-metric", "--max-epoch", 2, *options),
    ]


DROPOUT = ("--update-dropout", 0.25, "--decoder-dropout-in", 0.1, "--decoder-dropout-out", 0.1)
EXTRACTS = {"tagging": ("--extract-length", 4, "--character-filters", 3, *DROPOUT), "classification": DROPOUT}


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module", params=TASKS)
def trained(request, command, tagging_data, tmp_path_factory):
    """A task, the folder of a training and its log."""
    folder = tmp_path_factory.mktemp(request.param)
    log = command("train", *flags(request.param, tagging_data, folder, *EXTRACTS[request.param], "--max-epoch", 12))
    return request.param, folder, log


@pytest.mark.parametrize("name", ["generate", "interactive"])
def test_a_model_that_writes_no_text(trained, refuse, tagging_data, name):
    task, folder, _ = trained
    arguments = ("--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--path", folder / "checkpoint_best.pt")
    assert "`rnndrop tag` and `rnndrop classify` use it" in refuse(name, tagging_data, *arguments, "--cpu")


def test_a_small_model_learns(trained, command, tagging_data):
    """The fixture's tags and labels follow from the words."""
    task, folder, log = trained
    scores = [float(score) for score in log.metrics("f1", "valid")]
    assert scores[-1] > 80 and scores[-1] > scores[0]
    losses = [float(loss) for loss in log.metrics("loss", "train")]
    assert losses[-1] < losses[0] / 2
    assert float(log.metrics("accuracy", "train")[-1]) > 80


def test_every_sequence_is_scored_whatever_the_batch(trained, command, tagging_data):
    """31 test sequences: fairseq's own batches would leave out 7, its --required-batch-size-multiple being 8."""
    task, folder, _ = trained
    common = (
        tagging_data,
        "--user-dir",
        "rnndrop_plugin",
        "--task",
        f"rnndrop_{task}",
        "--cpu",
        "--log-format",
        "json",
    )
    path = ("--path", folder / "checkpoint_best.pt", "--valid-subset", "test")
    lines = []
    for size in (("--batch-size", 1), ("--batch-size", 7), ("--max-tokens", 40)):
        log = command("validate", *common, *path, *size)
        lines.append({name: log.metrics(name, "test") for name in ("loss", "accuracy", "f1", "bsz")})
    assert lines[0] == lines[1] == lines[2]
    assert lines[0]["bsz"] == ["31"]


def test_a_resumed_run_equals_an_uninterrupted_one(command, tagging_data, tmp_path):
    """Extracts, masks and batches are the same after a stop in the middle of an epoch."""
    for task in TASKS:
        options = (*EXTRACTS[task], "--save-interval-updates", 10, "--max-epoch", 3)
        whole, parts = tmp_path / f"{task}-whole", tmp_path / f"{task}-parts"
        command("train", *flags(task, tagging_data, whole, *options))
        command("train", *flags(task, tagging_data, parts, *options, "--max-update", 20))
        log = command("train", *flags(task, tagging_data, parts, *options))
        assert "Loaded checkpoint" in log.text() and "@ 20 updates" in log.text()
        expected, found = (parameters(folder / "checkpoint_last.pt") for folder in (whole, parts))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_length_expansion_goes_on_from_the_parameters_alone(command, tagging_data, tmp_path):
    """Section 4.4 of arXiv v2: 5 words, then 15 - in small."""
    command("train", *flags("tagging", tagging_data, tmp_path / "short", "--extract-length", 2))
    finetune = ("--finetune-from-model", tmp_path / "short" / "checkpoint_last.pt", "--extract-length", 6)
    log = command("train", *flags("tagging", tagging_data, tmp_path / "long", *finetune, "--max-epoch", 1))
    assert "loading pretrained model" in log.text()
    first = float(log.metrics("loss", "train")[0])
    fresh = command(
        "train", *flags("tagging", tagging_data, tmp_path / "fresh", "--extract-length", 6, "--max-epoch", 1)
    )
    assert first < float(fresh.metrics("loss", "train")[0])


@pytest.mark.parametrize("task", TASKS)
def test_rmsprop_and_every_cell_train(task, command, tagging_data, tmp_path):
    for cell in ("gru", "rnn"):
        options = (
            "--arch",
            f"{cell}_rnndrop_{TASKS[task]}",
            "--hidden-dropout",
            0.25,
            "--optimizer",
            "rnndrop_rmsprop",
        )
        extra = ("--context", "concat", "--bidirectional", "--crf") if task == "tagging" else ()
        log = command("train", *flags(task, tagging_data, tmp_path / cell, *options, *extra, "--max-epoch", 3))
        losses = [float(loss) for loss in log.metrics("loss", "train")]
        assert losses[-1] < losses[0]


def write_ids(path: Path, sequences: list[list[int]]) -> None:
    """Write a split anew."""
    builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=20)
    for sequence in sequences:
        builder.add_item(torch.tensor(sequence))
    builder.finalize(f"{path}.idx")


@pytest.fixture
def own_data(tagging_data, tmp_path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(tagging_data, tmp_path / "own"))


def test_training_data_in_parts_are_read_together(command, own_data, tmp_path):
    for stream in ("word", "capitalisation", "characters", "tag"):
        for ending in ("bin", "idx"):
            shutil.copy(own_data / stream / f"valid.{ending}", own_data / stream / f"train1.{ending}")
    log = command("train", *flags("tagging", own_data, tmp_path / "run", "--max-epoch", 1, "--batch-size", 10))
    assert log.metrics("num_updates", "train") == ["15"]  # 120 sentences and 30


def test_the_last_batch_of_an_epoch_can_be_left_out_of_the_training_alone(command, tagging_data, tmp_path):
    options = ("--max-epoch", 2, "--batch-size", 7, "--skip-remainder-batch")
    log = command("train", *flags("tagging", tagging_data, tmp_path, *options))
    assert log.metrics("num_updates", "train") == ["17", "34"]  # of 18 batches
    whole = ("--path", tmp_path / "checkpoint_last.pt", "--log-format", "json", "--batch-size", 30)
    validated = command("validate", tagging_data, *flags("tagging", "", "")[1:5], *whole)
    assert log.metrics("f1", "valid")[-1:] == validated.metrics("f1", "valid")


@pytest.mark.parametrize("task", TASKS)
def test_symbols_that_fairseq_made_up_are_no_classes(task, command, tagging_data, own_data, refuse, tmp_path):
    """As fairseq-preprocess writes dictionaries: their size is a multiple of 8. Nothing comes of it."""
    for stream in ("tag", "label", "capitalisation"):
        with open(own_data / stream / "dict.txt", "a") as file:
            file.writelines(f"madeupword{i:04d} 0\n" for i in range(3))
    names = ("loss", "accuracy", "f1")
    plain, padded = (
        command("train", *flags(task, data, tmp_path / data.name, "--max-epoch", 1))
        for data in (tagging_data, own_data)
    )
    assert [plain.metrics(name, "valid") for name in names] == [padded.metrics(name, "valid") for name in names]
    assert "madeupword" not in padded.text()

    path = tmp_path / "own" / "checkpoint_last.pt"
    checkpoint = torch.load(path, weights_only=True)
    model = checkpoint["model"]
    classes = len(model["output_projection.bias"])
    for name in ("output_projection.weight", "output_projection.bias"):  # as they were when they had classes for them
        model[name] = torch.cat([model[name], model[name][:3]])
    torch.save(checkpoint, path)
    line = refuse("train", *flags(task, own_data, tmp_path / "own"))
    assert "trained with classes that fairseq-preprocess made up" in line and "--finetune-from-model" in line
    finetune = ("--finetune-from-model", path, "--max-epoch", 1)
    command("train", *flags(task, own_data, tmp_path / "new", *finetune))
    assert len(parameters(tmp_path / "new" / "checkpoint_last.pt")["output_projection.bias"]) == classes


def test_a_label_of_such_a_name_that_occurs_is_one():
    dictionary = Dictionary()
    for name, count in {"good": 9, "bad": 0, "madeupword0000": 4, "madeupword0001": 0, "madeupword0002": 0}.items():
        dictionary.add_symbol(name, count)
    assert real_symbols(dictionary) == ["good", "bad", "madeupword0000"]


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("tagging", "I-LOC", "train does not have the tag I-LOC: a model cannot learn it"),
        ("classification", "none", "train does not have the label none: a model cannot learn it"),
    ],
)
def test_classes_that_do_not_occur_are_told(command, own_data, tmp_path, task, change, message):
    stream = own_data / {"tagging": "tag", "classification": "label"}[task]
    dictionary = Dictionary.load(str(stream / "dict.txt"))
    for split in ("train", "valid"):
        sequences = load_split(str(stream), split, dictionary)
        other = next(i for i in range(dictionary.nspecial, len(dictionary)) if dictionary[i] != change)
        write_ids(stream / split, [[other if dictionary[i] == change else i for i in s.tolist()] for s in sequences])
    log = command("train", *flags(task, own_data, tmp_path / "run", "--max-epoch", 1))
    assert message in log.text()
    assert f"valid does not have the {stream.name} {change}" in log.text()


def test_classes_that_only_the_validation_lacks_are_trained(command, own_data, tmp_path):
    ignore = ("--ignore-absent-classes", "--max-epoch", 1)
    command("train", *flags("classification", own_data, tmp_path / "whole", *ignore))
    stream = own_data / "label"
    dictionary = Dictionary.load(str(stream / "dict.txt"))
    labels = [s.tolist() for s in load_split(str(stream), "valid", dictionary)]
    write_ids(stream / "valid", [[dictionary.nspecial, *label[1:]] for label in labels])
    log = command("train", *flags("classification", own_data, tmp_path / "part", *ignore))
    assert "valid does not have the label" in log.text() and "train does not have" not in log.text()
    assert "a model cannot learn it" not in log.text()
    whole, part = (parameters(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_a_tag_that_the_training_does_not_have_is_refused(refuse, own_data, tmp_path):
    """fairseq-preprocess writes <unk> for it, which is no class."""
    dictionary = Dictionary.load(str(own_data / "tag" / "dict.txt"))
    sequences = [s.tolist() for s in load_split(str(own_data / "tag"), "valid", dictionary)]
    sequences[6][0] = dictionary.unk()
    write_ids(own_data / "tag" / "valid", sequences)
    line = refuse("train", *flags("tagging", own_data, tmp_path / "run"))
    assert "tag/valid.bin: sequence 7 has a tag that dict.txt does not have (<unk>)" in line


def test_a_sentence_without_words_is_refused(refuse, own_data, tmp_path):
    for stream in ("capitalisation", "characters"):
        shutil.rmtree(own_data / stream)
    for stream in ("word", "tag"):
        dictionary = Dictionary.load(str(own_data / stream / "dict.txt"))
        sequences = [s.tolist() for s in load_split(str(own_data / stream), "valid", dictionary)]
        write_ids(own_data / stream / "valid", [*sequences[:6], [dictionary.eos()], *sequences[7:]])
    line = refuse("train", *flags("tagging", own_data, tmp_path / "run"))
    assert "word/valid.bin: sequence 7 has 0 symbols, expected 1" in line


def test_tags_that_mark_no_spans(command, own_data, tmp_path):
    path = own_data / "tag" / "dict.txt"
    path.write_text(path.read_text().replace("B-PER", "NNP"))
    log = command("train", *flags("tagging", own_data, tmp_path / "run", "--max-epoch", 3))
    assert log.text().count("the tags do not mark spans (NNP is not a tag like B-PER or I): f1 is the mean F1") == 1
    assert float(log.metrics("f1", "valid")[-1]) > 0
    with pytest.raises(KeyError):
        log.metrics("precision", "valid")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: shutil.rmtree(data / "word"), "word/dict.txt: no such file"),
        (lambda data: shutil.rmtree(data / "tag"), "tag/dict.txt: no such file"),
        (lambda data: (data / "tag" / "train.bin").unlink(), "tag/train.bin, .idx: no such files"),
        (lambda data: (data / "tag" / "dict.txt").write_text("O 1\n"), "two classes or more are needed"),
        (lambda data: (data / "tag" / "dict.txt").write_text("O 1\nB-PER 1\n"), "is beyond the 6 types of dict.txt"),
        (lambda data: (data / "word" / "valid.idx").write_bytes(b""), "word/valid.bin, .idx: damaged"),
        (lambda data: (data / "word" / "valid.bin").write_bytes(b""), "word/valid.bin: there is no text in it"),
        (lambda data: (data / "characters" / "train.bin").unlink(), "characters/train.bin, .idx: no such files"),
        (
            lambda data: [
                shutil.copy(data / "word" / f"train.{e}", data / "characters" / f"train.{e}") for e in ("bin", "idx")
            ],
            "is beyond the 13 types of dict.txt",
        ),
        (
            lambda data: [
                shutil.copy(data / "capitalisation" / f"train.{e}", data / "characters" / f"train.{e}")
                for e in ("bin", "idx")
            ],
            "characters/train.bin: 120 words, but there are 5",
        ),
        (
            lambda data: [shutil.copy(data / "tag" / f"test.{e}", data / "tag" / f"train.{e}") for e in ("bin", "idx")],
            "tag/train.bin: 31 sequences, but there are 120 of words",
        ),
        (
            lambda data: [
                shutil.copy(data / "label" / f"train.{e}", data / "tag" / f"train.{e}") for e in ("bin", "idx")
            ],
            "symbols, expected",
        ),
    ],
)
def test_data_that_cannot_be_used_are_refused(damage, message, refuse, own_data, tmp_path):
    damage(own_data)
    assert message in refuse("train", *flags("tagging", own_data, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("tagging", ("--extract-length", 0), "--extract-length must be at least 1, got 0"),
        ("tagging", ("--arch", "lstm_rnndrop_classifier"), "use an architecture such as lstm_rnndrop_tagger"),
        ("classification", ("--arch", "lstm_rnndrop_tagger"), "use an architecture such as lstm_rnndrop_classifier"),
        ("classification", ("--criterion", "cross_entropy"), "use --criterion rnndrop_classification"),
        ("tagging", ("--criterion", "rnndrop_classification"), "use --criterion rnndrop_tagging"),
        ("classification", ("--f1-classes", "people,animals"), "--f1-classes: 'animals' is not one of the labels"),
        ("tagging", ("--character-filters", -1), "--character-filters must be at least 0, got -1"),
        ("tagging", ("--max-tokens", 3), "raise --max-tokens or --max-tokens-valid, which is 3"),
        ("classification", ("--batch-size", 0), "--batch-size and --batch-size-valid must be at least 1, got 0"),
        ("tagging", ("--valid-subset", "absent"), "word/absent.bin, .idx: no such files"),
        ("tagging", ("--decoder-embed-path", "absent.txt"), "--decoder-embed-path absent.txt: No such file"),
        (
            "tagging",
            ("--optimizer", "rnndrop_rmsprop", "--rmsprop-alpha", 2),
            "--rmsprop-alpha must be in [0, 1), got 2",
        ),
        ("tagging", ("--finetune-from-model", "absent.pt"), "absent.pt"),
    ],
)
def test_flags_that_cannot_be_are_refused(task, options, message, refuse, tagging_data, tmp_path):
    assert message in refuse("train", *flags(task, tagging_data, tmp_path / "run", *options))
    assert not list((tmp_path / "run").glob("*.pt"))


def change_one(lines: list[str]) -> list[str]:
    return [line.replace("w3x ", "other ") for line in lines]


def change_the_order(lines: list[str]) -> list[str]:
    return lines[::-1]


@pytest.mark.parametrize("change", [change_one, change_the_order])
def test_a_checkpoint_of_other_dictionaries_is_refused(trained, refuse, own_data, tmp_path, change):
    task, folder, _ = trained
    path, words = folder / "checkpoint_best.pt", own_data / "word" / "dict.txt"
    words.write_text("".join(change(words.read_text().splitlines(keepends=True))))
    run = tmp_path / "run"
    run.mkdir()
    validate = ("validate", own_data, "--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--cpu")
    finetune = ("train", *flags(task, own_data, tmp_path / "new", *EXTRACTS[task], "--finetune-from-model", path))
    shutil.copy(path, run / "checkpoint_last.pt")
    resume = ("train", *flags(task, own_data, run, *EXTRACTS[task]))
    for arguments in (
        (*validate, "--path", path, "--batch-size", 4, "--model-overrides", f"{{'data': '{own_data}'}}"),
        finetune,
        resume,
    ):
        assert "word/dict.txt has 24 types and is not the one of" in refuse(*arguments)


def test_a_checkpoint_of_the_other_task_is_refused(trained, refuse, tagging_data, tmp_path):
    task, folder, _ = trained
    other = next(name for name in TASKS if name != task)
    options = ("--finetune-from-model", folder / "checkpoint_best.pt")
    line = refuse("train", *flags(other, tagging_data, tmp_path / "run", *options))
    assert "the checkpoint was trained without" in line or "do not fit this model" in line


def test_taggers_are_scored_on_whole_sentences_of_the_training_split_too(command, tagging_data, tmp_path):
    flags = (tagging_data, "--user-dir", "rnndrop_plugin", "--task", "rnndrop_tagging", "--log-format", "json")
    flags += ("--criterion", "rnndrop_tagging", "--batch-size", 8)
    model = ("--arch", "lstm_rnndrop_tagger", "--decoder-embed-dim", 4, "--decoder-hidden-size", 4)
    model += ("--optimizer", "sgd", "--lr", 0.1, "--extract-length", 3, "--save-dir", tmp_path, "--max-epoch", 1)
    scored, trained = command("train", *flags, *model, "--valid-subset", "valid,train").metrics("loss", "train")
    assert scored != trained
    evaluate = ("validate", *flags, "--path", tmp_path / "checkpoint_best.pt", "--valid-subset", "train")
    for overrides in ("{}", "{'extract_length': None}"):
        assert command(*evaluate, "--model-overrides", overrides).metrics("loss", "train") == [scored]
