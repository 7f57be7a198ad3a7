"""Tiles and tissue as polygons, in level-0 px of the slide's own frame.

Tiles of a broken side stand on whole px and may be up to a px apart; where tiles are merged their sides are rounded
up to whole px, so that neighbours touch. Nothing is simplified: a polygon's edge is the tile's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import shapely

from wsi_ips.report.outlines import polygons_of, trace_outlines
from wsi_ips.results import SlidePrediction, TissueOutline

__all__ = ["Region", "merged_tiles", "tile_boxes", "tissue_polygons"]



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


def tissue_polygons(outline: TissueOutline) -> list[shapely.Polygon]:
    """Trace the tissue mask along the edges of its px, holes included; largest piece first."""
    corners, pieces = trace_outlines(outline.mask)
    parts = polygons_of(pieces, outline.x0 + corners.column * outline.downsample_x, outline.y0 + corners.row * outline.downsample_y)
    return sorted(parts.tolist(), key=lambda part: -part.area)
