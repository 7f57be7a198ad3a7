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
from wsi_ips.files import open_new, read_regular

__all__ = ["sole_writer"]

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


def _take(lock: Path) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    claim = lock.with_name(f"{_NAME}.{os.getpid()}")
    try:
        with open_new(claim) as f:
            f.write(json.dumps(mine).encode())
        for _ in range(2):
            try:
                os.link(claim, lock)  # the lock appears with its content, or not at all
                return
            except FileExistsError:
                holder = _read(lock)
                if _is_alive(holder):
                    raise ConfigError(
                        f"{lock.parent}: another run holds this folder (host {str(holder.get('host'))[:64]!r}, "
                        f"pid {str(holder.get('pid'))[:16]}); wait for it, or delete {lock.name} there if that run is gone"
                    ) from None
                lock.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
    raise ConfigError(f"{lock.parent}: another run took this folder at the same moment")


def _read(lock: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_regular(lock, 65_536)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _is_alive(holder: Mapping[str, Any]) -> bool:
    """Another host's run counts as alive; on this host pid and start time decide."""
    if holder.get("host") not in (None, socket.gethostname()):
        return True
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1.0
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return False
