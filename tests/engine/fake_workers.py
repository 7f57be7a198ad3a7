"""Workers that behave, die, hang, or grow; started in child processes by the executor's tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError, ModelError, StoppedError

MARK = "as imported"  # a forked child would see what its parent has made of it


class _UnpicklableError(Exception):
    """Holds what cannot cross to another process."""


class _UnprintableError(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


def _first_time(folder: str) -> bool:
    mark = Path(folder) / "failed"
    is_first = not mark.exists()
    mark.touch()
    return is_first


def _core_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0]


Progress = Callable[[str, int, int], None]


class Worker:
    """Does what its payload says."""

    def __init__(self, folder: str = "") -> None:
        self.info = {"pid": os.getpid()}
        self._folder = folder

    def work(self, payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
        progress("tiles", 1, 2)
        kind = payload["do"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "abort":
            os.abort()
        if kind == "once":  # dies the first time only
            mark = Path(self._folder) / "died"
            if not mark.exists():
                mark.touch()
                os._exit(3)
        if kind == "hang":
            time.sleep(60)
        if kind == "short":
            time.sleep(1.5)
        if kind == "steps":  # slowly on; puts by what it has come to, however it ends
            try:
                for i in range(600):
                    progress("tiles", i, 600)
                    time.sleep(0.1)
            finally:
                (Path(self._folder) / "put-by").touch()
        if kind == "grow":
            held = bytearray(600 * 2**20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(60)
        if kind == "noise":
            os.write(2, b"TIFFReadDirectory: Warning\x1b[31m, tag 65426\n" * payload.get("lines", 1))
        if kind == "last words":
            os.write(2, b"libtiff: I give up\n")
            os.abort()
        if kind == "raise":
            raise RuntimeError("a defect")
        if kind == "gpu" or (kind == "gpu once" and _first_time(self._folder)):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if kind == "unpicklable":
            raise _UnpicklableError(threading.Lock())
        if kind == "unprintable":
            raise _UnprintableError
        if kind == "result":
            return {"value": threading.Lock()}
        if kind == "tell":
            return {"value": (multiprocessing.get_start_method(allow_none=True), MARK, len(os.listdir("/proc/self/fd")), _core_limit())}
        if kind == "stop":
            raise StoppedError("the disk is full")
        return {"value": payload.get("value"), "pid": os.getpid()}


class ForesightedWorker(Worker):
    """Prepares its next job once it has begun one; a payload's `ahead` says what becomes of that."""

    def __init__(self, folder: str = "") -> None:
        super().__init__(folder)
        self._next: dict[str, Any] | None = None
        self._begun: Callable[[], None] = lambda: None

    def expect(self, payload: dict[str, Any] | None, begun: Callable[[], None]) -> None:
        self._next, self._begun = payload, begun

    def work(self, payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
        following, ahead = self._next, ""
        if following is not None:
            self._begun()
            ahead = str(following["name"])
            if following.get("ahead") == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if following.get("ahead") == "hang":
                time.sleep(60)
        while len(list(Path(self._folder).glob("done-*"))) < payload.get("after", 0):
            time.sleep(0.05)
        result = super().work(payload, progress) | {"ahead": ahead}
        (Path(self._folder) / f"done-{payload['name']}").touch()
        return result


def refuse_model(**setup: Any) -> None:
    raise ModelError("weights are torn")


def refuse_config(**setup: Any) -> None:
    raise ConfigError("settings cannot be meant")
