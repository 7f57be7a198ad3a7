"""Tiles and tissue as polygons, in level-0 px of the slide's own frame.

Tiles of a broken side stand on whole px and may be up to a px apart; where tiles are merged their sides are rounded
up to whole px, so that neighbours touch. Nothing is simplified: a polygon's edge is the tile's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import shapely

from wsi_ips.results import SlidePrediction, TissueOutline

__all__ = ["Region", "blocks_of_tiles", "merged_tiles", "tile_boxes", "tissue_polygons"]


class Region(NamedTuple):
    """Some tiles as one area."""

    rows: np.ndarray  # (n,) int64, rows of the tiles
    shape: shapely.Geometry  # Polygon or MultiPolygon, level-0 px


def tile_boxes(p: SlidePrediction, rows: np.ndarray, *, closed: bool = False) -> np.ndarray:
    """Make the rectangles of tiles: (n,) shapely polygons; `closed` rounds their sides up to whole px."""
    x0, y0 = p.coords[rows, 0].astype(np.float64), p.coords[rows, 1].astype(np.float64)
    width, height = (math.ceil(side - 1e-6) if closed else side for side in p.extent0)
    return np.atleast_1d(shapely.box(x0, y0, x0 + width, y0 + height))


def merged_tiles(p: SlidePrediction, rows: np.ndarray) -> list[Region]:
    """Join tiles that touch or overlap along an edge into regions; in the order of their first tile in `rows`."""
    if not len(rows):
        return []
    whole = shapely.union_all(tile_boxes(p, rows, closed=True))
    parts = [part for part in shapely.get_parts(whole) if part.area > 0]
    tree = shapely.STRtree(parts)
    centres = shapely.points(p.coords[rows] + np.array(p.extent0) / 2.0)
    tile, part = tree.query(centres, predicate="intersects")
    owner = np.full(len(rows), -1)
    owner[tile] = part
    order = dict.fromkeys(owner.tolist())
    return [Region(rows[owner == i], parts[i]) for i in order if i >= 0]


def blocks_of_tiles(p: SlidePrediction, rows: np.ndarray, side: int) -> list[Region]:
    """Merge tiles into the blocks of `side` x `side` steps of the grid that they lie in.

    A block's shape is the union of its own tiles, so glass stays out; a block of which every tile is there is one
    rectangle.
    """
    if not len(rows):
        return []
    share = (p.tile.size_px - p.tile.overlap_px) / p.tile.size_px
    steps = np.array(p.extent0) * share * side
    place = np.floor((p.coords[rows] - p.coords.min(axis=0) + 0.5) / steps).astype(np.int64)  # (n, 2)
    key = place[:, 1] * (int(place[:, 0].max()) + 1) + place[:, 0]
    order = np.argsort(key, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    return [Region(rows[group], _union(p, rows[group], side)) for group in groups]


def _union(p: SlidePrediction, rows: np.ndarray, side: int) -> shapely.Geometry:
    xs, ys = p.coords[rows].T
    if len(rows) == side * side and len(np.unique(xs)) == side and len(np.unique(ys)) == side:
        first, last = tile_boxes(p, rows[[int(np.lexsort((xs, ys))[0]), int(np.lexsort((xs, ys))[-1])]], closed=True)
        return shapely.box(*first.bounds[:2], *last.bounds[2:])
    return shapely.union_all(tile_boxes(p, rows, closed=True))


def tissue_polygons(outline: TissueOutline) -> list[shapely.Polygon]:
    """Trace the tissue mask along the edges of its px, holes included; largest piece first."""
    mask = np.pad(outline.mask, ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(mask, axis=1) == 1)
    _, ends = np.nonzero(np.diff(mask, axis=1) == -1)  # one end for each start, in the same order
    if not len(rows):
        return []
    dx, dy = outline.downsample_x, outline.downsample_y
    runs = shapely.box(outline.x0 + starts * dx, outline.y0 + rows * dy, outline.x0 + ends * dx, outline.y0 + (rows + 1) * dy)
    parts = shapely.get_parts(shapely.union_all(runs))
    return sorted((part for part in parts if part.area > 0), key=lambda part: -part.area)
