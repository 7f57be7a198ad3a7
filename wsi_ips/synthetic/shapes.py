"""Random outlines and random points inside them. Frames: whatever the caller's points are in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry import Polygon

__all__ = ["blob", "grow", "inside", "scatter"]


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
