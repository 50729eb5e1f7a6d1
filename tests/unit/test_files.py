"""Whole files: replaced together or not at all, readable by all, and nobody else's is touched."""

import os
import time
from pathlib import Path

import pytest

from companion import files
from companion.errors import CompanionError
from companion.files import clear_stale, write_atomic, write_together
from companion.train import checkpoint


def full(*names: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_is_written_on_the_disk_and_readable_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    flush = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(handle) or flush(handle))
    write_atomic(tmp_path / "new" / "a.json", b"bytes")
    write_atomic(tmp_path / "new" / "b.json", lambda file: file.write(b"more"))
    assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == [b"bytes", b"more"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o644}
    assert len(synced) == 2


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str):
    file = tmp_path / "a.json"
    write_atomic(file, b"old")
    monkeypatch.setattr(files.os, fails, full)
    with pytest.raises(CompanionError, match=r"cannot write .*a\.json: No space left on device; nothing was changed"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_writer_that_fails_keeps_the_old_file(tmp_path: Path):
    write_atomic(tmp_path / "a.pt", b"old")
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "a.pt", lambda file: file.write(b"half") / 0)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_files_that_belong_together_are_replaced_together(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_together({first: b"1", second: b"1"})
    with pytest.raises(CompanionError, match=r"cannot write .*second: No space left"):
        write_together({first: b"2", second: full})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"1")
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CompanionError, match=r"cannot write .*make the folder writable"):
        write_atomic(tmp_path / "file" / "a.json", b"")


def test_only_what_killed_runs_left_long_ago_is_cleared_away(tmp_path: Path):
    names = (".a.pt.x1y2z3w4.tmp", ".a.pt.fresh123.tmp", ".a.pt.old.x1y2z3w4.tmp", ".aXpt.x1y2z3w4.tmp", ".a.pt.note")
    for name in names:
        (tmp_path / name).touch()
        if "fresh" not in name:
            os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    clear_stale(tmp_path / "a.pt")
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def test_what_a_killed_write_leaves_is_what_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody tidies up
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(CompanionError):
        write_atomic(tmp_path / "a.pt", b"half")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    os.utime(left, (time.time() - 90_000,) * 2)
    checkpoint.save(tmp_path / "a.pt", {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").stat().st_mode & 0o777 == 0o644
