import json
import sys
from pathlib import Path

import pytest

from experiments import experiment, origin, runs


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Has fake_fairseq.py train, with this plan."""
    fake = [sys.executable, str(Path(__file__).with_name("fake_fairseq.py")), str(tmp_path / "plan.json")]
    monkeypatch.setattr(runs, "TRAIN", [*fake, "train"])
    monkeypatch.setattr(runs, "VALIDATE", [*fake, "validate"])
    monkeypatch.setattr(runs, "POLL", 0.02)
    monkeypatch.setattr(experiment, "device_flags", lambda: ["--cpu"])
    monkeypatch.setattr(origin, "commit", lambda: "c0ffee")
    monkeypatch.setattr(origin, "device", lambda cpu: f"a device, {cpu}")
    return lambda plan: (tmp_path / "plan.json").write_text(json.dumps(plan))
