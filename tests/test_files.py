"""A file saved by manyhead.files is the old one or the new one, whatever happens in between."""

import os
import stat
from pathlib import Path

import pytest

from manyhead import files
from manyhead.training.child import Attempt
from manyhead.training.faults import ERRORS, Disk

OLD, NEW = b"old" * 1000, b"new" * 5000


def rewrite(folder: Path, resume: bool) -> str:
    files.write_bytes(folder / "file.bin", NEW)
    return "done"


def points(folder: Path) -> int:
    outcome = Attempt(rewrite, folder, False).wait()
    assert not outcome.error
    return len(outcome.places)


def test_a_kill_at_any_point_of_a_save_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    seen = []
    for at in range(1, points(tmp_path) + 1):
        path.write_bytes(OLD)
        assert Attempt(rewrite, tmp_path, False, Disk(tmp_path, "kill", at)).wait().killed
        content = path.read_bytes()
        assert content in (OLD, NEW), f"a mixture after a kill at point {at}"
        seen.append(content == NEW)
    assert seen == sorted(seen), "the new file was there, then the old one again"
    assert True in seen
    assert False in seen


@pytest.mark.parametrize("kind", sorted(ERRORS))
def test_a_fault_of_the_disk_is_raised_and_leaves_the_old_file_alone(tmp_path: Path, kind) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    outcome = Attempt(rewrite, tmp_path, False, Disk(tmp_path, kind, 1)).wait()
    assert outcome.struck
    assert "Error" in outcome.error
    assert not outcome.result
    assert path.read_bytes() == OLD
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"], "a half-written file was left"


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def interrupted() -> None:
        with files.atomic(path, "w") as stream:
            stream.write("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_text_is_utf8_in_a_folder_that_is_made_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "file.txt"
    files.write_text(path, "Grüße, 你好\n")
    assert path.read_bytes() == "Grüße, 你好\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    files.write_bytes(path, b"")
    assert path.read_bytes() == b""


def test_readers_never_see_a_part_while_a_writer_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    files.write_bytes(path, OLD)
    with files.atomic(path) as stream:
        stream.write(NEW[:100])
        stream.flush()
        assert path.read_bytes() == OLD
        stream.write(NEW[100:])
    assert path.read_bytes() == NEW


def test_the_folder_is_synced_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append(stat.S_ISDIR(os.fstat(d).st_mode)), fsync(d)))
    files.write_bytes(tmp_path / "file.bin", NEW)
    assert calls == [False, "rename", True]  # the content, then the name, then the folder's entries
