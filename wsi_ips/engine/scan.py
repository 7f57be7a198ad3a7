"""One pass over a slide: every tile encoded once, every attention logit kept, the features of the best kept.

Prediction and training select by this very pass, so what a heatmap shows is what the label was read from.
Shapes: N tiles, T tasks, H heads, m = min(M, N), D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.colour import ColourStatistics
from wsi_ips.errors import ModelError, Note, TileReadError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.classifier import Scan as ModelScan
from wsi_ips.model.selector import StreamingSelector
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid, plan_tiles
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import TissueMask, find_tissue

__all__ = ["Progress", "Scan", "SlidePlan", "plan_slide", "read_tiles", "scan_slide"]

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class SlidePlan:
    """What will be read of a slide."""

    tissue: TissueMask
    grid: TileGrid

    @property
    def notes(self) -> tuple[Note, ...]:
        """Warnings of mask and grid."""
        return (*self.tissue.notes, *self.grid.notes)


@dataclass(frozen=True)
class Scan:
    """What the pass found; rows are rows of `grid`."""

    grid: TileGrid  # the tiles that could be read
    logits: np.ndarray  # (N, T, H) float32
    selected: np.ndarray  # (m,) int64, best first
    features: np.ndarray  # (m, D) float32
    n_missing: int  # tiles with px that the file does not hold
    n_failed: int  # tiles that could not be decoded
    n_reencoded: int  # selected tiles whose features had left the buffer
    colour: dict[str, float] | None  # see colour.py


def plan_slide(slide: Slide, settings: ModelSettings, read: ReadSettings, mask_path: str | None = None) -> SlidePlan:
    """Find the tissue and lay the grid.

    Raises:
        NoTissueError: nothing to look at.
        MppError: the slide is coarser than the tiles (`E_UPSAMPLE`).
        UnreadableSlideError: more tiles than a slide may have (`E_ABSURD`).
    """
    tissue = settings.tissue
    found = find_tissue(slide, tissue)
    if mask_path:
        found = restrict_tissue(found, slide, mask_path)
    grid = plan_tiles(slide, found, settings.tile, min_fraction=tissue.min_tile_fraction, min_focus=tissue.min_focus,
                      max_tiles=read.max_tiles)  # fmt: skip
    return SlidePlan(found, grid)


def scan_slide(
    slide: Slide, grid: TileGrid, classifier: IPSClassifier, read: ReadSettings, progress: Progress | None = None
) -> Scan:
    """Encode every tile once without gradient and select.

    Args:
        slide: open.
        grid: its tiles.
        classifier: on any device, in any mode; scanning always computes the inference function.
        read: readers, and how many tiles may fail.
        progress: called with ("tiles", done, N).

    Raises:
        TileReadError: more tiles failed than `read.max_bad_tiles` allows (`E_TILE`).
        ModelError: a score that is not finite (`E_NOT_FINITE`), with the tile's place.
    """
    chosen, n_tiles = classifier.settings.selection, len(grid.coords)
    selector = StreamingSelector(n_tiles, chosen.memory_size, mode=chosen.mode, chunk_size=chosen.chunk_size)
    colour, failed, n_missing, done = ColourStatistics(), np.zeros(n_tiles, bool), 0, 0
    for chunk in stream_tiles(
        slide, grid, chunk_size=chosen.chunk_size, n_readers=read.n_readers, read_ahead=read.read_ahead
    ):
        good = ~chunk.failed
        failed[chunk.rows] = chunk.failed
        n_missing += int(np.count_nonzero(chunk.n_missing))
        colour.add(chunk.pixels[good])
        found = _encode(classifier, chunk.pixels, chosen.chunk_size, grid, chunk.rows)
        selector.add(chunk.rows[good], found.features[good], found.logits[good])
        done += len(chunk.rows)
        if progress is not None:
            progress("tiles", done, n_tiles)
    _refuse_failed(failed, grid, read, slide)
    selection = selector.finish()
    features = selection.features
    if len(selection.missing):
        rows = selection.rows[selection.missing]
        again = read_tiles(slide, grid, rows, read)
        features[selection.missing] = _encode(classifier, again, chosen.chunk_size, grid, rows).features
    readable = ~failed
    kept = replace(grid, coords=grid.coords[readable], tissue=grid.tissue[readable]) if failed.any() else grid
    return Scan(kept, selection.logits[readable] if failed.any() else selection.logits,
                (np.cumsum(readable) - 1)[selection.rows], features, n_missing, int(failed.sum()), len(selection.missing),
                colour.summary())  # fmt: skip


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


def _encode(classifier: IPSClassifier, pixels: np.ndarray, batch: int, grid: TileGrid, rows: np.ndarray) -> ModelScan:
    found = classifier.scan(torch.from_numpy(pixels), batch)
    bad = np.flatnonzero(~np.isfinite(found.features).all(axis=1))
    if len(bad):
        x0, y0 = grid.coords[rows[bad[0]]]
        raise ModelError(f"the features of the tile at level-0 px ({x0}, {y0}) are not finite", "E_NOT_FINITE")
    return found


def _refuse_failed(failed: np.ndarray, grid: TileGrid, read: ReadSettings, slide: Slide) -> None:
    n_failed = int(failed.sum())
    if n_failed > read.max_bad_tiles * len(failed) or n_failed == len(failed):
        x0, y0 = grid.coords[np.argmax(failed)]
        raise TileReadError(
            "E_TILE",
            f"{slide.name}: {n_failed} of {len(failed)} tiles cannot be decoded, the first at level-0 px ({x0}, {y0}); "
            "copy the file again, or allow some by --max-bad-tiles",
        )
