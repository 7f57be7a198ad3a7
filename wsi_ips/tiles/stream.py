"""Tiles as pixels, chunk by chunk: a few threads read ahead, and never further than agreed.

Chunk k always holds rows[k * chunk_size : (k + 1) * chunk_size], whatever the threads do, so a pass is repeatable. At
most `read_ahead` chunks are in the works beyond the one the consumer holds; memory depends on that alone. Inside a
chunk tiles are read in storage order (from the top, then from the left), straight into their place of one uint8 batch;
the batch of a chunk that nobody holds any more is filled again.

A tile is read at the grid's level and brought to its size by one resize: area averaging where it shrinks (which is
antialiased), linear where it grows (by 1.1 at most), nothing where the size is right. Where the file's coding allows,
the decoder itself shrinks by 2, 4 or 8 before that (`TileGrid.shrink`). Training and inference stream through here, so
they see the same pixels.

Shapes: n tiles of a chunk, S tile side, C channels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.slide.reader import Slide, read_into
from wsi_ips.stages import StageClock
from wsi_ips.tiles.batches import Here, Ring
from wsi_ips.tiles.resize import to_size
from wsi_ips.tiles.tilegrid import TileGrid

__all__ = ["TileChunk", "TileStream", "stream_tiles"]

_TILES_A_JOB = 8
_MIN_JOB_PX = 1 << 19  # px of the level a job reads at least, so that small tiles do not make many jobs


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
    clock: StageClock | None = None,
) -> Iterator[TileChunk]:
    """Read tiles in order, each once; see `TileStream` for the arguments.

    Yields:
        Chunks in order. Closing the iterator early ends the threads.

    Raises:
        Anything a reader raised but `TileReadError`, which makes its tile `failed` after a second try.
    """
    with TileStream(slide, grid, rows=rows, chunk_size=chunk_size, n_readers=n_readers, read_ahead=read_ahead,
                    clock=clock) as stream:  # fmt: skip
        yield from stream


class TileStream:
    """An iterator over chunks that starts to read the moment it is made; `close` (or `with`) ends its threads.

    Args:
        slide: open; read from several threads.
        grid: the tiles.
        rows: (n,) rows of the grid to read, in that order; all by default.
        chunk_size: tiles a chunk; the last may hold fewer.
        n_readers: threads.
        read_ahead: chunks in the works while the consumer is busy.
        allocate: makes the batches, (n, S, S, C) uint8 zeros; for memory that a GPU can read from.
        clock: takes what the consumer waited (`idle`), and resizing.
    """

    def __init__(
        self,
        slide: Slide,
        grid: TileGrid,
        *,
        rows: np.ndarray | None = None,
        chunk_size: int,
        n_readers: int = 2,
        read_ahead: int = 2,
        allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None,
        clock: StageClock | None = None,
    ) -> None:
        chosen = np.arange(len(grid.coords)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._batches = (chosen[i : i + chunk_size] for i in range(0, len(chosen), chunk_size))
        n_channels = int(getattr(slide, "n_channels", 3))
        shape = (min(chunk_size, max(1, len(chosen))), grid.size_px, grid.size_px, n_channels)
        self._ring = Ring(shape, read_ahead + 2, allocate or _zeros)
        self._reader = _TileReader(slide, grid, n_channels, clock)
        self._clock = clock
        self._n_readers, self._former_pools = n_readers, list[Executor]()
        self._is_instant = bool(getattr(slide, "is_instant", False))
        self._pool = self._readers(n_readers)
        self._works: deque[_ChunkInWork] = deque()
        self._start(read_ahead)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TileChunk:
        if not self._works:
            self.close()
            raise StopIteration
        started = time.perf_counter()
        try:
            chunk = self._works.popleft().finish()
        except BaseException:
            self.close()
            raise
        if self._clock is not None:
            self._clock.add("idle", time.perf_counter() - started)
        self._start(1)
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def busy_seconds(self) -> float:
        """Seconds that threads have spent on tiles, summed over the threads."""
        return self._reader.busy_seconds

    @property
    def n_retried(self) -> int:
        """Tiles that were read at the second try."""
        return self._reader.n_retried

    def use_readers(self, n_readers: int) -> None:
        """Let so many threads read from the next chunk on; those at work end with what they were given."""
        if n_readers != self._n_readers and not self._reader.stop.is_set():
            self._pool.shutdown(wait=False)
            self._former_pools.append(self._pool)
            self._n_readers = n_readers
            self._pool = self._readers(n_readers)

    def _readers(self, n_readers: int) -> Executor:
        return Here() if self._is_instant else ThreadPoolExecutor(n_readers, thread_name_prefix="tile-reader")

    def close(self) -> None:
        """End the threads; what was not handed out is dropped."""
        self._reader.stop.set()
        self._works.clear()
        for pool in (self._pool, *self._former_pools):
            pool.shutdown(wait=True, cancel_futures=True)
        self._reader.let_go()

    def _start(self, n_chunks: int) -> None:
        for batch in islice(self._batches, n_chunks):
            self._works.append(_ChunkInWork(self._reader, batch, self._ring, self._pool))


class _ChunkInWork:
    """A chunk that threads are filling; each writes to tiles of its own."""

    def __init__(self, reader: _TileReader, rows: np.ndarray, ring: Ring, pool: Executor) -> None:
        self._rows = rows
        self._pixels = ring.take()[: len(rows)]
        self._n_missing = np.zeros(len(rows), np.int64)
        self._failed = np.zeros(len(rows), bool)
        jobs = reader.jobs(rows)
        self._jobs: list[Future[None]] = [
            pool.submit(reader.fill, places, rows, self._pixels, self._n_missing, self._failed) for places in jobs
        ]

    def finish(self) -> TileChunk:
        """Wait for all tiles."""
        for job in self._jobs:
            job.result()
        self._jobs.clear()
        return TileChunk(self._rows, self._pixels, self._n_missing, self._failed)


class _TileReader:
    """Reads single tiles of a grid into their places."""

    def __init__(self, slide: Slide, grid: TileGrid, n_channels: int, clock: StageClock | None) -> None:
        self.stop = threading.Event()
        self._slide, self._grid, self._clock = slide, grid, clock
        shrink, size_px = grid.shrink, grid.size_px
        self._read_shape = (grid.read_px[1] // shrink, grid.read_px[0] // shrink, n_channels)
        self._is_sized = self._read_shape[:2] == (size_px, size_px)
        self._scratch = threading.local()
        self.busy_seconds, self.n_retried, self._lock = 0.0, 0, threading.Lock()

    def let_go(self) -> None:
        """Let the slide forget decoded file tiles: what comes after a pass, drawing for instance, needs the memory."""
        forget = getattr(self._slide, "forget_tiles", None)
        if forget is not None:
            forget()

    def jobs(self, rows: np.ndarray) -> list[np.ndarray]:
        """Part places of a chunk in storage order, for threads to take."""
        x0, y0 = self._grid.coords[rows].T
        order = np.lexsort((x0, y0))
        n = max(_TILES_A_JOB, _MIN_JOB_PX // (self._grid.read_px[0] * self._grid.read_px[1]))
        return [order[i : i + n] for i in range(0, len(order), n)]

    def fill(
        self, places: np.ndarray, rows: np.ndarray, pixels: np.ndarray, n_missing: np.ndarray, failed: np.ndarray
    ) -> None:
        """Read the tiles of some places of a chunk."""
        started = time.perf_counter()
        try:
            self._fill(places, rows, pixels, n_missing, failed)
        finally:
            with self._lock:
                self.busy_seconds += time.perf_counter() - started

    def _fill(
        self, places: np.ndarray, rows: np.ndarray, pixels: np.ndarray, n_missing: np.ndarray, failed: np.ndarray
    ) -> None:
        for place, (x0, y0) in zip(places.tolist(), self._grid.coords[rows[places]].tolist(), strict=True):
            if self.stop.is_set():
                return
            missing = self._read_twice(pixels[place], x0, y0)
            if missing < 0:
                pixels[place] = 0
                failed[place] = True
            else:
                n_missing[place] = missing

    def _read_twice(self, out: np.ndarray, x0: int, y0: int) -> int:
        """Read a tile; once more when it fails, for the reader opens a fresh handle after an error; -1 then."""
        try:
            return self._read(out, x0, y0)
        except TileReadError:
            pass
        try:
            found = self._read(out, x0, y0)
        except TileReadError:
            return -1
        with self._lock:
            self.n_retried += 1
        return found

    def _read(self, out: np.ndarray, x0: int, y0: int) -> int:
        grid = self._grid
        if self._is_sized:
            return read_into(self._slide, out, x0, y0, grid.level, grid.shrink)
        scratch: np.ndarray | None = getattr(self._scratch, "pixels", None)
        if scratch is None:
            scratch = self._scratch.pixels = np.empty(self._read_shape, np.uint8)
        missing = read_into(self._slide, scratch, x0, y0, grid.level, grid.shrink)
        if self._clock is None:
            to_size(scratch, out)
        else:
            with self._clock.time("resize"):
                to_size(scratch, out)
        return missing


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.uint8)
