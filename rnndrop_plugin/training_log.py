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
