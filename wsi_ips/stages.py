"""Where the time of a pass goes: seconds by stage, summed over the threads that spent them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["STAGES", "StageClock"]

STAGES = ("open", "mask", "read", "decode", "resize", "copy", "encode", "select", "write", "idle")
"""In the order a tile meets them: `read` is bytes from the file, `copy` pieces of file tiles put together and what is
written into a batch, `idle` the encoder's wait for pixels."""


class StageClock:
    """Adds up seconds under the names of `STAGES`; safe for several threads."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count so many seconds more.

        Raises:
            KeyError: a stage that does not exist.
        """
        with self._lock:
            self._seconds[stage] += seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        """Give what was counted so far."""
        with self._lock:
            return dict(self._seconds)
