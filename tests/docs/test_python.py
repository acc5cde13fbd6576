"""The snippets of docs/python.md run as they stand, in a folder with trained models."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
RUN = (
    "--user-dir rnndrop_plugin --cpu --decoder-embed-dim 4 --decoder-hidden-size 4 --batch-size 8 --optimizer adam "
    "--lr 0.01 --max-update 2 --no-epoch-checkpoints --disable-validation --save-dir"
).split()


@pytest.fixture(scope="module")
def folder(command, stream_data, tagging_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    for name, data, task, arch, criterion in (
        ("lm", stream_data, "language_modeling", "", "cross_entropy"),
        ("tagger", tagging_data, "tagging", "_tagger", "tagging"),
        ("classifier", tagging_data, "classification", "_classifier", "classification"),
    ):
        ours = ["--task", f"rnndrop_{task}", "--arch", f"lstm_rnndrop{arch}", "--criterion", f"rnndrop_{criterion}"]
        command("train", data, *ours, *RUN, folder / "checkpoints" / name)
        last = folder / "checkpoints" / name / "checkpoint_last.pt"
        last.rename(last.with_name("checkpoint_best.pt"))
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("import ")[-1].split()[0])
def test_snippets(snippet, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    scope = {}
    exec(snippet, scope)
    assert "print(" not in snippet or capsys.readouterr().out.strip()
    if "lstm" in scope:
        assert scope["output"].shape == (35, 32, 128)


def test_there_are_snippets_of_every_kind():
    assert [len(re.findall(name, " ".join(SNIPPETS))) > 0 for name in ("LSTM", "score", "sample", "predict")] == [
        True
    ] * 4
