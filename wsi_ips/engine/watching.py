"""What a leader asks about a worker process, from outside."""

from __future__ import annotations

import contextlib
import time
from multiprocessing.connection import Connection

import psutil

from wsi_ips.errors import ConfigError, ModelError

__all__ = ["Patience", "rebuilt_error", "resident_bytes", "said_ahead"]


def said_ahead(pipe: Connection) -> set[str]:
    """Read what a child that is to be ended has said of preparations and nobody has listened to yet."""
    found = set()
    with contextlib.suppress(EOFError, OSError):
        while pipe.poll(0.0):
            kind, value = pipe.recv()
            if kind == "ahead":
                found.add(value)
    return found


def rebuilt_error(name: str, text: str) -> ConfigError | ModelError:
    """Make the error with which a child refused its set-up."""
    return ModelError(text) if name == "ModelError" else ConfigError(text)


def resident_bytes(pid: int) -> int:
    """Memory that a process has now; 0 when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class Patience:
    """A clock that runs only while the leader listens.

    A leader that was stopped, or suspended with its machine, or busy elsewhere, has heard nothing meanwhile: that says
    nothing about its workers.
    """

    def __init__(self, most_seconds: float = 2.0) -> None:
        self._most = most_seconds  # between two looks, of a leader that listens
        self._looked = time.monotonic()
        self._seconds = 0.0

    def now(self) -> float:
        """Look: seconds the leader has listened."""
        looked = time.monotonic()
        self._seconds += min(looked - self._looked, self._most)
        self._looked = looked
        return self._seconds
