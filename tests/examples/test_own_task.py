"""examples/own_task: a subclass of a task of rnndrop's, and a task from scratch."""

import random

from rnndrop_plugin.cli.splits import Sentence, write_splits
from rnndrop_plugin.models import RecurrentTagger

RUN = (
    "--user-dir examples/own_task --cpu --seed 1 --optimizer adam --no-epoch-checkpoints --log-format json "
    "--num-workers 0"
).split()


def write_words(folder):
    """Nouns are capitals. A, B and C are in the training text, X, Y and Z in the validation alone."""
    chosen = random.Random(1)
    streams = {"word": {}, "capitalisation": {}, "tag": {}}
    for split, nouns, size in (("train", "ABC", 60), ("valid", "ABCXYZ", 20)):
        words = [[chosen.choice([chosen.choice(nouns), "walks", "sees"]) for _ in range(4)] for _ in range(size)]
        streams["word"][split] = words
        streams["capitalisation"][split] = [["title" if w.isupper() else "lower" for w in row] for row in words]
        streams["tag"][split] = [["NOUN" if w.isupper() else "VERB" for w in row] for row in words]
    for name, splits in streams.items():
        (folder / name).mkdir()
        sentences = {split: [Sentence("", row) for row in rows] for split, rows in splits.items()}
        write_splits(folder / name, sentences, min_count=2)
    return streams["word"]["valid"]


def test_part_of_speech(command, tmp_path):
    validation = write_words(tmp_path)
    task = "--task part_of_speech --arch lstm_rnndrop_tagger --criterion part_of_speech".split()
    sizes = "--decoder-embed-dim 4 --decoder-hidden-size 4 --batch-size 5 --lr 0.05".split()
    logged = command("train", tmp_path, *RUN, *task, *sizes, "--max-epoch", 5, "--save-dir", tmp_path / "runs")
    assert float(logged.metrics("accuracy", "valid")[-1]) > 95
    unknown = [float(value) for value in logged.metrics("unknown_accuracy", "valid")]
    assert unknown[-1] > 95  # by their capitals alone

    # A validation by the tagger itself counts the same.
    tagger = RecurrentTagger.from_pretrained(tmp_path / "runs", "checkpoint_last.pt")
    tags = tagger.predict(validation)
    pairs = [pair for row in zip(validation, tags, strict=True) for pair in zip(*row, strict=True) if pair[0] in "XYZ"]
    assert unknown[-1] == round(100 * sum(tag == "NOUN" for _, tag in pairs) / len(pairs), 2)


def test_regression(command, tmp_path):
    task = "--task adding_problem --length 5 --arch lstm_regression --criterion mean_squared_error".split()
    flags = (
        "--decoder-hidden-size 32 --update-dropout 0.1 --batch-size 64 --lr 0.03 --clip-norm 1 --max-epoch 6".split()
    )
    logged = command("train", *RUN, *task, *flags, "--save-dir", tmp_path)
    losses = [float(value) for value in logged.metrics("loss", "valid")]
    assert losses[0] > 0.03 > 0.01 > losses[-1]  # a constant has 1/6
