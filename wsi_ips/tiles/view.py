"""A low-resolution view of a slide, block by block, at the same physical resolution whatever the pyramid.

The view covers the scanned bounds exactly: its px is bounds / (whole number of px), as near the wanted µm/px as that
allows. Each view px is the mean of the level's px inside it, and every px of the level belongs to exactly one view px:
box edges are rounded to whole level px, sums are integers. So the view does not depend on how it was cut into blocks,
to the last bit, and slides of a single level need no more memory than others.

What a level does not give because its bytes are damaged is read from the next finer one, block by block. What no level
gives is unknown: whether it is tissue cannot be told.

Frames: level-0 px (suffix `0`), px of the level read (counted from the bounds' corner), view px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product

import cv2
import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.geometry import level_for_mpp, shrink_for
from wsi_ips.slide.reader import Slide, offered_shrinks, read_into

__all__ = ["Damage", "View", "plan_view", "read_view"]

# 255 * 2048**2 < 2**31: the running sums of a block fit int32
_BLOCK_PX = 2048
_PART_PX = 256  # parts of a damaged block that are tried one by one
_MAX_CUTS = 50  # blocks of a view that are cut into such parts, so that a slide without a whole tile ends soon
_READERS = 2


@dataclass(frozen=True)
class View:
    """Where the px of a view lie."""

    level: int
    shrink: int  # px of the level along each side that the decoder makes one of
    width_px: int
    height_px: int
    downsample_x: float  # level-0 px per view px
    downsample_y: float
    edges_x: np.ndarray  # (width_px + 1,) int64, px of the level, shrunk
    edges_y: np.ndarray  # (height_px + 1,) int64


@dataclass
class Damage:
    """What could not be read while a view was: filled by `read_view`."""

    levels: set[int] = field(default_factory=set)  # whose bytes are damaged somewhere
    unknown: list[tuple[slice, slice]] = field(default_factory=list)  # rows and columns of the view that no level gives
    first: TileReadError | None = None
    n_cuts: int = 0

    def note(self, level: int, error: TileReadError) -> None:
        """Take in a read that failed."""
        self.levels.add(level)
        self.first = self.first or error

    def paint(self, mask: np.ndarray, value: int) -> int:
        """Set what is unknown in (height_px, width_px); give how many px that is."""
        for rows, columns in self.unknown:
            mask[rows, columns] = value
        return sum((r.stop - r.start) * (c.stop - c.start) for r, c in self.unknown)


def plan_view(slide: Slide, view_mpp: float) -> View:
    """Lay a view of about `view_mpp` µm per px over the slide's bounds.

    Where level 0 itself is coarser than that, a view px is a level-0 px. Where no level is near, the decoder shrinks if
    it can; up to seven px of the level at the right and bottom may then be left out.
    """
    bounds, mpp = slide.bounds, slide.mpp
    level = level_for_mpp(max(mpp.x, mpp.y), tuple(one.downsample for one in slide.levels), view_mpp)
    downsample = slide.levels[level].downsample
    shrink = shrink_for(view_mpp / (max(mpp.x, mpp.y) * downsample), offered_shrinks(slide, level))
    step0 = downsample * shrink
    # a shrunk px that reaches out of the scan would have to be read whole
    extent0 = bounds[2:] if shrink == 1 else tuple(max(1.0, side0 // step0) * step0 for side0 in bounds[2:])
    edges_x = _edges(extent0[0], mpp.x, step0, view_mpp)
    edges_y = _edges(extent0[1], mpp.y, step0, view_mpp)
    width_px, height_px = len(edges_x) - 1, len(edges_y) - 1
    return View(level, shrink, width_px, height_px, extent0[0] / width_px, extent0[1] / height_px, edges_x, edges_y)


def read_view(
    slide: Slide, view: View, block_px: int = _BLOCK_PX, damage: Damage | None = None
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Read a view in blocks, row by row of blocks, a few ahead of the consumer.

    Args:
        slide: open.
        view: from `plan_view`.
        block_px: largest side of a block in px of the level; decides memory, not the result.
        damage: takes what cannot be read, which is white then; without it that is an error.

    Yields:
        Rows and columns of the view, and their pixels (h, w, C) uint8 on white.

    Raises:
        TileReadError: a block cannot be read, twice (`E_TILE`).
    """
    blocks = product(_groups(view.edges_y, block_px), list(_groups(view.edges_x, block_px)))
    pool = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="view-reader")
    works: deque[tuple[slice, slice, Future[np.ndarray]]] = deque()
    try:
        for rows, columns in blocks:
            works.append((rows, columns, pool.submit(_read_block, slide, view, rows, columns)))
            if len(works) > _READERS:
                yield _finished(slide, view, works.popleft(), damage)
        while works:
            yield _finished(slide, view, works.popleft(), damage)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def box_means(pixels: np.ndarray, edges_x: np.ndarray, edges_y: np.ndarray) -> np.ndarray:
    """Average boxes of whole px.

    Args:
        pixels: (H, W, C) uint8, at most 8.4 million px a channel.
        edges_x, edges_y: (w + 1,) and (h + 1,) rising px positions; box j spans edges_x[j] to edges_x[j + 1].

    Returns:
        (h, w, C) uint8, rounded half up.

    Source: Crow, SIGGRAPH 1984 (summed-area tables).
    """
    areas = np.diff(edges_y)[:, None] * np.diff(edges_x)[None, :]
    means = np.empty((*areas.shape, pixels.shape[2]), np.uint8)
    for c in range(pixels.shape[2]):
        corners = cv2.integral(np.ascontiguousarray(pixels[..., c]))[np.ix_(edges_y, edges_x)].astype(np.int64)
        sums = np.diff(np.diff(corners, axis=0), axis=1)
        means[..., c] = (2 * sums + areas) // (2 * areas)
    return means


def _finished(
    slide: Slide, view: View, work: tuple[slice, slice, Future[np.ndarray]], damage: Damage | None
) -> tuple[slice, slice, np.ndarray]:
    """Wait for a block; what failed is mended here, in the order of the blocks, so that the outcome repeats itself."""
    rows, columns, future = work
    try:
        return rows, columns, future.result()
    except TileReadError as error:
        if damage is None:
            raise
        damage.note(view.level, error)
        return rows, columns, _mended(slide, view, rows, columns, damage)


def _mended(slide: Slide, view: View, rows: slice, columns: slice, damage: Damage) -> np.ndarray:
    """Read a damaged block from the next finer level, or the parts of it that can be read where that is the finest."""
    shape = (rows.stop - rows.start, columns.stop - columns.start, _channels(slide))
    finer, part_px = _finer(slide, view), _BLOCK_PX
    parts: list[tuple[slice, slice]] = []
    if finer is None and damage.n_cuts < _MAX_CUTS:
        finer, part_px, damage.n_cuts = view, _PART_PX, damage.n_cuts + 1
    if finer is not None:
        parts = list(product(_groups(finer.edges_y[rows.start : rows.stop + 1], part_px),
                             _groups(finer.edges_x[columns.start : columns.stop + 1], part_px)))  # fmt: skip
    if finer is None or (finer is view and len(parts) == 1):
        damage.unknown.append((rows, columns))
        return np.full(shape, 255, np.uint8)
    pixels = np.empty(shape, np.uint8)
    for r, c in parts:
        part = (slice(rows.start + r.start, rows.start + r.stop), slice(columns.start + c.start, columns.start + c.stop))
        try:
            pixels[r, c] = _read_block(slide, finer, *part)
        except TileReadError as error:
            damage.note(finer.level, error)
            pixels[r, c] = _mended(slide, finer, *part, damage)
    return pixels


def _finer(slide: Slide, view: View) -> View | None:
    """Lay the same view over the next finer level; None where there is none."""
    if view.level == 0:
        return None
    step0 = slide.levels[view.level - 1].downsample
    edges = []
    for n_px, downsample in ((view.width_px, view.downsample_x), (view.height_px, view.downsample_y)):
        level_px = max(n_px, round(n_px * downsample / step0))
        edges.append((np.arange(n_px + 1) * level_px + n_px // 2) // n_px)
    return replace(view, level=view.level - 1, shrink=1, edges_x=edges[0], edges_y=edges[1])


def _channels(slide: Slide) -> int:
    return int(getattr(slide, "n_channels", 3))


def _read_block(slide: Slide, view: View, rows: slice, columns: slice) -> np.ndarray:
    bounds, downsample = slide.bounds, slide.levels[view.level].downsample * view.shrink
    edges_y, edges_x = view.edges_y[rows.start : rows.stop + 1], view.edges_x[columns.start : columns.stop + 1]
    x0 = bounds.x0 + round(int(edges_x[0]) * downsample)
    y0 = bounds.y0 + round(int(edges_y[0]) * downsample)
    size_px = int(edges_x[-1] - edges_x[0]), int(edges_y[-1] - edges_y[0])
    pixels = _read_twice(slide, x0, y0, view, size_px)
    return box_means(pixels, edges_x - edges_x[0], edges_y - edges_y[0])


def _edges(extent0: float, mpp0: float, downsample: float, view_mpp: float) -> np.ndarray:
    level_px = max(1, round(extent0 / downsample))
    view_px = min(level_px, max(1, round(extent0 * mpp0 / view_mpp)))
    return (np.arange(view_px + 1) * level_px + view_px // 2) // view_px


def _groups(edges: np.ndarray, block_px: int) -> Iterator[slice]:
    """Cut view px into runs whose level px fit a block; a single view px may be larger than a block."""
    start, n_px = 0, len(edges) - 1
    while start < n_px:
        stop = int(np.searchsorted(edges, edges[start] + block_px, side="right")) - 1
        stop = min(max(stop, start + 1), n_px)
        yield slice(start, stop)
        start = stop


def _read_twice(slide: Slide, x0: int, y0: int, view: View, size_px: tuple[int, int]) -> np.ndarray:
    pixels = np.empty((size_px[1], size_px[0], _channels(slide)), np.uint8)
    try:
        read_into(slide, pixels, x0, y0, view.level, view.shrink)
    except TileReadError:  # the reader opens a fresh handle after an error
        read_into(slide, pixels, x0, y0, view.level, view.shrink)
    return pixels
