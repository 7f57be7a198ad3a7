"""A disk that fails at one chosen operation: the process dies before it, in the middle of it, the power goes, or it is full.

Every change a program makes below a folder is an operation with a number: a folder made, a file opened for writing, a
write, a sync, a link, a rename, a removal. `FaultyDisk` counts them; at number `at` it does what `how` says:

kill   the process ends before the operation, as by SIGKILL.
torn   the same, but of a write its first half is done.
power  the machine loses power before the operation: content that was not synced is gone from its file, and names whose
       folder was not synced are what they were.
full   from here on there is no room: what needs some raises ENOSPC, renames and removals go on.

For processes that do one thing at a time, and that write by Python's own files (`open`, `pathlib`, `os`).
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from wsi_ips.errors import WsiIpsError, exit_status

__all__ = ["KILLED", "FaultyDisk", "How", "run_in_child"]

How = Literal["kill", "torn", "power", "full"]
KILLED = 137  # exit status of a process that ended here
_NEEDS_ROOM = ("open", "write", "sync", "mkdir", "link")


def run_in_child(disk: FaultyDisk, work: Callable[[], object]) -> int:
    """Work in a forked child on a disk; give its exit status, as the command line would."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        with disk.installed():
            work()
        status = 0
    except WsiIpsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = exit_status(error)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class FaultyDisk:
    """See the top of the file.

    Args:
        root: operations elsewhere are not counted.
        at: number of the operation that fails, from 0; None counts only.
        how: it fails.
    """

    def __init__(self, root: Path, at: int | None = None, how: How = "kill") -> None:
        self.done: list[str] = []  # kinds of operations, in order
        self._root, self._at, self._how = str(root), at, how
        self._open, self._fsync = io.open, os.fsync
        self._unsynced: set[str] = set()  # files with content that only memory holds
        self._undo: dict[str, list[Callable[[], None]]] = {}  # by folder: what takes back names that only memory holds

    @contextmanager
    def installed(self) -> Iterator[FaultyDisk]:
        """Let the operations of this process pass through here."""
        with (
            patch("io.open", self._opened), patch("builtins.open", self._opened), patch("os.fsync", self._synced),
            patch("os.replace", self._renamed(os.replace)), patch("os.rename", self._renamed(os.rename)),
            patch("os.link", self._linked(os.link)), patch("os.unlink", self._removed(os.unlink)),
            patch("os.mkdir", self._made(os.mkdir)),
        ):  # fmt: skip
            yield self

    def step(self, kind: str, path: object) -> bool:
        """Count an operation; do what was chosen for it. True where it is to be torn."""
        if not self._is_ours(path):
            return False
        number = len(self.done)
        self.done.append(kind)
        if self._at is None or number < self._at:
            return False
        if self._how == "full":
            if kind in _NEEDS_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return False
        if self._how == "torn" and kind == "write":
            return True
        self.die()
        return False

    def die(self) -> None:
        """End the process, as the fault would."""
        self._at = None  # what follows is the fault's own doing
        if self._how == "power":
            unsynced = set(self._unsynced)  # what is put back below was on the disk
            for undo in [u for folder in self._undo.values() for u in folder][::-1]:
                with suppress(OSError):  # of a folder that has another name since: its files stay
                    undo()
            for path in unsynced:
                if os.path.exists(path):
                    os.truncate(path, 0)
        os._exit(KILLED)

    def _is_ours(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._root)

    def _opened(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not self._is_ours(file) or not set(mode) & set("wax+"):
            return self._open(file, mode, *args, **kwargs)
        self.step("open", file)
        path = os.path.abspath(file)
        if not os.path.exists(path):
            self._keep_undo(path, lambda: os.path.exists(path) and os.remove(path))
        if "w" in mode:
            self._unsynced.add(path)
        return _Watched(self._open(file, mode, *args, **kwargs), path, self)

    def wrote(self, path: str) -> None:
        """Note that a file holds what is not on the disk yet."""
        self._unsynced.add(path)

    def _synced(self, number: int) -> None:
        path = os.readlink(f"/proc/self/fd/{number}")
        self.step("sync", path)
        self._fsync(number)
        self._unsynced.discard(path)
        self._undo.pop(path, None)  # a folder's names are on the disk now

    def _keep_undo(self, path: str, undo: Callable[[], Any]) -> None:
        self._undo.setdefault(os.path.dirname(path), []).append(undo)

    def _renamed(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **kwargs: Any) -> None:
            self.step("rename", target)
            a, b = os.path.abspath(source), os.path.abspath(target)
            if not self._is_ours(target) or os.path.isdir(a):
                real(source, target, **kwargs)
                return
            old, new = _content(b), _content(a)
            real(source, target, **kwargs)
            if a in self._unsynced:
                self._unsynced.discard(a)
                self._unsynced.add(b)
            self._keep_undo(b, lambda: (_restore(a, new), _restore(b, old)))

        return rename

    def _linked(self, real: Callable[..., None]) -> Callable[..., None]:
        def link(source: Any, target: Any, **kwargs: Any) -> None:
            self.step("link", target)
            real(source, target, **kwargs)
            if self._is_ours(target):
                path = os.path.abspath(target)
                self._keep_undo(path, lambda: _restore(path, None))

        return link

    def _removed(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, **kwargs: Any) -> None:
            if "dir_fd" in kwargs:  # of a folder that is removed as a whole
                real(path, **kwargs)
                return
            self.step("remove", path)
            whole = os.path.abspath(path)
            old = _content(whole) if self._is_ours(path) else None
            real(path, **kwargs)
            if self._is_ours(path):
                self._keep_undo(whole, lambda: _restore(whole, old))

        return unlink

    def _made(self, real: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if self._is_ours(path) and not os.path.exists(path):
                self.step("mkdir", path)
            real(path, *args, **kwargs)

        return mkdir


class _Watched:
    """A file whose writes are counted; each goes to the kernel at once, so that a torn one leaves what was said."""

    def __init__(self, file: Any, path: str, disk: FaultyDisk) -> None:
        self._file, self._path, self._disk = file, path, disk

    def write(self, data: Any) -> int:
        if self._disk.step("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._disk.die()
        n = int(self._file.write(data))
        self._file.flush()
        self._disk.wrote(self._path)
        return n

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _restore(path: str, content: bytes | None) -> None:
    if content is None:
        Path(path).unlink(missing_ok=True)
    else:
        Path(path).write_bytes(content)
