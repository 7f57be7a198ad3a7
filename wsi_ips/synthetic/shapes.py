"""Random outlines and random points inside them. Frames: whatever the caller's points are in."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from shapely.geometry import Polygon

__all__ = ["blob", "grow", "inside", "scatter", "spread"]

_PX = 8  # level-0 px per px of a map
_ISLAND_UM = 30.0  # scale of the islands of `spread`
_SPECK_UM2 = 1000.0


def blob(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, roughness: float) -> np.ndarray:
    """Make a smooth irregular outline.

    Args:
        rng: random numbers.
        centre: (2,) x, y.
        radii: (2,) half-axes of the ellipse it deviates from.
        roughness: standard deviation of the first harmonic, relative to the radius.

    Returns:
        (72, 2) points; the radius never falls below 0.55 of the ellipse's, nor above 1.25.
    """
    theta = np.linspace(0.0, 2.0 * np.pi, 72, endpoint=False)
    orders = np.arange(2, 8)
    size = rng.normal(0.0, roughness, len(orders)) / np.sqrt(orders - 1.0) / (orders - 1.0) ** 0.25
    phase = rng.uniform(0.0, 2.0 * np.pi, len(orders))
    radius = np.clip(1.0 + (size[:, None] * np.cos(orders[:, None] * theta + phase[:, None])).sum(0), 0.55, 1.25)
    points: np.ndarray = centre + np.stack([np.cos(theta), np.sin(theta)], axis=1) * radius[:, None] * radii
    return points


def scatter(rng: np.random.Generator, per_mm2: np.ndarray, mpp: float) -> np.ndarray:
    """Scatter points by a density map.

    Args:
        rng: random numbers.
        per_mm2: (h, w) points a square millimetre; one px of the map is 8 x 8 level-0 px.
        mpp: µm per level-0 px.

    Returns:
        (n, 2) float64 x, y in level-0 px.
    """
    counts = rng.poisson(per_mm2 * (8.0 * mpp / 1000.0) ** 2)
    y, x = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), counts.shape[1])
    return np.stack([x, y], axis=1) * 8.0 + rng.uniform(0.0, 8.0, (len(x), 2))


def grow(rng: np.random.Generator, outline: Polygon, per_mm2: float, mpp: float) -> np.ndarray:
    """Fill an outline with points that keep their distance (a jittered hexagonal grid), (n, 2) in level-0 px."""
    step = np.sqrt(2.0 / np.sqrt(3.0) / per_mm2) * 1000.0 / mpp
    left, top, right, bottom = outline.bounds
    rows = np.arange(top, bottom, step * np.sqrt(3.0) / 2.0)
    columns = np.arange(left, right + step, step)
    x, y = np.meshgrid(columns, rows)
    x[1::2] += step / 2.0
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points = points + rng.normal(0.0, 0.18 * step, points.shape)
    return points[inside(points, (outline,))]


def inside(points: np.ndarray, outlines: Sequence[Polygon]) -> np.ndarray:
    """Tell which points (n, 2) lie in any outline: (n,) bool."""
    found = np.zeros(len(points), bool)
    for outline in outlines:
        found |= shapely.contains_xy(outline, points[:, 0], points[:, 1])
    return found


def spread(
    rng: np.random.Generator, tissue: np.ndarray, share: float, mpp: float, avoid: Sequence[Polygon] = ()
) -> tuple[Polygon, ...]:
    """Cover a share of the tissue with islands of one scale, strewn all over: where a smooth random map is highest.

    Args:
        rng: random numbers; the same for every share, so a larger share holds a smaller one.
        tissue: (h, w) bool; one px is 8 x 8 level-0 px.
        share: of the tissue's px, as far as there is room beside what is to be avoided.
        mpp: µm per level-0 px.
        avoid: outlines in level-0 px that stay free.

    Returns:
        Outlines in level-0 px, with holes, apart from each other.
    """
    px_um = _PX * mpp
    field = cv2.GaussianBlur(rng.standard_normal(tissue.shape, dtype=np.float32), (0, 0), _ISLAND_UM / px_um)
    free = tissue.copy()
    for outline in avoid:
        taken = np.zeros(tissue.shape, np.uint8)
        cv2.fillPoly(taken, [np.round(np.asarray(outline.exterior.coords) / _PX).astype(np.int32)], 1)
        free &= taken == 0
    n_free = int(free.sum())
    wanted = min(round(share * int(tissue.sum())), n_free)
    best, n = np.zeros(tissue.shape, np.uint8), wanted
    for _ in range(6 if wanted else 0):  # what is lost with the specks is asked for again
        cut = np.partition(field[free], -n)[-n]
        islands = _without_specks((field >= cut) & free, _SPECK_UM2 / px_um**2)
        off = wanted - int(islands.sum())
        if abs(off) < abs(wanted - int(best.sum())):
            best = islands
        n = min(max(1, n + off), n_free)
    return _outlines(best)


def _without_specks(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Keep the connected parts of at least so many px: (h, w) bool to (h, w) uint8."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False  # the ground
    return keep[parts].astype(np.uint8)


def _outlines(mask: np.ndarray) -> tuple[Polygon, ...]:
    """Draw round the parts of a mask (h, w) uint8 of 8-px cells, with their holes, in level-0 px."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour[:, 0, :] * float(_PX) + _PX / 2.0 for contour in contours]  # centres of px
    found: list[Polygon] = []
    for i, ring in enumerate(rings):
        if tree[0][i][3] >= 0 or len(ring) < 3:
            continue
        holes = [rings[j] for j in range(len(rings)) if tree[0][j][3] == i and len(rings[j]) > 2]
        # an outline runs through the centres of its px; a hole's, through those around it
        grown = Polygon(ring, holes).buffer(_PX / 2.0).simplify(_PX / 4.0)
        found += [grown] if isinstance(grown, Polygon) else list(grown.geoms)
    return tuple(found)
