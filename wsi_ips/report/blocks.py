"""Tiles merged into blocks of the grid, for maps that cannot hold every tile; in level-0 px of the slide's own frame.

All blocks are traced at once: each is a mask of its tiles, an empty line apart from the next. That needs tiles which lie
side by side in one grid; whatever does not is united box by box.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import shapely

from wsi_ips.report.outlines import polygons_of, trace_outlines
from wsi_ips.report.vectors import Region, tile_boxes
from wsi_ips.results import SlidePrediction

__all__ = ["blocks_of_tiles"]

_MOST_PLACES_A_TILE, _FEW_PLACES = 16, 1 << 20  # of a mask of tiles


class _Places(NamedTuple):
    """Where n tiles lie in the grid, counted from the first tile of the slide."""

    step: np.ndarray  # (n, 2) column and row
    block: np.ndarray  # (n, 2) column and row of the block
    key: np.ndarray  # (n,) number of the block, rising in raster order


def blocks_of_tiles(p: SlidePrediction, rows: np.ndarray, side: int) -> list[Region]:
    """Merge tiles into the blocks of `side` x `side` steps of the grid that they lie in.

    A block's shape is the union of its own tiles, so glass stays out; a block of which every tile is there is one
    rectangle.
    """
    if not len(rows):
        return []
    share = (p.tile.size_px - p.tile.overlap_px) / p.tile.size_px
    steps = np.array(p.extent0) * share
    from_first = p.coords[rows] - p.coords.min(axis=0)
    block = np.floor((from_first + 0.5) / (steps * side)).astype(np.int64)
    key = block[:, 1] * (int(block[:, 0].max()) + 1) + block[:, 0]
    places = _Places(np.rint(from_first / steps).astype(np.int64), block, key)
    order = np.argsort(key, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    shapes = _trace_blocks(p, p.coords[rows], places, side)
    regions = []
    for group in groups:
        shape = shapes.get(int(key[group[0]]))
        regions.append(Region(rows[group], shape or shapely.union_all(tile_boxes(p, rows[group], closed=True))))
    return regions


def _trace_blocks(p: SlidePrediction, coords: np.ndarray, places: _Places, side: int) -> dict[int, shapely.Geometry]:
    """Trace blocks that can be traced, by their number."""
    lines = places.step + places.block  # an empty line after each block
    sizes = lines.max(axis=0) + 2
    n_places = math.prod(sizes.tolist())
    if n_places > _MOST_PLACES_A_TILE * len(coords) + _FEW_PLACES or not np.array_equal(places.block, places.step // side):
        return {}
    starts = [_starts(coords[:, axis], lines[:, axis], int(sizes[axis])) for axis in (0, 1)]
    sides0 = [math.ceil(side0 - 1e-6) for side0 in p.extent0]
    if p.tile.overlap_px or not all(
        np.array_equal(start[lines[:, axis]], coords[:, axis]) and _lie_side_by_side(start, sides0[axis])
        for axis, start in enumerate(starts)
    ):
        return {}
    mask, keys = np.zeros(sizes[::-1], bool), np.zeros(sizes[::-1], np.int64)
    mask[lines[:, 1], lines[:, 0]] = True
    keys[lines[:, 1], lines[:, 0]] = places.key
    corners, pieces = trace_outlines(mask)
    x0 = np.where(corners.ends_x, starts[0][corners.column - 1] + sides0[0], starts[0][corners.column])
    y0 = np.where(corners.ends_y, starts[1][corners.row - 1] + sides0[1], starts[1][corners.row])
    parts = defaultdict(list)
    for piece, shape in zip(pieces, polygons_of(pieces, x0, y0), strict=True):
        parts[int(keys[piece.row, piece.column])].append(shape)
    if not all(float(side0).is_integer() for side0 in p.extent0):
        # tiles that meet in a corner overlap there by the px that their sides are rounded up
        shared = np.flatnonzero(corners.is_shared)
        for key in np.unique(keys[corners.mask_row[shared], corners.mask_column[shared]]).tolist():
            parts.pop(key, None)
    return {key: some[0] if len(some) == 1 else shapely.MultiPolygon(some) for key, some in parts.items()}


def _starts(coords: np.ndarray, lines: np.ndarray, size: int) -> np.ndarray:
    """Tell where each line of tiles begins: (size,) level-0 px, NaN where it has no tile."""
    starts = np.full(size, np.nan)
    starts[lines] = coords
    return starts


def _lie_side_by_side(starts: np.ndarray, side0: int) -> bool:
    """Tell whether neighbouring lines touch, or overlap by the px that a side was rounded up."""
    gaps = np.diff(starts)
    return bool(np.isin(gaps[np.isfinite(gaps)], (side0 - 1, side0)).all())
