import inspect

import pytest

FLAGS = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--arch", "lstm_rnndrop")
FLAGS += ("--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--batch-size", 4, "--tokens-per-sample", 50)
FLAGS += ("--optimizer", "sgd", "--lr", 1e-9, "--lr-scheduler", "rnndrop_plateau", "--lr-shrink", 0.5)
FLAGS += ("--log-format", "json", "--log-interval", 1)


@pytest.fixture(scope="session")
def training(stream_data) -> tuple:
    """The arguments of ``command`` that train a tiny language model, of which an epoch changes next to nothing."""
    return ("train", stream_data, *FLAGS)


@pytest.fixture
def unpatch(monkeypatch):
    """``unpatch(owner, name)`` gives fairseq its own function back, for the rest of a test."""

    def run(owner, name: str) -> None:
        patched = getattr(owner, name)
        assert inspect.unwrap(patched) is not patched
        monkeypatch.setattr(owner, name, inspect.unwrap(patched))

    return run
