"""The epochs of a training, from its log."""

import json

from experiments.epochs import epochs, seconds


def write_log(path, *lines):
    path.write_text("".join(f"2026-01-01 00:00:00 | INFO | tag | {json.dumps(line)}\n" for line in lines))
    return path


def test_an_epoch_has_its_validation_and_ends_with_the_statistics_of_its_training(tmp_path):
    """A training that is killed after a validation has not ended the epoch."""
    log = write_log(
        tmp_path / "train.log",
        {"epoch": 2, "valid_loss": "3", "valid_num_updates": "20"},
        {"epoch": 2, "train_loss": "4", "train_num_updates": "20"},
        {"epoch": 1, "train_loss": "5", "train_num_updates": "10"},
        {"epoch": 3, "valid_loss": "2", "valid_num_updates": "30"},
    )
    first, second = epochs(log)
    assert (first["train_loss"], second["train_loss"], second["valid_loss"]) == ("5", "4", "3")


def test_a_training_that_has_logged_nothing_has_no_epochs(tmp_path):
    assert epochs(tmp_path / "train.log") == []
    (tmp_path / "train.log").touch()
    assert epochs(tmp_path / "train.log") == []


def test_the_time_of_a_training_that_was_resumed_twice():
    """Each start begins to count anew."""
    assert seconds([{"train_wall": wall} for wall in ("5", "9", "3", "7", "2")]) == 9 + 7 + 2
