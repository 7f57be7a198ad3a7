"""The slide as a pyramid of small tiles, read when they are asked for, each px an average over its own area.

A tile is named by (shift, column, row): its px are squares of 2**shift level-0 px, its corner lies `column` and `row`
times 256 such px from the corner of the slide's bounds. Nothing is resampled at shift 0: those px are the slide's own.
Where the file holds no level coarse enough, tiles are cut from an overview that is read once a slide, so no tile costs
more than a bounded part of the file. What cannot be decoded is grey.

Frames: level-0 px (suffix `0`), px of a stored level (`_px`, u across and v down), px of the tile (h, w).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.geometry import Box0, level_for_mpp
from wsi_ips.report.heatmap import coverage, raster_size
from wsi_ips.report.thumbnail import UNREADABLE_RGB, read_thumbnail, to_rgb
from wsi_ips.slide.reader import Region, Slide

__all__ = ["TILE_PX", "NotingSlide", "Overview", "TilePlace", "highest_shift", "overview_shift", "read_overview", "read_tile", "tile_box"]

TILE_PX = 256
_READ_PX = 2048  # side of what is read from a level at once, px: 12 MB of RGB
_FACTOR = 8  # a tile is averaged from at most 8 x 8 px of a level a px, unless the overview would be too large
_OVERVIEW_PX = 4096  # longest side of the overview: 50 MB
_LEAST_PX = 128  # an undecodable block is halved down to this side, then it is grey


class TilePlace(NamedTuple):
    """Which tile."""

    shift: int  # px of the tile are 2**shift level-0 px wide
    column: int
    row: int


class Overview(NamedTuple):
    """The bounds of a slide in small, and that halved again and again."""

    shift: int  # of the first one
    pixels: tuple[np.ndarray, ...]  # (h, w, 3) uint8 RGB each
    n_failed: int = 0  # parts that could not be read, and are grey


class NotingSlide:
    """A slide that remembers whether some of it could not be read."""

    def __init__(self, slide: Slide) -> None:
        self._slide, self.has_failed = slide, False

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """See `Slide`."""
        try:
            return self._slide.read_region(x0, y0, level, width_px, height_px)
        except TileReadError:
            self.has_failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slide, name)


def highest_shift(bounds: Box0) -> int:
    """Find the shift at which the whole of the bounds is one tile.

    >>> highest_shift(Box0(0, 0, 256, 100)), highest_shift(Box0(0, 0, 257, 100)), highest_shift(Box0(0, 0, 100000, 1))
    (0, 1, 9)
    """
    side = max(bounds.width0, bounds.height0)
    return max(0, math.ceil(math.log2(side / TILE_PX) - 1e-12))


def tile_box(bounds: Box0, place: TilePlace) -> Box0 | None:
    """Find the part of the bounds that a tile covers; None where there is no such tile.

    >>> tile_box(Box0(100, 50, 1000, 600), TilePlace(1, 1, 1))
    Box0(x0=612, y0=562, width0=488, height0=88)
    """
    if not 0 <= place.shift <= highest_shift(bounds):
        return None
    side0 = TILE_PX << place.shift
    left, top = place.column * side0, place.row * side0
    if not (0 <= left < bounds.width0 and 0 <= top < bounds.height0):
        return None
    width0, height0 = min(side0, bounds.width0 - left), min(side0, bounds.height0 - top)
    return Box0(bounds.x0 + left, bounds.y0 + top, width0, height0)


def overview_shift(slide: Slide) -> int | None:
    """Find the first shift whose tiles come from the overview; None where the levels serve them all."""
    downsamples = tuple(level.downsample for level in slide.levels)
    for shift in range(highest_shift(slide.bounds) + 1):
        scale = float(1 << shift)
        served = downsamples[level_for_mpp(1.0, downsamples, scale)]
        if scale / served > _FACTOR * 1.01 and max(raster_size(slide.bounds, scale)) <= _OVERVIEW_PX:
            return shift
    return None


def read_overview(slide: Slide, shift: int) -> Overview:
    """Read the bounds in small; a slide without coarse levels is read whole for it, once.

    Args:
        slide: an open slide.
        shift: from `overview_shift`.
    """
    whole = read_thumbnail(slide, float(1 << shift))
    pixels = [whole.pixels]
    while max(pixels[-1].shape[:2]) > TILE_PX:
        height, width = pixels[-1].shape[:2]
        # at an odd edge the last px stands for what is inside the bounds alone
        even = cv2.copyMakeBorder(pixels[-1], 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        pixels.append(cv2.resize(even, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    return Overview(shift, tuple(pixels), whole.n_failed)


def read_tile(slide: Slide, box: Box0, place: TilePlace, overview: Overview | None) -> np.ndarray:
    """Read one tile: (h, w, 3) uint8 RGB of `raster_size(box, 2**shift)`, grey where the file cannot be decoded.

    Args:
        slide: an open slide.
        box: from `tile_box` of the slide's bounds.
        place: the tile.
        overview: of the slide; tiles at its shift and above are cut from it.
    """
    if overview is not None and place.shift >= overview.shift:
        pixels = overview.pixels[min(place.shift - overview.shift, len(overview.pixels) - 1)]
        top, left = place.row * TILE_PX, place.column * TILE_PX
        return pixels[top : top + TILE_PX, left : left + TILE_PX]
    return _read_averaged(slide, box, float(1 << place.shift))


def _read_averaged(slide: Slide, box: Box0, downsample: float) -> np.ndarray:
    """Read a box, each px averaged over the px of the best level that lie in it, by the area they share."""
    height, width = raster_size(box, downsample)
    number = level_for_mpp(1.0, tuple(level.downsample for level in slide.levels), downsample)
    level = slide.levels[number]
    step = downsample / level.downsample  # px of the level per px of the tile
    if max(height, width) * step > _READ_PX + 1 and max(height, width) > 1:
        return _in_quarters(slide, box, downsample)
    b = slide.bounds
    u, columns, left = _span((box.x0, box.width0), (b.x0, b.width0), level.downsample, level.width)
    v, rows, top = _span((box.y0, box.height0), (b.y0, b.height0), level.downsample, level.height)
    pixels = _read_or_grey(slide, number, (u, v), (columns, rows))
    if (height, width) == pixels.shape[:2] and abs(step - 1.0) < 1e-9 and max(abs(left), abs(top)) < 1e-6:
        return pixels
    averaged = _average(_average(pixels, top, step, height).swapaxes(0, 1), left, step, width).swapaxes(0, 1)
    return np.rint(averaged).astype(np.uint8)


def _in_quarters(slide: Slide, box: Box0, downsample: float) -> np.ndarray:
    height, width = raster_size(box, downsample)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    half = (max(height, width) + 1) // 2
    side0 = round(half * downsample)
    for top in range(0, height, half):
        for left in range(0, width, half):
            x, y = round(left * downsample), round(top * downsample)
            part = Box0(box.x0 + x, box.y0 + y, min(side0, box.width0 - x), min(side0, box.height0 - y))
            pixels[top : top + half, left : left + half] = _read_averaged(slide, part, downsample)
    return pixels


def _span(wanted: tuple[int, int], scan: tuple[int, int], downsample: float, size_px: int) -> tuple[int, int, float]:
    """Find the px of a level under an interval: the first one, how many, and where, seen from the first, it begins.

    A px whose centre lies outside the scan is white to the readers; it is left out, so that no edge is washed out.
    """
    start0, length0 = wanted
    first = max(math.floor(start0 / downsample + 1e-6), math.ceil(scan[0] / downsample - 0.5))
    first = min(first, size_px - 1)
    stop = min(math.ceil((start0 + length0) / downsample - 1e-6), math.ceil((scan[0] + scan[1]) / downsample - 0.5))
    return first, max(1, min(stop, size_px) - first), start0 / downsample - first


def _average(pixels: np.ndarray, start: float, step: float, n_px: int) -> np.ndarray:
    """Average (k, w, 3) along its first axis to (n_px, w, 3) float32; px j takes the interval start + [j, j + 1) x step."""
    weights = coverage(start + np.arange(n_px) * step, step, len(pixels)).astype(np.float32)
    total = np.asarray(weights.sum(axis=1))[:, None]  # below `step` only at the far edge
    flat = weights @ pixels.reshape(len(pixels), -1).astype(np.float32)
    return np.where(total > 1e-6, flat / np.maximum(total, 1e-6), 255.0).reshape(n_px, *pixels.shape[1:])


def _read_or_grey(slide: Slide, level: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Read px of a level; what cannot be decoded is halved until only the bad part of it is grey."""
    (u, v), (width, height), downsample = corner, size, slide.levels[level].downsample
    try:
        return to_rgb(slide.read_region(round(u * downsample), round(v * downsample), level, width, height).pixels)
    except TileReadError:
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:] = UNREADABLE_RGB
        if max(width, height) <= _LEAST_PX:
            return pixels
        half = (max(width, height) + 1) // 2
        for top in range(0, height, half):
            for left in range(0, width, half):
                part = (min(half, width - left), min(half, height - top))
                pixels[top : top + half, left : left + half] = _read_or_grey(slide, level, (u + left, v + top), part)
        return pixels
