import os
from pathlib import Path

import pytest

from rnndrop_plugin.cli.destination import destination
from rnndrop_plugin.cli.splits import Sentence, write_splits


def prepare_streams(dest):
    """Writes two streams, each in its own sub-folder, with splits of any name."""
    sentences = [Sentence("here, line 1", ["a", "b"])]
    with destination(dest) as folder:
        for stream in ("word", "tag"):
            (folder / stream).mkdir()
            write_splits(folder / stream, {"train": sentences * 2, "sms2013": sentences})


@pytest.fixture
def prepare(tmp_path):
    return lambda: prepare_streams(tmp_path / "dest")


def test_any_splits_in_sub_folders(prepare, tmp_path, read_split):
    prepare()
    prepare()  # replaces its own
    for stream in ("word", "tag"):
        assert read_split(tmp_path / "dest" / stream, "train") == [["a", "b", "</s>"]] * 2
        assert read_split(tmp_path / "dest" / stream, "sms2013") == [["a", "b", "</s>"]]
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


STREAM = ["dict.txt", "sms2013.bin", "sms2013.idx", "train.bin", "train.idx"]
WHOLE = sorted(["prepared.json", *(f"{stream}/{name}" for stream in ("word", "tag") for name in STREAM)])


@pytest.mark.parametrize("files", [["dest"], ["dest/mine.txt"], ["dest/mine.txt", "dest/prepared.json"]], ids=str)
def test_what_is_of_others_stays(prepare, tmp_path, write, files):
    """A file, a folder, and a folder whose prepared.json no command wrote."""
    for name in files:
        write(tmp_path / name, "[]")
    with pytest.raises(ValueError, match="dest: exists"):
        prepare()
    assert contents(tmp_path) == files
    assert {(tmp_path / name).read_text() for name in files} == {"[]"}
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


def test_what_comes_while_a_command_runs_stays(prepare, tmp_path):
    prepare()
    with pytest.raises(ValueError, match=r"did not write \(mine.txt\)"), destination(tmp_path / "dest"):
        (tmp_path / "dest" / "mine.txt").write_text("mine")
    assert contents(tmp_path / "dest") == sorted([*WHOLE, "mine.txt"])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_command_leaves_what_was_there(prepare, tmp_path, stop):
    prepare()
    with pytest.raises(stop), destination(tmp_path / "dest") as folder:
        (folder / "half").touch()
        raise stop
    assert contents(tmp_path / "dest") == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_folders_above_it_appear_with_it(tmp_path):
    dest = tmp_path / "a" / "b" / "dest"
    with pytest.raises(ValueError, match="the middle"), destination(dest):
        raise ValueError("the middle")
    assert list(tmp_path.iterdir()) == []
    prepare_streams(dest)
    assert contents(dest) == WHOLE


@pytest.fixture(params=["current folder", "mount point", "folder above it cannot be written"])
def stays(request, monkeypatch, tmp_path):
    """A destination whose folder must stay."""
    folder = tmp_path / "dest"
    folder.mkdir()
    if request.param == "current folder":
        monkeypatch.chdir(folder)
    elif request.param == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    return folder


def test_a_folder_that_must_stay_gets_the_content(stays, tmp_path):
    inode = stays.stat().st_ino
    for _ in range(2):
        prepare_streams(stays)
        assert (stays.stat().st_ino, contents(stays)) == (inode, WHOLE)
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]

    before = (stays / "word" / "dict.txt").read_bytes()
    with pytest.raises(ValueError, match="the middle"), destination(stays) as folder:
        (folder / "half").touch()
        raise ValueError("the middle")
    assert (contents(stays), (stays / "word" / "dict.txt").read_bytes()) == (WHOLE, before)

    (stays / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"did not write \(mine.txt\)"):
        prepare_streams(stays)
    assert contents(stays) == sorted([*WHOLE, "mine.txt"])


def test_a_failure_while_the_content_is_replaced(stays, monkeypatch):
    prepare_streams(stays)
    before = {name: (stays / name).read_bytes() for name in contents(stays)}
    rename = Path.rename

    def fail_once(path, target):
        if path.name == "word" and ".new" in str(path):
            monkeypatch.setattr(Path, "rename", rename)
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="No space left"):
        prepare_streams(stays)
    assert {name: (stays / name).read_bytes() for name in contents(stays)} == before


def test_symbolic_links(tmp_path):
    """A link stays one, to a folder that is there or not yet; one that leads to itself is refused."""
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("dangling", "later")):
        (tmp_path / name).symlink_to(tmp_path / target)
        prepare_streams(tmp_path / name)
        assert (tmp_path / name).is_symlink() and contents(tmp_path / target) == WHOLE
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((ValueError, OSError), match="loop"):
        prepare_streams(tmp_path / "loop")


@pytest.mark.parametrize("name", ["mkdir", "file"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, name):
    dest = tmp_path / "above" / "dest"
    if name == "file":
        dest.parent.touch()
    else:
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Denied")))
    with pytest.raises(OSError) as caught:
        prepare_streams(dest)
    assert caught.value.filename == str(dest)
    assert {path.name for path in tmp_path.iterdir()} <= {"above"}
