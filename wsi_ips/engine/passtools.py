"""What a pass over a slide may use beside the slide itself: a clock, and what was made ready before.

Nothing of it changes a number; without any of it the pass makes its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from wsi_ips.config import ReadSettings
from wsi_ips.engine.slideplan import SlidePlan
from wsi_ips.slide.reader import Slide
from wsi_ips.stages import StageClock
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.stream import TileStream

__all__ = ["PassTools", "start_stream", "watch"]


@dataclass
class PassTools:
    """Belongs to one pass over one slide; mutable; leaving its `with` ends whatever still reads."""

    slide: Slide | None = None  # opened ahead
    plan: SlidePlan | None = None
    stream: TileStream | None = None  # over the plan's grid, in chunks of the model's size
    clock: StageClock = field(default_factory=StageClock)
    is_detailed: bool = False  # whether the slide's reader counts, too: some microseconds a tile
    _running: TileStream | None = None

    def stream_of(self, slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings) -> TileStream:
        """Give the stream that was started ahead, once; else start one."""
        ready, self.stream = self.stream, None
        watch(slide, self.clock if self.is_detailed else None)
        self._running = ready or start_stream(slide, grid, chunk_size, read, self.clock)
        return self._running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self.stream, self._running):
            if stream is not None:
                stream.close()
        self.stream = self._running = None


def start_stream(slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings, clock: StageClock) -> TileStream:
    """Begin to read a slide's tiles as a pass wants them."""
    return TileStream(slide, grid, chunk_size=chunk_size, n_readers=read.n_readers, read_ahead=read.read_ahead, clock=clock)


def watch(slide: Slide, clock: StageClock | None) -> None:
    """Let a slide's reader count its seconds, if it knows how; None ends that."""
    if hasattr(slide, "clock"):
        slide.clock = clock
