"""A slide as embeddings, from the cache if it has them, else from its pixels; and under which name the cache keeps them.

Shapes: N tiles of the grid, W width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import timm
import torch

from wsi_ips.config import ReadSettings
from wsi_ips.engine.cacheentry import CACHE_SCHEMA_VERSION, DamagedEntryError
from wsi_ips.engine.distinct import batch_of
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.sources import FileSource, PixelSource, Source, StoredSource, read_tiles
from wsi_ips.errors import ModelError, SlideError, TileReadError
from wsi_ips.model.ensemble import Classifier
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid

__all__ = ["FileSource", "SlideEmbeddings", "Source", "embedding_key", "over_embeddings", "read_tiles", "readable_grid",
           "refuse_failed", "slide_embeddings"]  # fmt: skip

R = TypeVar("R")


class SlideEmbeddings(NamedTuple):
    """All of a slide; rows are rows of `grid`."""

    embeddings: np.ndarray  # (N, W) float16
    grid: TileGrid  # the tiles that could be read
    n_encoded: int  # tiles through the encoder; 0 when the cache had them
    colour: dict[str, float] | None  # see colour.py


def over_embeddings(
    slide: Slide, grid: TileGrid, classifier: Classifier, read: ReadSettings, cache: EmbeddingCache | None,
    work: Callable[[Source], R], tools: PassTools | None = None,
) -> R:  # fmt: skip
    """Do some work with a slide's embeddings, from the cache if it has them, else from pixels (and into the cache).

    A pass that is interrupted leaves what it has encoded there, and the next goes on behind that.

    Args:
        slide: open.
        grid: its tiles.
        classifier: whose encoder; on any device.
        read: readers.
        cache: None does without.
        work: goes over the source once; when an entry turns out to be damaged on the way it is called again.
        tools: what was made ready for this pass; None makes its own.
    """
    tools = tools or PassTools()
    found = cache.fingerprint(slide.path) if cache is not None and slide.path is not None else None
    if cache is None or found is None:
        return work(PixelSource(slide, grid, classifier, read, None, tools))
    key = embedding_key(slide, grid, classifier, found, tools.batch, tools.decoding_of(slide, grid).reader, same_once=read.same_once)
    stored = cache.start(key)
    if stored is not None:
        try:
            return work(StoredSource(stored, grid, classifier.settings.selection.chunk_size))
        except DamagedEntryError:
            cache.remove(stored)
    writer = cache.writer(key, classifier.settings.selection.chunk_size)
    try:
        return work(PixelSource(slide, grid, classifier, read, writer, tools))
    except (SlideError, ModelError):
        writer.abandon()  # the next pass would end there, too
        raise
    finally:
        writer.leave()


def embedding_key(
    slide: Slide, grid: TileGrid, classifier: Classifier, fingerprint: dict[str, Any],
    batch: int | None = None, reader: str | None = None, *, same_once: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Name everything that a tile's embedding depends on, to the last bit; no path, no name.

    Args:
        slide: open.
        grid: its tiles.
        classifier: whose encoder.
        fingerprint: of the slide's files.
        batch: tiles through the encoder at once; the model's chunk by default.
        reader: who decodes; the slide's own by default.
        same_once: tiles of the same bytes are encoded once, see distinct.py.
    """
    settings = classifier.settings
    coords = hashlib.sha256(np.ascontiguousarray(grid.coords, np.int64).tobytes()).hexdigest()
    versions = {"torch": torch.__version__, "timm": timm.__version__, "opencv": cv2.__version__}
    return {
        "schema_version": CACHE_SCHEMA_VERSION, "slide": fingerprint, "reader": reader or slide.reader, "icc": settings.icc,
        "mpp": [slide.mpp.x, slide.mpp.y], "bounds": list(slide.bounds),
        "grid": {"coords": coords, "n_tiles": len(grid.coords), "extent0": list(grid.extent0), "level": grid.level,
                 "read_px": list(grid.read_px), "size_px": grid.size_px, "shrink": grid.shrink},
        "encoder": classifier.embedding_hash, "machine": _machine(classifier.device),
        "batch": batch_of(batch or settings.selection.chunk_size, same_once=same_once), "versions": versions,
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


def _machine(device: torch.device) -> list[str]:
    """Name what decides the last bits beside the program: the GPU, or the CPU's instructions and the threads."""
    if device.type == "cuda":
        tf32 = f"tf32 {torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}"
        return [torch.cuda.get_device_name(device), str(torch.version.cuda), str(torch.backends.cudnn.version()), tf32]
    if device.type == "cpu":
        return [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return [device.type]
