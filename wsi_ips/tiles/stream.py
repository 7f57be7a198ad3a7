"""Tiles as pixels, chunk by chunk: a few threads read ahead, and never further than agreed.

Chunk k always holds rows[k * chunk_size : (k + 1) * chunk_size], whatever the threads do, so a pass is repeatable. At
most `read_ahead` chunks are in the works beyond the one the consumer holds; memory depends on that alone. Inside a
chunk tiles are read in storage order (from the top, then from the left) and put in their place.

A tile is read at the grid's level and brought to its size by one resize: area averaging where it shrinks (which is
antialiased), linear where it grows (by 1.1 at most), nothing where the size is right. Training and inference stream
through here, so they see the same pixels.

Shapes: n tiles of a chunk, S tile side, C channels.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.slide.reader import Region, Slide
from wsi_ips.tiles.tilegrid import TileGrid

__all__ = ["TileChunk", "stream_tiles"]

_TILES_A_JOB = 8


class TileChunk(NamedTuple):
    """Some tiles of a grid."""

    rows: np.ndarray  # (n,) int64, rows of the grid
    pixels: np.ndarray  # (n, S, S, C) uint8
    n_missing: np.ndarray  # (n,) int64, px of the level that the file does not hold, shown white
    failed: np.ndarray  # (n,) bool, read failed twice; its pixels are zeros and must not be used


def stream_tiles(
    slide: Slide,
    grid: TileGrid,
    *,
    rows: np.ndarray | None = None,
    chunk_size: int,
    n_readers: int = 2,
    read_ahead: int = 2,
) -> Iterator[TileChunk]:
    """Read tiles in order, each once.

    Args:
        slide: open; read from several threads.
        grid: the tiles.
        rows: (n,) rows of the grid to read, in that order; all by default.
        chunk_size: tiles a chunk; the last may hold fewer.
        n_readers: threads.
        read_ahead: chunks in the works while the consumer is busy.

    Yields:
        Chunks in order. Closing the iterator early ends the threads.

    Raises:
        Anything a reader raised but `TileReadError`, which makes its tile `failed` after a second try.
    """
    chosen = np.arange(len(grid.coords)) if rows is None else np.asarray(rows, dtype=np.int64)
    batches = (chosen[i : i + chunk_size] for i in range(0, len(chosen), chunk_size))
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=n_readers, thread_name_prefix="tile-reader")
    works: deque[_ChunkInWork] = deque()

    def start(n_chunks: int) -> None:
        works.extend(_ChunkInWork(slide, grid, batch, pool, stop) for batch in islice(batches, n_chunks))

    def finish_first() -> TileChunk:
        chunk = works.popleft().finish()
        start(1)
        return chunk

    try:
        start(read_ahead)
        while works:
            yield finish_first()  # no name holds the chunk here while the consumer works on it
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _ChunkInWork:
    """A chunk that threads are filling; each writes to tiles of its own, the lock guards the making of the array."""

    def __init__(
        self, slide: Slide, grid: TileGrid, rows: np.ndarray, pool: ThreadPoolExecutor, stop: threading.Event
    ) -> None:
        self._slide, self._grid, self._rows, self._stop = slide, grid, rows, stop
        self._lock = threading.Lock()
        self._pixels: np.ndarray | None = None  # made when the first tile shows the number of channels
        self._n_missing = np.zeros(len(rows), np.int64)
        self._failed = np.zeros(len(rows), bool)
        x0, y0 = grid.coords[rows].T
        order = np.lexsort((x0, y0))
        jobs = [order[i : i + _TILES_A_JOB] for i in range(0, len(order), _TILES_A_JOB)]
        self._jobs: list[Future[None]] = [pool.submit(self._fill, places) for places in jobs]

    def finish(self) -> TileChunk:
        """Wait for all tiles."""
        for job in self._jobs:
            job.result()
        side = self._grid.size_px
        pixels = np.zeros((len(self._rows), side, side, 3), np.uint8) if self._pixels is None else self._pixels
        return TileChunk(self._rows, pixels, self._n_missing, self._failed)

    def _fill(self, places: np.ndarray) -> None:
        for place in places:
            if self._stop.is_set():
                return
            region = _read_twice(self._slide, self._grid, self._rows[place])
            if region is None:
                self._failed[place] = True
                continue
            tile = _to_size(region.pixels, self._grid.size_px)
            with self._lock:
                if self._pixels is None:
                    self._pixels = np.zeros((len(self._rows), *tile.shape), np.uint8)
            self._pixels[place] = tile
            self._n_missing[place] = region.n_missing


def _read_twice(slide: Slide, grid: TileGrid, row: int) -> Region | None:
    """Read a tile; once more when it fails, for the reader opens a fresh handle after an error."""
    x0, y0 = (int(c) for c in grid.coords[row])
    for _ in range(2):
        try:
            return slide.read_region(x0, y0, grid.level, *grid.read_px)
        except TileReadError:
            continue
    return None


def _to_size(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """Bring (h, w, C) uint8 to (S, S, C)."""
    height, width, n_channels = pixels.shape
    if (height, width) == (size_px, size_px):
        return pixels
    how = cv2.INTER_AREA if height >= size_px and width >= size_px else cv2.INTER_LINEAR
    if n_channels > 4:  # OpenCV resizes four channels at most
        return np.stack([cv2.resize(np.ascontiguousarray(pixels[..., c]), (size_px, size_px), interpolation=how)
                         for c in range(n_channels)], axis=-1)  # fmt: skip
    return cv2.resize(pixels, (size_px, size_px), interpolation=how).reshape(size_px, size_px, n_channels)
