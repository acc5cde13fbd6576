"""What fairseq-train logs with --log-format json."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from rnndrop_plugin.data.text import read_lines


def entries(path: Path) -> Iterator[dict]:
    """The statistics in a log written with --log-format json: one dict for each time that they were logged.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    for line in read_lines(path):
        found = re.search(r"\{.*\}$", line.strip())
        try:
            entry = json.loads(found.group()) if found else None
        except (ValueError, RecursionError):  # a line of another kind, or one cut short
            continue
        if isinstance(entry, dict):
            yield entry


def epochs(log: Path) -> list[dict]:
    """The statistics of the epochs that a log of fairseq-train has, validations too, in the order of their updates."""
    if not log.exists() or not log.stat().st_size:
        return []
    found: dict[int, dict] = {}
    for entry in entries(log):
        for prefix in ("valid_", "train_"):  # two lines an epoch
            if f"{prefix}num_updates" in entry:
                found.setdefault(int(entry[f"{prefix}num_updates"]), {}).update(entry)
    return [found[updates] for updates in sorted(found) if "train_num_updates" in found[updates]]


def seconds(done: list[dict]) -> float:
    """How long these epochs took, however often the training was interrupted; unfinished epochs do not count."""
    total = previous = 0.0
    for entry in done:
        wall = float(entry["train_wall"])
        total += wall - previous if wall >= previous else wall  # it starts from 0 where the training was resumed
        previous = wall
    return total
