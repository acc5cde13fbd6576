"""The epochs of a training, read from its log."""

from pathlib import Path

from rnndrop_plugin.training_log import entries


def epochs(log: Path) -> list[dict]:
    """The statistics of the epochs in a log of fairseq-train, including validations, in the order of their updates."""
    if not log.exists() or not log.stat().st_size:
        return []
    found: dict[int, dict] = {}
    for entry in entries(log):
        for prefix in ("valid_", "train_"):  # the two lines of an epoch
            if f"{prefix}num_updates" in entry:
                found.setdefault(int(entry[f"{prefix}num_updates"]), {}).update(entry)
    return [found[updates] for updates in sorted(found) if "train_num_updates" in found[updates]]


def seconds(done: list[dict]) -> float:
    """How long these epochs took, even if the training was interrupted. Unfinished epochs do not count."""
    total = previous = 0.0
    for entry in done:
        wall = float(entry["train_wall"])
        total += wall - previous if wall >= previous else wall  # train_wall starts from 0 when a training is resumed
        previous = wall
    return total
