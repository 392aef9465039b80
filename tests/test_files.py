"""Files replaced whole or not at all."""

import os

import pytest

from rnnlm.errors import ModelError, RnnlmError
from rnnlm.files import replacing


def write(path, content=b"new", error=ModelError):
    """Replace a file."""
    with replacing(path, error, "make room") as file:
        file.write(content)


def test_a_file_is_replaced_when_all_of_it_is_there(tmp_path):
    """Until the end of the block the old file stands, after it the new one, and nothing else."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, ModelError, "make room") as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The content is synchronized, whole, and only then renamed: a power cut leaves the old file or the new one."""
    path = tmp_path / "file"
    done = []
    honest_sync, honest_replace = os.fsync, os.replace

    def sync(number):
        done.append(("synchronized", os.fstat(number).st_size))
        honest_sync(number)

    def rename(source, target):
        done.append(("renamed", 0))
        honest_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    write(path, b"12345")
    assert done == [("synchronized", 5), ("renamed", 0)]


@pytest.mark.parametrize("leftover", ["a file", "a link to a file", "a link to nowhere"])
def test_a_temporary_name_is_never_followed(tmp_path, leftover):
    """What stands under the temporary name, a link too, is removed, and what a link leads to is left alone."""
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"precious")
    temporary = tmp_path / ".file.tmp"
    if leftover == "a file":
        temporary.write_bytes(b"half")
    else:
        temporary.symlink_to(other if leftover == "a link to a file" else tmp_path / "nowhere")
    write(path)
    assert path.read_bytes() == b"new"
    assert other.read_bytes() == b"precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]


def test_a_link_that_comes_in_between_is_an_error(tmp_path, monkeypatch):
    """A link that is put there after the leftover was removed is not followed either: the file is made exclusively."""
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / ".file.tmp").symlink_to(other)
    monkeypatch.setattr(type(path), "unlink", lambda *_, **__: None)
    with pytest.raises(ModelError, match=r"file: cannot be written \(file exists\); make room"):
        write(path)
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    """Whatever happens in the block, the old file stands, nothing else is left, and a full disk gives a sentence."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with replacing(path, ModelError, "make room") as file:
            file.write(b"half")
            raise error

    with pytest.raises(RnnlmError if isinstance(error, OSError) else type(error)) as raised:
        fail()
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path}: cannot be written (no space left on device); make room"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_while_the_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    """Where an interrupt comes when the temporary file is there, but not yet open, it is removed."""
    path = tmp_path / "file"

    def interrupted(self, mode):
        self.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_failure_is_told(tmp_path, monkeypatch):
    """Where tidying up fails as well, the user hears of what failed first."""
    path = tmp_path / "file"

    def refuse(*_, missing_ok=False):
        if not missing_ok:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(ModelError, match="no space left"), replacing(path, ModelError, "make room"):
        raise OSError(28, "No space left on device")
