"""Files that are there whole or not at all, also after a power cut.

A file is written under a temporary name in its own folder and takes its name in one step; its content is on the disk
before that, and the folder's entry after it.

A folder that several people share may hold links and pipes that somebody has put there: no link is written through, and
`read_regular` reads none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import psutil

__all__ = ["is_inside", "is_regular", "open_journal", "open_new", "read_regular", "remove_leftovers", "sync_file", "sync_folder", "without_links",
           "write_whole"]  # fmt: skip

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
        with open_new(temporary) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing; what stands there under its name, be it a link, is removed and never written to.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        return path.open("xb")
    path.unlink()
    return path.open("xb")


def is_inside(name: object) -> bool:
    """Tell whether a name out of a record stays in the folder it is relative to.

    >>> [is_inside(n) for n in ("a.top_tiles/01.png", "../a", "/etc/a", "a/./b", "a\\\\b", "C:x", "")]
    [True, False, False, False, False, False, False]
    """
    if not isinstance(name, str) or not 0 < len(name) <= 1024 or any(c in name for c in "\\:\0"):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def is_regular(path: Path) -> bool:
    """Tell whether there is a regular file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def without_links(path: str, flags: int, mode: int = 0o666) -> int:
    """Open as `open` does (its `opener`), but no link; a file that is made may be used as `mode` says."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), mode)


def open_journal(path: str, flags: int) -> int:
    """Open (as `opener`) a file that stays on this machine: no link, and its owner's alone, for it may hold paths that name patients."""
    return without_links(path, flags, 0o600)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Read a small file that somebody else may have put there.

    Raises:
        OSError: no such file, a link, a pipe or the like (which is not waited for), or more than `most_bytes`.
    """
    # a pipe is opened without waiting for its other end
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    with open(os.open(path, flags), "rb") as f:
        found = os.fstat(f.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"holds {found.st_size} bytes, more than the {most_bytes} that are read", str(path))
        return f.read(found.st_size)


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
