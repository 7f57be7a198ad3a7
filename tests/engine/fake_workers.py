"""Workers that behave, die, hang, or grow; started in child processes by the executor's tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError, ModelError, StoppedError

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
        if kind == "grow":
            held = bytearray(600 * 2**20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(60)
        if kind == "raise":
            raise RuntimeError("a defect")
        if kind == "stop":
            raise StoppedError("the disk is full")
        return {"value": payload.get("value"), "pid": os.getpid()}


def refuse_model(**setup: Any) -> None:
    raise ModelError("weights are torn")


def refuse_config(**setup: Any) -> None:
    raise ConfigError("settings cannot be meant")
