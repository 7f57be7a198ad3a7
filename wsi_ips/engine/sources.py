"""Where the embeddings of a pass come from: pixels through the encoder, the cache, or a file of features.

Chunk k holds rows [k I, (k + 1) I) of the grid whatever the source, so that what follows computes in the same batches
and gives the same bytes, cached or not.

Shapes: N tiles of the grid, n of a chunk, S tile side, C channels, W width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from wsi_ips.config import ReadSettings
from wsi_ips.engine.cacheentry import StoredEmbeddings, StoredPart
from wsi_ips.engine.colour import ColourStatistics
from wsi_ips.engine.distinct import DistinctTiles, encode_tiles
from wsi_ips.engine.entrywriter import EntryWriter
from wsi_ips.engine.gpudecode import DecodedChunk, Decoding
from wsi_ips.engine.passtools import PassTools, watch
from wsi_ips.errors import ModelError, TileReadError, UnreadableSlideError
from wsi_ips.model.ensemble import Classifier
from wsi_ips.slide.reader import Slide, stamps_of
from wsi_ips.slide.stamps import refuse_changed
from wsi_ips.stages import StageClock
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.stream import TileChunk, stream_tiles

__all__ = ["EmbeddedChunk", "FileSource", "PixelSource", "Source", "StoredSource", "read_tiles"]

MAX_HOLLOW_SHARE = 0.5  # of a slide's tiles may be missing for the most part: beyond, it is a slide that was not copied


class EmbeddedChunk(NamedTuple):
    """Some tiles of a grid."""

    rows: np.ndarray  # (n,) int64, rows of the grid
    embeddings: np.ndarray  # (n, W) float32
    is_good: np.ndarray  # (n,) bool; False where the tile could not be read, and its embedding is of nothing


class Source(Protocol):
    """One pass over a grid's embeddings, and what is known behind it."""

    grid: TileGrid
    failed: np.ndarray  # (N,) bool, tiles that could not be decoded
    n_missing: int  # tiles with px that the file does not hold
    n_encoded: int  # tiles through the encoder so far
    is_stored: bool  # whether the cache had them
    colour: dict[str, float] | None

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """Go over all tiles once, in order."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Get some embeddings again, (n,) rows in any order: (n, W) float32."""


class PixelSource:
    """Reads and encodes; fills an entry of the cache on the way."""

    is_stored = False

    def __init__(
        self, slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, writer: EntryWriter | None,
        tools: PassTools,
    ) -> None:  # fmt: skip
        self._slide, self.grid, self._classifier, self._read, self._writer = slide, grid, classifier, read, writer
        self._tools = tools
        self._chunk_size = classifier.settings.selection.chunk_size
        self.failed = np.zeros(len(grid.coords), bool)
        self.n_missing = self.n_encoded = self._n_hollow = 0
        self.colour: dict[str, float] | None = None
        self._distinct = DistinctTiles() if read.same_once else None

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """See `Source`.

        Raises:
            UnreadableSlideError: `E_CHANGED`, the file is no longer what was opened; `E_MISSING_PIXELS`, it holds most of
                the tiles not at all.
        """
        first = 0
        for part in self._writer.earlier() if self._writer is not None else ():
            first += len(part.rows)
            self._count(part.rows, part.failed, part.n_missing)
            yield from _cut([part], self._chunk_size)  # it holds whole chunks
        colours = ColourStatistics(self._writer.colour if self._writer is not None else None)
        size = self._tools.chunk or self._chunk_size
        with self._tools.stream_of(self._slide, self.grid, size, self._read, first) as stream:
            for chunk in self._tools.paced(stream):
                yield self._embedded(chunk, colours)
        watch(self._slide, None)
        refuse_changed(self._slide.path, stamps_of(self._slide))  # before anything is kept under the file's hash
        self._refuse_hollow()
        self.colour = colours.summary()
        if self._writer is not None:
            self._writer.finish(len(self.grid.coords), self.colour)

    def _count(self, rows: np.ndarray, failed: np.ndarray, n_missing: np.ndarray) -> None:
        self.failed[rows] = failed
        self.n_missing += int(np.count_nonzero(n_missing))
        self._n_hollow += int(np.count_nonzero(2 * n_missing > self.grid.read_px[0] * self.grid.read_px[1]))

    def _embedded(self, chunk: TileChunk | DecodedChunk, colours: ColourStatistics) -> EmbeddedChunk:
        good = ~chunk.failed
        self._count(chunk.rows, chunk.failed, chunk.n_missing)
        embeddings = self._embed(chunk.pixels, chunk.rows)
        with self._tools.clock.time("select"):
            colours.add(chunk.pixels if good.all() else chunk.pixels[good])
        if self._writer is not None:
            with self._tools.clock.time("write"):
                self._writer.add(chunk.rows, embeddings, chunk.n_missing, chunk.failed, colours.state())
        return EmbeddedChunk(chunk.rows, embeddings, good)

    def _refuse_hollow(self) -> None:
        n_tiles = len(self.grid.coords)
        if self._n_hollow > MAX_HOLLOW_SHARE * n_tiles:
            text = f"{self._n_hollow} of {n_tiles} tiles hold mostly pixels that are missing in the file"
            raise UnreadableSlideError("E_MISSING_PIXELS", f"{self._slide.name}: {text}; copy or export it again")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        decoding = self._tools.decoding_of(self._slide, self.grid)
        return self._embed(read_tiles(self._slide, self.grid, rows, self._read, self._tools.clock, decoding), rows)

    def _embed(self, pixels: np.ndarray | Tensor, rows: np.ndarray) -> np.ndarray:
        with self._tools.clock.time("encode"):
            size = self._tools.batch or self._chunk_size
            embeddings, n_encoded = encode_tiles(self._classifier, pixels, size, self._distinct)
        self.n_encoded += n_encoded
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            x0, y0 = self.grid.coords[rows[bad[0]]]
            raise ModelError(f"the embedding of the tile at level-0 px ({x0}, {y0}) is not finite", "E_NOT_FINITE")
        return embeddings


class _ReadySource:
    """Embeddings that need no encoder and no pixel."""

    is_stored = True
    n_encoded = 0

    def __init__(self, grid: TileGrid, chunk_size: int) -> None:
        self.grid, self._chunk_size = grid, chunk_size
        self.failed = np.zeros(len(grid.coords), bool)
        self.n_missing = 0
        self.colour: dict[str, float] | None = None


class StoredSource(_ReadySource):
    """Embeddings that the cache has."""

    def __init__(self, stored: StoredEmbeddings, grid: TileGrid, chunk_size: int) -> None:
        super().__init__(grid, chunk_size)
        self._stored, self.n_missing, self.colour = stored, stored.n_missing, stored.colour

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """See `Source`."""
        return _cut(self._stored.parts(), self._chunk_size)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return self._stored.take(rows)


class FileSource(_ReadySource):
    """Embeddings (N, W) that another tool has made."""

    is_stored = False

    def __init__(self, embeddings: np.ndarray, grid: TileGrid, chunk_size: int) -> None:
        super().__init__(grid, chunk_size)
        self._embeddings = embeddings

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """See `Source`."""
        n = len(self._embeddings)
        whole = StoredPart(np.arange(n), self._embeddings, np.zeros(n, np.int64), np.zeros(n, bool))
        return _cut([whole], self._chunk_size)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return self._embeddings[rows].astype(np.float32)


def _cut(parts: Iterable[StoredPart], chunk_size: int) -> Iterator[EmbeddedChunk]:
    """Part what is at hand into chunks, each of the full size but the last."""
    rest: StoredPart | None = None
    for new in parts:
        part = new if rest is None else StoredPart(*(np.concatenate(pair) for pair in zip(rest, new, strict=True)))
        n_whole = len(part.rows) // chunk_size * chunk_size
        for at in range(0, n_whole, chunk_size):
            yield _chunk(part, slice(at, at + chunk_size))
        rest = StoredPart(*(column[n_whole:] for column in part)) if n_whole < len(part.rows) else None
    if rest is not None:
        yield _chunk(rest, slice(None))


def _chunk(part: StoredPart, here: slice) -> EmbeddedChunk:
    return EmbeddedChunk(part.rows[here], part.embeddings[here].astype(np.float32), ~part.failed[here])


def read_tiles(
    slide: Slide, grid: TileGrid, rows: np.ndarray, read: ReadSettings, clock: StageClock | None = None,
    decoding: Decoding | None = None,
) -> np.ndarray:  # fmt: skip
    """Read tiles by row, in the order asked for: (n, S, S, C) uint8.

    Args:
        slide, grid, rows, read, clock: see `TileStream`.
        decoding: of the pass that read them before; by default the slide's reader decodes.

    Raises:
        TileReadError: one of them cannot be read now (`E_TILE`).
    """
    decoding, order = decoding or Decoding(slide.reader), np.argsort(rows, kind="stable")
    parts = []
    stream = stream_tiles(decoding.source(slide), grid, rows=rows[order], chunk_size=64, n_readers=read.readers,
                          read_ahead=read.chunks_ahead, clock=clock)  # fmt: skip
    for chunk in map(decoding.finish, stream):
        if chunk.failed.any():
            x0, y0 = grid.coords[chunk.rows[chunk.failed][0]]
            raise TileReadError(
                "E_TILE", f"{slide.name}: the tile at level-0 px ({x0}, {y0}) was readable before and is no longer"
            )
        parts.append(chunk.pixels.cpu().numpy() if isinstance(chunk, DecodedChunk) else chunk.pixels)
    pixels = np.concatenate(parts)
    out = np.empty_like(pixels)
    out[order] = pixels
    return out
