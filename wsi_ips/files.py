"""Files that are there whole or not at all, also after a power cut.

A file is written under a temporary name in its own folder and takes its name in one step; its content is on the disk
before that, and the folder's entry after it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = ["remove_leftovers", "sync_file", "sync_folder", "write_whole"]

_LEFTOVER = re.compile(r"\.(?:(?:lock|probe)\.(\d+)|.+\.(\d+)\.tmp)")  # the number is of who was writing


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; makes its folder.

    Raises:
        OSError: the environment gave out; an older file of that name stays, nothing half-made stays behind.
    """
    # one name a process: a file that two write at once is one of the two
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove, of some files, those that a process which is gone was writing when it ended; others stay."""
    for path in paths:
        found = _LEFTOVER.fullmatch(path.name)
        if found and not psutil.pid_exists(int(found[1] or found[2])):
            with contextlib.suppress(OSError):  # it does no harm
                path.unlink()


def sync_file(path: Path) -> None:
    """Bring a file that others wrote to the disk."""
    with path.open("r+b") as f:
        os.fsync(f.fileno())


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
