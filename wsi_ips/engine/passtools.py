"""What a pass over a slide may use beside the slide itself: a clock, what was made ready before, how to read and encode.

Nothing of it changes a number but `batch`, in its last bits, and `decoder`, see gpudecode.py; without any of it the pass makes its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from wsi_ips.config import ReadSettings
from wsi_ips.engine.gpudecode import DecodedChunk, Decoding, TileDecoder, choose_decoding
from wsi_ips.engine.slideplan import SlidePlan
from wsi_ips.engine.tuning import ReaderTuner
from wsi_ips.slide.reader import Slide
from wsi_ips.stages import StageClock
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.stream import TileChunk, TileStream

__all__ = ["PassTools", "start_stream", "watch"]


Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass
class PassTools:
    """Belongs to one pass over one slide; mutable; leaving its `with` ends whatever still reads."""

    slide: Slide | None = None  # opened ahead
    plan: SlidePlan | None = None
    stream: TileStream | None = None  # over the plan's grid, in chunks of the model's size
    clock: StageClock = field(default_factory=StageClock)
    is_detailed: bool = False  # whether the slide's reader counts, too: some microseconds a tile
    ahead: int | None = None  # chunks read ahead, as chosen
    tuner: ReaderTuner | None = None  # may change the number of threads on the way
    allocate: Allocate | None = None  # makes the memory of chunks, where a GPU is to read from it
    batch: int | None = None  # tiles through the encoder at once; the model's chunk by default
    chunk: int | None = None  # tiles of a chunk of the stream; the model's by default
    tile_bytes: int = 0  # that the encoder holds a tile
    decoder: TileDecoder | None = None  # decodes in the place of slides' readers, where it can
    decoding: Decoding | None = None  # who does, in this pass; decided once
    decode_seconds: float = 0.0  # of all reader threads, and of the decoder
    n_retried: int = 0  # tiles that were read at the second try
    _running: TileStream | None = None

    def stream_of(self, slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings, first: int = 0) -> TileStream:
        """Give the stream that was started ahead, once; else start one, from row `first` on."""
        ready, self.stream = self.stream, None
        if ready is not None and first:
            ready.close()  # it starts at row 0
            ready = None
        watch(slide, self.clock if self.is_detailed else None)
        decoding = self.decoding_of(slide, grid)
        self._running = ready or start_stream(decoding, slide, grid, chunk_size, self.tuned(read), self.clock, self.allocate, first)
        return self._running

    def decoding_of(self, slide: Slide, grid: TileGrid) -> Decoding:
        """Tell who decodes the tiles of this pass."""
        self.decoding = self.decoding or choose_decoding(self.decoder, slide, grid)
        return self.decoding

    def tuned(self, read: ReadSettings) -> ReadSettings:
        """Fill in what was chosen where nothing was stated."""
        n_readers = read.n_readers or (self.tuner.n_readers if self.tuner else 0)
        return read.replace(n_readers=n_readers, read_ahead=read.read_ahead or self.ahead or 0)

    def paced(self, stream: TileStream) -> Iterator[TileChunk | DecodedChunk]:
        """Go over a stream, and let more threads read while its consumer waits."""
        idle, before = self.clock.seconds()["idle"], time.perf_counter()
        if self.tuner is not None:
            self.tuner.begin()
        for i, chunk in enumerate(stream):
            if self.tuner is not None and i:  # the first is always waited for
                waited, now = self.clock.seconds()["idle"], time.perf_counter()
                stream.use_readers(self.tuner.note(waited - idle, now - before))
            idle, before = self.clock.seconds()["idle"], time.perf_counter()
            yield self._decoded(chunk)
        self.decode_seconds += stream.busy_seconds
        self.n_retried += stream.n_retried
        self._running = None  # its batches go before the slide is drawn

    def _decoded(self, chunk: TileChunk) -> TileChunk | DecodedChunk:
        if self.decoding is None or self.decoding.decoder is None:
            return chunk
        started = time.perf_counter()
        decoded = self.decoding.finish(chunk)
        seconds = time.perf_counter() - started
        self.clock.add("decode", seconds)
        self.decode_seconds += seconds
        return decoded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self.stream, self._running):
            if stream is not None:
                stream.close()
        self.stream = self._running = None


def start_stream(
    decoding: Decoding, slide: Slide, grid: TileGrid, chunk_size: int, read: ReadSettings, clock: StageClock,
    allocate: Allocate | None = None, first: int = 0,
) -> TileStream:  # fmt: skip
    """Begin to read a slide's tiles, from row `first` on, as a pass wants them; `decoding` finishes the chunks."""
    rows = np.arange(first, len(grid.coords))
    return TileStream(decoding.source(slide), grid, rows=rows, chunk_size=chunk_size, n_readers=read.readers, read_ahead=read.chunks_ahead,
                      allocate=allocate, clock=clock)  # fmt: skip


def watch(slide: Slide, clock: StageClock | None) -> None:
    """Let a slide's reader count its seconds, if it knows how; None ends that."""
    if hasattr(slide, "clock"):
        slide.clock = clock
