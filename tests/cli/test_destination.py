import pytest

from rnndrop_plugin.cli.destination import destination
from rnndrop_plugin.cli.splits import Sentence, write_splits
from rnndrop_plugin.data.text import read_lines


@pytest.fixture
def prepare(tmp_path):
    """Writes two streams into ``tmp_path / "dest"``, each in its own sub-folder, with splits of any name."""

    def prepare():
        sentences = [Sentence("here, line 1", ["a", "b"])]
        with destination(tmp_path / "dest") as folder:
            for stream in ("word", "tag"):
                (folder / stream).mkdir()
                write_splits(folder / stream, {"train": sentences * 2, "sms2013": sentences})

    return prepare


def test_any_splits_in_sub_folders(prepare, tmp_path, read_split):
    prepare()
    prepare()  # replaces its own
    for stream in ("word", "tag"):
        assert read_split(tmp_path / "dest" / stream, "train") == [["a", "b", "</s>"]] * 2
        assert read_split(tmp_path / "dest" / stream, "sms2013") == [["a", "b", "</s>"]]
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


@pytest.mark.parametrize("foreign", ["word/mine.txt", "word/deep/mine.txt", "mine.txt", "mine/dict.txt"])
def test_what_others_wrote_stays(prepare, tmp_path, foreign):
    prepare()
    path = tmp_path / "dest" / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"did not write \((word/)?(deep|mine)"):
        prepare()
    assert path.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_other_encodings(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("café\n".encode("latin-1"))
    assert read_lines(path, "latin-1") == ["café"]
    with pytest.raises(ValueError, match="text.txt, line 1: not ASCII .byte 0xe9."):
        read_lines(path, "ASCII")
