"""examples/multi30k: what prepare.sh makes, and what it refuses."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "multi30k"
SENTENCES = [f"A {colour} {animal} sees a {other}." for colour in ("red", "blue") for animal in ("dog", "cat", "hen")
             for other in ("cow", "bird", "fish", "ant")]  # fmt: skip


def prepare(*arguments) -> subprocess.CompletedProcess:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = ["bash", EXAMPLE / "prepare.sh", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for split, lines in (("train", SENTENCES), ("val", SENTENCES[:3]), ("test_2016_flickr", SENTENCES[3:5])):
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{split}.en").write_text(text)
        (folder / f"{split}.de.gz").write_bytes(gzip.compress(text.upper().encode()))
    return folder


def test_data_of_two_languages(source, tmp_path):
    from fairseq.data import Dictionary, data_utils
    from sentencepiece import SentencePieceProcessor

    made = prepare(source, tmp_path / "made" / "data", 60)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "made" / "data"
    words = Dictionary.load(str(folder / "dict.de.txt"))
    assert words == Dictionary.load(str(folder / "dict.en.txt"))
    test = data_utils.load_indexed_dataset(f"{folder}/test.en-de.de", words)
    pieces = SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    decoded = [pieces.decode(words.string(test[i]).split()) for i in range(len(test))]
    assert decoded == (folder / "test.de").read_text().splitlines() == [line.upper() for line in SENTENCES[3:5]]


def test_what_it_refuses(source, tmp_path):
    for arguments, line in (
        ((), "usage:"),
        ((source, tmp_path / "data", "many"), "usage:"),
        ((tmp_path / "absent", tmp_path / "data"), "train.en: no such file, nor"),
        ((source, source), "is there already"),
        ((source, tmp_path / "data", 100000), "100000 pieces:"),
    ):
        made = prepare(*arguments)
        assert made.returncode == 2 and line in made.stderr.splitlines()[-1]
        assert not (tmp_path / "data").exists()
