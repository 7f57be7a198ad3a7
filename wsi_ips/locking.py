"""A folder that one process at a time may write: a lock that names its holder, and that a dead one does not hold."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wsi_ips.errors import ConfigError

__all__ = ["is_held", "sole_writer"]

_NAME = ".lock"


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, which must exist, against any other process.

    Raises:
        ConfigError: another process holds it; says which.
        OSError: the lock cannot be written.
    """
    lock = folder / _NAME
    _take(lock)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


def is_held(folder: Path) -> bool:
    """Tell whether a process that is alive, here or on another host, holds a folder; takes nothing."""
    lock = folder / _NAME
    try:
        is_lock = lock.is_file() and not lock.is_symlink() and lock.stat().st_size < 10_000
        return is_lock and _is_alive(_read(lock))
    except (OSError, TypeError, OverflowError):  # gone just now, or not what `_take` writes
        return False


def _take(lock: Path) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    claim = lock.with_name(f"{_NAME}.{os.getpid()}")
    try:
        claim.write_text(json.dumps(mine))
        for _ in range(2):
            try:
                os.link(claim, lock)  # the lock appears with its content, or not at all
                return
            except FileExistsError:
                holder = _read(lock)
                if _is_alive(holder):
                    raise ConfigError(
                        f"{lock.parent}: another run holds this folder (host {holder.get('host')}, "
                        f"pid {holder.get('pid')}); wait for it, or delete {lock.name} there if that run is gone"
                    ) from None
                lock.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
    raise ConfigError(f"{lock.parent}: another run took this folder at the same moment")


def _read(lock: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(lock.read_text()))
    except (OSError, ValueError):
        return {}


def _is_alive(holder: Mapping[str, Any]) -> bool:
    """Another host's run counts as alive; on this host pid and start time decide."""
    if holder.get("host") not in (None, socket.gethostname()):
        return True
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1.0
    except (psutil.Error, KeyError, ValueError):
        return False
