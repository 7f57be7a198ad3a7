"""What a worker's libraries print, kept from the user's terminal: it goes into the run's log, slide by slide.

Decoders written in C print to the process's stderr, past Python. So the worker's stderr is a file, opened by both sides:
the leader takes out what was written while a slide was done. What a worker prints while it prepares its next slide
beside the one at work counts as the latter's. `--debug` leaves stderr where it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

from wsi_ips.errors import printable

__all__ = ["Noise", "send_stderr_to"]

_MOST_BYTES = 1 << 20  # that may wait on the disk
_KEPT_BYTES = 4_000  # of a slide: the first and the last half of them


class Noise:
    """The leader's side: a file that a worker prints into."""

    def __init__(self) -> None:
        self.path = ""  # for `send_stderr_to`; empty where the worker is to print as ever
        self._number, self._n_lost = -1, 0
        if not os.environ.get("WSI_IPS_DEBUG"):
            self._number, self.path = tempfile.mkstemp(prefix="wsi-ips-", suffix=".stderr")

    def take(self) -> str:
        """Take out what was printed since the last time: lines of printable text, their middle left out where they are long."""
        if self._number < 0:
            return ""
        size = os.fstat(self._number).st_size
        first = self._read(0)
        last = self._read(max(len(first), size - _KEPT_BYTES // 2))
        os.ftruncate(self._number, 0)
        gap, self._n_lost = self._n_lost + size - len(first) - len(last), 0
        middle = f"\n[{gap} bytes left out]\n".encode() if gap > 0 else b""
        text = (first + middle + last).decode("utf-8", "replace")
        return "\n".join(printable(line) for line in text.splitlines()).strip()

    def _read(self, at: int) -> bytes:
        os.lseek(self._number, at, os.SEEK_SET)
        return os.read(self._number, _KEPT_BYTES // 2)

    def trim(self) -> None:
        """Forget all but the first lines where it grew too large for a disk."""
        if self._number >= 0 and (size := os.fstat(self._number).st_size) > _MOST_BYTES:
            os.ftruncate(self._number, _KEPT_BYTES // 2)
            self._n_lost += size - _KEPT_BYTES // 2

    def forget_name(self) -> None:
        """Let the file go with the last process that has it open, however that ends."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        """End listening."""
        self.forget_name()
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


def send_stderr_to(path: str) -> None:
    """Print into a file from here on, libraries in C included; called once, by the worker."""
    if path:
        number = os.open(path, os.O_WRONLY | os.O_APPEND)  # appending goes on at the new end after the leader took it
        sys.stderr.flush()
        os.dup2(number, 2)
        os.close(number)
