"""Progress on stderr: one bar for slides, one for tiles, with rates and time left; plain lines when it is no terminal.

A closed or broken terminal never ends a run, and nothing that a slide or a table says can command it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wsi_ips.errors import printable

__all__ = ["Reporter", "timed"]


class Reporter:
    """Shows how far a job of several slides is; use it with `with`.

    Args:
        title: what is being done.
        n_slides: how many slides there are.
        quiet: show nothing.
    """

    def __init__(self, title: str, n_slides: int, *, quiet: bool = False) -> None:
        self._title, self._n_slides, self._quiet = title, n_slides, quiet
        self._done = 0
        self._tiles = 0
        self._seen: dict[str, int] = {}
        self._started = time.monotonic()
        self._bars: Progress | None = None
        self._slides_bar: TaskID | None = None
        self._tiles_bar: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            self._bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                                  TimeRemainingColumn(), console=Console(stderr=True))  # fmt: skip
            self._slides_bar = self._bars.add_task(self._title, total=self._n_slides, rate="")
            self._tiles_bar = self._bars.add_task("tiles", total=None, rate="")
            with contextlib.suppress(OSError):
                self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bars.stop()

    def tiles(self, slide_id: str, done: int, total: int) -> None:
        """Note that so many tiles of a slide are encoded."""
        self._tiles += max(0, done - self._seen.get(slide_id, 0))
        self._seen[slide_id] = done
        if self._bars is not None and self._tiles_bar is not None:
            rate = self._tiles / max(1e-6, time.monotonic() - self._started)
            self._bars.update(
                self._tiles_bar, completed=done, total=total, description=slide_id[:40], rate=f"{rate:.0f} tiles/s"
            )

    def slide(self, slide_id: str, text: str) -> None:
        """Note that a slide is done; `text` says with what result."""
        self._done += 1
        self._seen.pop(slide_id, None)
        if self._bars is not None and self._slides_bar is not None:
            self._bars.update(self._slides_bar, completed=self._done)
        self.line(f"[{self._done}/{self._n_slides}] {slide_id}: {text}")

    def line(self, text: str) -> None:
        """Print one line above the bars."""
        if self._quiet or sys.stderr is None:
            return
        text = printable(text)
        with contextlib.suppress(OSError, ValueError):  # ValueError: somebody closed it
            if self._bars is not None:
                self._bars.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note under a name how long the block took."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - started
