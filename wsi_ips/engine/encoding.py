"""A slide as embeddings, chunk by chunk, from whatever has them: its pixels, the cache, or a file of features.

Chunk k holds rows [k I, (k + 1) I) of the grid whatever the source, so that what follows computes in the same batches
and gives the same bytes, cached or not.

Shapes: N tiles of the grid, n of a chunk, S tile side, C channels, W width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import timm
import torch

from wsi_ips.config import ReadSettings
from wsi_ips.engine.cacheentry import CACHE_SCHEMA_VERSION, DamagedEntryError, EntryWriter, StoredEmbeddings
from wsi_ips.engine.colour import ColourStatistics
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.errors import ModelError, TileReadError
from wsi_ips.model.ensemble import Classifier
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.stream import stream_tiles

__all__ = ["EmbeddedChunk", "FileSource", "SlideEmbeddings", "Source", "embedding_key", "over_embeddings", "read_tiles",
           "readable_grid", "refuse_failed", "slide_embeddings"]  # fmt: skip

R = TypeVar("R")


class EmbeddedChunk(NamedTuple):
    """Some tiles of a grid."""

    rows: np.ndarray  # (n,) int64, rows of the grid
    embeddings: np.ndarray  # (n, W) float32
    is_good: np.ndarray  # (n,) bool; False where the tile could not be read, and its embedding is of nothing


class SlideEmbeddings(NamedTuple):
    """All of a slide; rows are rows of `grid`."""

    embeddings: np.ndarray  # (N, W) float16
    grid: TileGrid  # the tiles that could be read
    n_encoded: int  # tiles through the encoder; 0 when the cache had them
    colour: dict[str, float] | None  # see colour.py


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


def over_embeddings(
    slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, cache: EmbeddingCache | None,
    work: Callable[[Source], R],
) -> R:  # fmt: skip
    """Do some work with a slide's embeddings, from the cache if it has them, else from pixels (and into the cache).

    Args:
        slide: open.
        grid: its tiles.
        classifier: whose encoder; on any device.
        read: readers.
        cache: None does without.
        work: goes over the source once; when an entry turns out to be damaged on the way it is called again.
    """
    found = cache.fingerprint(slide.path) if cache is not None and slide.path is not None else None
    if cache is None or found is None:
        return work(_PixelSource(slide, grid, classifier, read, None))
    key = embedding_key(slide, grid, classifier, found)
    stored = cache.find(key)
    if stored is not None:
        try:
            return work(_StoredSource(stored, grid, classifier.settings.selection.chunk_size))
        except DamagedEntryError:
            cache.remove(stored)
    return work(_PixelSource(slide, grid, classifier, read, cache.writer(key)))


def embedding_key(slide: Slide, grid: TileGrid, classifier: Classifier, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Name everything that a tile's embedding depends on, to the last bit; no path, no name.

    Args:
        slide: open.
        grid: its tiles.
        classifier: whose encoder.
        fingerprint: of the slide's files.
    """
    settings = classifier.settings
    coords = hashlib.sha256(np.ascontiguousarray(grid.coords, np.int64).tobytes()).hexdigest()
    versions = {"torch": torch.__version__, "timm": timm.__version__, "opencv": cv2.__version__}
    return {
        "schema_version": CACHE_SCHEMA_VERSION, "slide": fingerprint, "reader": slide.reader, "icc": settings.icc,
        "mpp": [slide.mpp.x, slide.mpp.y], "bounds": list(slide.bounds),
        "grid": {"coords": coords, "n_tiles": len(grid.coords), "extent0": list(grid.extent0), "level": grid.level,
                 "read_px": list(grid.read_px), "size_px": grid.size_px, "shrink": grid.shrink},
        "encoder": classifier.embedding_hash, "machine": _machine(classifier.device),
        "batch": settings.selection.chunk_size, "versions": versions,
    }  # fmt: skip


def slide_embeddings(
    slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, cache: EmbeddingCache | None = None
) -> SlideEmbeddings:
    """Embed all tiles of a slide; see `over_embeddings` for the arguments.

    Raises:
        TileReadError: more tiles failed than `read.max_bad_tiles` allows (`E_TILE`).
        ModelError: an embedding that is not finite (`E_NOT_FINITE`), with the tile's place.
    """

    def gather(source: Source) -> SlideEmbeddings:
        out = np.empty((0, 0), np.float16)
        for chunk in source.chunks():
            if not out.size:
                out = np.empty((len(grid.coords), chunk.embeddings.shape[1]), np.float16)
            out[chunk.rows] = chunk.embeddings
        refuse_failed(source, read, slide.name)
        whole = out[~source.failed] if source.failed.any() else out
        return SlideEmbeddings(whole, readable_grid(source), source.n_encoded, source.colour)

    return over_embeddings(slide, grid, classifier, read, cache, gather)


def readable_grid(source: Source) -> TileGrid:
    """Leave the tiles out that could not be read."""
    good, grid = ~source.failed, source.grid
    return grid if good.all() else replace(grid, coords=grid.coords[good], tissue=grid.tissue[good])


def refuse_failed(source: Source, read: ReadSettings, name: str) -> None:
    """Refuse a slide with too many tiles that cannot be read.

    Raises:
        TileReadError: `E_TILE`, with count and first place.
    """
    failed = source.failed
    n_failed = int(failed.sum())
    if n_failed > read.max_bad_tiles * len(failed) or n_failed == len(failed):
        x0, y0 = source.grid.coords[np.argmax(failed)]
        raise TileReadError(
            "E_TILE",
            f"{name}: {n_failed} of {len(failed)} tiles cannot be decoded, the first at level-0 px ({x0}, {y0}); "
            "copy the file again, or allow some by --max-bad-tiles (in settings read.max_bad_tiles)",
        )


def read_tiles(slide: Slide, grid: TileGrid, rows: np.ndarray, read: ReadSettings) -> np.ndarray:
    """Read tiles by row, in the order asked for: (n, S, S, C) uint8.

    Raises:
        TileReadError: one of them cannot be read now (`E_TILE`).
    """
    order = np.argsort(rows, kind="stable")
    parts = []
    for chunk in stream_tiles(
        slide, grid, rows=rows[order], chunk_size=64, n_readers=read.n_readers, read_ahead=read.read_ahead
    ):
        if chunk.failed.any():
            x0, y0 = grid.coords[chunk.rows[chunk.failed][0]]
            raise TileReadError(
                "E_TILE", f"{slide.name}: the tile at level-0 px ({x0}, {y0}) was readable before and is no longer"
            )
        parts.append(chunk.pixels)
    pixels = np.concatenate(parts)
    out = np.empty_like(pixels)
    out[order] = pixels
    return out


class _PixelSource:
    """Reads and encodes; fills an entry of the cache on the way."""

    is_stored = False

    def __init__(
        self, slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, writer: EntryWriter | None
    ) -> None:
        self._slide, self.grid, self._classifier, self._read, self._writer = slide, grid, classifier, read, writer
        self._chunk_size = classifier.settings.selection.chunk_size
        self.failed = np.zeros(len(grid.coords), bool)
        self.n_missing = self.n_encoded = 0
        self.colour: dict[str, float] | None = None

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """See `Source`."""
        colours = ColourStatistics()
        try:
            for chunk in stream_tiles(
                self._slide, self.grid, chunk_size=self._chunk_size, n_readers=self._read.n_readers,
                read_ahead=self._read.read_ahead,
            ):  # fmt: skip
                good = ~chunk.failed
                self.failed[chunk.rows] = chunk.failed
                self.n_missing += int(np.count_nonzero(chunk.n_missing))
                colours.add(chunk.pixels[good])
                embeddings = self._embed(chunk.pixels, chunk.rows)
                if self._writer is not None and good.all():  # a gap makes the writer give up
                    self._writer.add(chunk.rows, embeddings, chunk.n_missing)
                yield EmbeddedChunk(chunk.rows, embeddings, good)
            self.colour = colours.summary()
            if self._writer is not None:
                self._writer.finish(len(self.grid.coords), self.colour)
        finally:
            if self._writer is not None:
                self._writer.abandon()

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return self._embed(read_tiles(self._slide, self.grid, rows, self._read), rows)

    def _embed(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        embeddings = self._classifier.embed_tiles(pixels, self._chunk_size)
        self.n_encoded += len(rows)
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

    def _cut(self, start: int, embeddings: np.ndarray) -> Iterator[EmbeddedChunk]:
        for at in range(0, len(embeddings), self._chunk_size):
            part = embeddings[at : at + self._chunk_size].astype(np.float32)
            yield EmbeddedChunk(start + at + np.arange(len(part)), part, np.ones(len(part), bool))


class _StoredSource(_ReadySource):
    def __init__(self, stored: StoredEmbeddings, grid: TileGrid, chunk_size: int) -> None:
        super().__init__(grid, chunk_size)
        self._stored, self.n_missing, self.colour = stored, stored.n_missing, stored.colour

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """See `Source`. Parts hold whole chunks: they were filled chunk by chunk of the same size."""
        for part in self._stored.parts():
            yield from self._cut(int(part.rows[0]), part.embeddings)

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
        return self._cut(0, self._embeddings)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return self._embeddings[rows].astype(np.float32)


def _machine(device: torch.device) -> list[str]:
    """Name what decides the last bits beside the program: the GPU, or the CPU's instructions and the threads."""
    if device.type == "cuda":
        tf32 = f"tf32 {torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}"
        return [torch.cuda.get_device_name(device), str(torch.version.cuda), str(torch.backends.cudnn.version()), tf32]
    if device.type == "cpu":
        return [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return [device.type]
