"""What a pass over a slide may use beside the slide itself: a plan and tiles that were made ready before.

Nothing of it changes a number; without any of it the pass makes its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ips.config import ReadSettings
from wsi_ips.engine.slideplan import SlidePlan
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.stream import TileStream

__all__ = ["PassTools", "start_stream"]


@dataclass
class PassTools:
    """Made ready for one slide; mutable, for one pass."""

    plan: SlidePlan | None = None
    stream: TileStream | None = None  # over the plan's grid, in chunks of the model's size

    def stream_of(self, slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings) -> TileStream:
        """Give the stream that was started ahead, once; else start one."""
        ready, self.stream = self.stream, None
        return ready or start_stream(slide, grid, chunk_size, read)


def start_stream(slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings) -> TileStream:
    """Begin to read a slide's tiles as a pass wants them."""
    return TileStream(slide, grid, chunk_size=chunk_size, n_readers=read.n_readers, read_ahead=read.read_ahead)
