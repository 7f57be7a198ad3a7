"""A folder that one process at a time may write: a lock that names its holder, and that a dead one does not hold.

On one machine process id and start time tell whether a holder lives. A holder on another machine gives a sign of life:
it touches its lock every few seconds; one that was not touched for `LEASE_SECONDS`, by the clock of the file system that
both write to, is taken over. A holder that slept through that finds out before it writes on (`Held.check`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.files import open_new, read_regular

__all__ = ["LEASE_SECONDS", "Held", "is_alive", "is_held", "sole_writer", "this_process"]

LEASE_SECONDS = 300.0
_BEAT_SECONDS = 15.0
_NAME = ".lock"
_MOST_BYTES = 4096  # of a lock's content; more is none of ours
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # file systems without hard links


class Held:
    """A folder that is held; a thread gives the signs of life."""

    def __init__(self, lock: Path, mine: Mapping[str, Any]) -> None:
        self._lock, self._mine = lock, dict(mine)
        self._is_over, self._is_lost = threading.Event(), False
        self._beat = threading.Thread(target=self._beats, name="lock", daemon=True)
        self._beat.start()

    def check(self) -> None:
        """Make sure that the folder is still held.

        Raises:
            StoppedError: another process took it over.
        """
        if self._is_lost:
            raise StoppedError(f"{self._lock.parent}: another run took this folder over while this one gave no sign of life")

    def end(self) -> None:
        """Give the folder free."""
        self._is_over.set()
        if not self._is_lost and _read(self._lock) == self._mine:
            with contextlib.suppress(OSError):
                self._lock.unlink()

    def _beats(self) -> None:
        while not self._is_over.wait(_BEAT_SECONDS):
            found = _read(self._lock)
            if found and found != self._mine:
                self._is_lost = True
                return
            with contextlib.suppress(OSError):  # what is wrong with the folder is met where results are written
                os.utime(self._lock)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[Held]:
    """Hold a folder, which must exist, against any other process.

    Raises:
        ConfigError: another process holds it; says which.
        OSError: the lock cannot be written.
    """
    lock, mine = folder / _NAME, this_process() | {"token": uuid.uuid4().hex}
    _take(lock, mine)
    held = Held(lock, mine)
    try:
        yield held
    finally:
        held.end()


def this_process() -> dict[str, Any]:
    """Name this process so that others can tell whether it lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_alive(holder: Mapping[str, Any], silent_seconds: float) -> bool:
    """Tell whether a process lives.

    Args:
        holder: what `this_process` said there.
        silent_seconds: since its last sign of life; decides about processes of other machines.
    """
    if holder.get("host") not in (None, socket.gethostname()):
        return silent_seconds < LEASE_SECONDS
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1.0
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return False


def is_held(folder: Path) -> bool:
    """Tell whether a process that is alive, here or, as far as this machine's clock can tell, elsewhere, holds a folder."""
    lock = folder / _NAME
    try:
        return not lock.is_symlink() and is_alive(_read(lock), time.time() - lock.stat().st_mtime)
    except OSError:  # none, or gone just now
        return False


def _take(lock: Path, mine: Mapping[str, Any]) -> None:
    claim = lock.with_name(f"{_NAME}.{os.getpid()}")
    try:
        with open_new(claim) as f:
            f.write(json.dumps(mine).encode())
        for _ in range(2):
            try:
                _put(claim, lock, mine)
                return
            except FileExistsError:
                holder = _read(lock)
                if is_alive(holder, _older_by(lock, claim)):
                    raise ConfigError(
                        f"{lock.parent}: another run holds this folder (host {str(holder.get('host'))[:80]!r}, "
                        f"pid {str(holder.get('pid'))[:20]}); wait for it, or delete {lock.name} there if that run is gone"
                    ) from None
                _set_aside(lock, holder)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
    raise ConfigError(f"{lock.parent}: another run took this folder at the same moment")


def _put(claim: Path, lock: Path, mine: Mapping[str, Any]) -> None:
    """Make the lock, unless there is one; by a link it appears with its content."""
    try:
        os.link(claim, lock)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with lock.open("x") as f:
            f.write(json.dumps(mine))


def _older_by(lock: Path, claim: Path) -> float:
    """Seconds that the lock was touched before the claim, which was written just now; machines' clocks do not enter."""
    try:
        return claim.stat().st_mtime - lock.stat().st_mtime
    except OSError:
        return 0.0


def _set_aside(lock: Path, holder: Mapping[str, Any]) -> None:
    """Remove a dead process's lock, and no other: one that was taken in between is given back."""
    aside = lock.with_name(f"{_NAME}-dead.{os.getpid()}.tmp")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return  # somebody else removed it
    if _read(aside) != holder:
        with contextlib.suppress(OSError):
            os.link(aside, lock)
    aside.unlink(missing_ok=True)


def _read(lock: Path) -> dict[str, Any]:
    """Read a lock; {} where there is none, or nothing that makes sense."""
    try:
        return dict(json.loads(read_regular(lock, _MOST_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
