"""Files and directories that are whole or not there, and what the system says in one line."""

import errno
import os

import pytest

from lorakeet.errors import ConfigError
from lorakeet.files import durable
from lorakeet.files.durable import NewFile, make_directory, new_directory, new_file, remove_leftovers, write_file, writing


def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    file = tmp_path / "a"
    write_file(file, b"old")
    write_file(file, b"new")
    assert file.read_bytes() == b"new"
    for name in ("pwrite", "fsync", "replace"):
        monkeypatch.setattr(durable.os, name, fail)
        with pytest.raises(OSError, match="Input/output"):
            write_file(file, b"never")
        monkeypatch.undo()
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert file.read_bytes() == b"new"


def test_a_draft_gets_its_name_at_the_end_of_the_block_or_goes(tmp_path):
    file = tmp_path / "a"
    with new_file(file) as draft:
        with NewFile(draft) as stream:
            stream.write(b"1")
        assert not file.exists()
    assert file.read_bytes() == b"1"
    with pytest.raises(OSError, match="Input/output"), new_file(file) as draft:
        fail(draft.write_bytes(b"2"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"1"


def test_a_file_takes_what_the_system_takes_at_a_time(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(durable.os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:3], offset))
    with NewFile(tmp_path / "a") as file:
        file.write(b"0123456789")
        file.write(b"ab")
        file.write_at(b"XY", 4)
    assert (tmp_path / "a").read_bytes() == b"0123XY6789ab"


def test_a_directory_appears_whole_and_replaces_only_where_told(tmp_path):
    target = tmp_path / "out"
    with new_directory(target) as draft:
        write_file(draft / "a", b"1")
        assert not target.exists()
    with pytest.raises(OSError, match="not empty"), new_directory(target) as draft:
        write_file(draft / "a", b"2")
    assert (target / "a").read_bytes() == b"1"
    with new_directory(target, replace=True) as draft:
        write_file(draft / "b", b"3")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with new_directory(target) as draft:
        write_file(draft / "a", b"1")
    with pytest.raises(FileNotFoundError), new_directory(target, replace=True) as draft:
        (draft / "absent").read_bytes()
    renames = []

    def second_fails(*given):
        renames.append(given)
        return fail() if len(renames) == 2 else rename(*given)

    rename = os.rename
    monkeypatch.setattr(durable.os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"), new_directory(target, replace=True) as draft:
        write_file(draft / "a", b"3")
    assert len(renames) == 3  # aside, into place (fails), and back
    assert (target / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_directory_are_told_apart_and_a_dead_one_is_cleaned_up(tmp_path):
    target = tmp_path / "out"
    with new_directory(target) as draft:
        with pytest.raises(ConfigError, match=r"E-CFG-50 .*is being written by another process"), new_directory(target):
            pass
        write_file(draft / "a", b"1")
    (tmp_path / ".out2.part").mkdir()
    (tmp_path / ".out2.part" / "half").write_bytes(b"x")
    with new_directory(tmp_path / "out2") as draft:
        assert list(draft.iterdir()) == []


def test_leftovers_are_told_from_what_is_the_users(tmp_path):
    for name in (".a.part", ".gitignore", "b.part", "c"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".d.part").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "b.part", "c"]


def test_directories_are_forced_to_disk_in_those_above_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.ENOSPC, "E-CFG-47", r"No space left on device, have [0-9,]+ bytes"),
        (errno.EACCES, "E-CFG-46", "Permission denied"),
        (errno.EIO, "E-CFG-46", "Input/output error"),
    ],
)
def test_what_the_system_says_becomes_one_line(tmp_path, number, code, said):
    place = tmp_path / "absent"
    with pytest.raises(ConfigError, match=rf"^{code} {place} cannot be written: {said}"), writing(place):
        raise OSError(number, os.strerror(number))
