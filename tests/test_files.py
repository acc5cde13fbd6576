"""Files that appear whole or not at all."""

import errno

import pytest

from rnndrop_plugin.files import atomic_write, write_text


def test_a_file_that_cannot_be_written_stays_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "table.md"
    write_text(path, "whole")

    def fail():
        with atomic_write(path) as new:
            new.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the one above
        fail()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "absent" / "table.md", "whole")
    assert error.value.filename == str(tmp_path / "absent" / "table.md")


def test_an_error_without_a_name_gets_that_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, atomic_write(tmp_path / "table.md"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write raises it
    assert error.value.filename == str(tmp_path / "table.md")


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error, atomic_write(tmp_path / "table.md"):
        (tmp_path / "absent").read_text()
    assert error.value.filename == str(tmp_path / "absent")


def test_an_error_because_of_the_disk_names_the_file(tmp_path):
    """torch.save tells of a full disk by a RuntimeError."""

    def write():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    with pytest.raises(OSError, match="No space left") as error, atomic_write(tmp_path / "table.md"):
        write()
    assert error.value.filename == str(tmp_path / "table.md")


def test_an_interruption_while_an_error_is_handled_stays_one(tmp_path):
    def write():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise KeyboardInterrupt  # noqa: B904

    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "table.md"):
        write()


def test_the_unfinished_file_can_have_a_name_that_stays(tmp_path):
    with atomic_write(tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt.tmp") as new:
        new.write_text("whole")
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt.tmp"]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_an_error_before_the_file_or_one_that_is_hidden_does_not_count(tmp_path):
    def write(hide):
        if hide:
            try:
                raise OSError(errno.EPIPE, "Broken pipe")
            except OSError:
                raise ValueError("the reason") from None
        raise ValueError("the reason")

    for hide in (True, False):
        try:
            raise OSError(errno.EPIPE, "Broken pipe")
        except OSError:
            with pytest.raises(ValueError, match="the reason"), atomic_write(tmp_path / "table.md"):
                write(hide)
