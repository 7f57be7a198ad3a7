"""The real command in a session of its own, and what its processes take; none of them may be left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["WatchedCommand"]


class WatchedCommand:
    """A `wsi-ips` command, started at once.

    Args:
        words: behind `wsi-ips`.
        cwd: folder it runs in.
        log: file that takes what it says.
        environment: added to this process's own.
    """

    def __init__(self, words: Sequence[object], cwd: Path, log: Path, environment: dict[str, str] | None = None) -> None:
        self._log = log
        self.peaks: dict[int, int] = {}  # largest resident memory by process id, bytes
        with log.open("ab") as out:
            self._leader = subprocess.Popen(
                [sys.executable, "-m", "wsi_ips.cli", *map(str, words)], cwd=cwd, stdout=out, stderr=out, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            )  # fmt: skip
        self.session = self._leader.pid

    @property
    def status(self) -> int | None:
        """Exit status of the leader; None while it runs."""
        return self._leader.poll()

    @property
    def said(self) -> str:
        """What all starts have said into the log."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[int]:
        """Ids of the session's living processes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self.session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def wait(self, timeout: float, until: Callable[[], bool] = lambda: False) -> int | None:
        """Watch until the leader ends or something is so; its exit status, None where it still runs."""
        end = time.monotonic() + timeout
        while self.status is None and not until():
            assert time.monotonic() < end, f"no end after {timeout:.0f} s:\n{self.said[-2000:]}"
            for pid in self.processes():
                self.peaks[pid] = max(self.peaks.get(pid, 0), _peak(pid))
            time.sleep(0.05)
        return self.status

    def kill(self, *, group: bool) -> None:
        """SIGKILL to the leader alone, or to all at once."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.session, signal.SIGKILL)
        self._leader.wait(10)

    def left_after(self, seconds: float) -> list[int]:
        """Processes that are still there after so many seconds at most."""
        end = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def __enter__(self) -> WatchedCommand:
        return self

    def __exit__(self, *exc: Any) -> None:
        for pid in {self.session, *self.processes()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._leader.wait(10)


def _peak(pid: int) -> int:
    """Largest resident memory of a process so far, from Linux; 0 elsewhere or when it is gone."""
    with contextlib.suppress(OSError, IndexError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return 0
