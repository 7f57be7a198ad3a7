"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from wsi_ips import files
from wsi_ips.files import remove_leftovers, sync_file, write_whole


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    """Content replaces older content; nothing else is left in the folder."""
    path = tmp_path / "a" / "b" / "x.bin"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["x.bin"]
    sync_file(path)
    assert path.read_bytes() == b"new"


def test_fault_078_and_091_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: Any) -> None:
    """The file is synced, then renamed, then its folder is synced."""
    path, steps = tmp_path / "x", []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    write_whole(path, b"x")
    assert steps == ["file", "rename", "folder"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_half_made(tmp_path: Path, monkeypatch: Any) -> None:
    """A full disk: the error comes through, the old content stays alone."""
    write_whole(tmp_path / "x", b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_leftovers_of_dead_processes_go_and_all_else_stays(tmp_path: Path) -> None:
    """A killed process leaves files under temporary names; a living one's, and other people's, are not touched."""
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    gone = [f".x.png.{dead}.tmp", f".probe.{dead}", f".lock.{dead}"]
    stay = [f".x.png.{os.getpid()}.tmp", f".lock.{os.getpid()}", ".lock", "x.png", f".note.{dead}", f"y.{dead}.tmp", ".z.tmp"]
    for name in gone + stay:
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path.iterdir())
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
