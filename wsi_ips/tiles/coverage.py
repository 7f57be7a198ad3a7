"""How much of each rectangle of a grid a mask covers, by exact area.

A mask is constant inside its px, so its integral is bilinear between the corners of px: interpolating a summed-area
table at the corners of a rectangle gives the covered area exactly, parts of px included. The table is made for a band
of rows at a time, because four bytes a px for the whole mask would be the largest thing in the house.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["covered_share"]

_BAND_PX = 512


def covered_share(mask: np.ndarray, corners_px: np.ndarray, extent_px: tuple[float, float]) -> np.ndarray:
    """Find the covered share of rectangles of one size.

    Args:
        mask: (h, w) bool.
        corners_px: (N, 2) float64, x and y of top-left corners, px of the mask; any order, also outside.
        extent_px: width and height of a rectangle, px of the mask.

    Returns:
        (N,) float32 in [0, 1]; what lies outside the mask is not covered.

    Source: Crow, SIGGRAPH 1984 (summed-area tables).
    """
    height, width = mask.shape
    left, right = (np.clip(corners_px[:, 0] + d, 0.0, width) for d in (0.0, extent_px[0]))
    top, bottom = (np.clip(corners_px[:, 1] + d, 0.0, height) for d in (0.0, extent_px[1]))
    area = np.zeros(len(corners_px))
    band = np.minimum(top, height - 1).astype(np.int64) // _BAND_PX
    order = np.argsort(band, kind="stable")
    starts = np.flatnonzero(np.diff(band[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else []:
        first, stop = int(top[rows].min()), int(np.ceil(bottom[rows].max()))
        if stop <= first:
            continue
        table = cv2.integral(mask[first:stop].view(np.uint8))
        y0, y1 = top[rows] - first, bottom[rows] - first
        area[rows] = _at(table, right[rows], y1) - _at(table, left[rows], y1)
        area[rows] -= _at(table, right[rows], y0) - _at(table, left[rows], y0)
    return (area / (extent_px[0] * extent_px[1])).clip(0.0, 1.0).astype(np.float32)


def _at(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate a (h + 1, w + 1) table at (x, y), each (n,) float64 inside it; (n,) float64."""
    column = np.minimum(x.astype(np.int64), table.shape[1] - 2)
    row = np.minimum(y.astype(np.int64), table.shape[0] - 2)
    u, v = x - column, y - row
    upper = table[row, column] * (1.0 - u) + table[row, column + 1] * u
    lower = table[row + 1, column] * (1.0 - u) + table[row + 1, column + 1] * u
    return upper * (1.0 - v) + lower * v
