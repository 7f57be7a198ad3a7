"""A slide in small: exactly placed, read in bounded memory, from pyramid levels only.

A label or macro image is never opened: it carries names and numbers. Nothing outside the scanned bounds is read.
Frames: level-0 px (suffix `0`), px of a level (suffix `_px`), px of the picture (h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.geometry import Box0, level_for_mpp
from wsi_ips.report.heatmap import coverage, raster_size
from wsi_ips.slide.reader import Slide, offered_shrinks, read_into

__all__ = ["UNREADABLE_RGB", "Thumbnail", "read_square", "read_thumbnail", "to_rgb"]

_BLOCK_PX = 4096  # side of what is read at once: 50 MB of RGB
UNREADABLE_RGB = np.array([176, 176, 184], dtype=np.uint8)  # a grey no stain has; never white, which would mean glass


class Thumbnail(NamedTuple):
    """The bounds of a slide, reduced."""

    pixels: np.ndarray  # (h, w, 3) uint8 RGB
    n_failed: int  # blocks that could not be read, drawn grey


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Show (h, w, C) uint8 of any number of channels as (h, w, 3): grey for one, the first three of many."""
    channels = pixels.shape[2]
    if channels == 3:
        return pixels
    return pixels[..., [min(c, channels - 1) for c in range(3)]]


def read_thumbnail(slide: Slide, downsample: float) -> Thumbnail:
    """Read the bounds of a slide at a downsample, averaging over areas.

    Reads the coarsest level that is fine enough; where the file has none, level 0 in blocks that are reduced at once. Where
    that level is damaged, the finer one of which most can be read.

    Args:
        slide: an open slide.
        downsample: level-0 px per px of the picture, any positive number.

    Returns:
        Picture of `raster_size(slide.bounds, downsample)`; px (0, 0) begins at the corner of the bounds.
    """
    level = level_for_mpp(1.0, tuple(lv.downsample for lv in slide.levels), downsample)
    found = _read_from(slide, level, downsample)
    while found.n_failed and level > 0:  # a damaged level gives way to a finer one
        level -= 1
        found = min(found, _read_from(slide, level, downsample), key=_grey_share)
    return found


def _grey_share(thumbnail: Thumbnail) -> float:
    return float((thumbnail.pixels == UNREADABLE_RGB).all(axis=-1).mean()) if thumbnail.n_failed else 0.0


def _read_from(slide: Slide, level: int, downsample: float) -> Thumbnail:
    level_downsample = slide.levels[level].downsample
    factor = max(1, int(downsample / level_downsample + 1e-6))
    reduced, n_failed = _read_reduced(slide, slide.bounds, level, factor)
    height, width = raster_size(slide.bounds, downsample)
    step = downsample / (level_downsample * factor)  # px of `reduced` per px of the picture
    return Thumbnail(_average(_average(reduced, height, step).swapaxes(0, 1), width, step).swapaxes(0, 1), n_failed)


def _read_reduced(slide: Slide, bounds: Box0, level: int, factor: int) -> tuple[np.ndarray, int]:
    """Read a level in blocks, each averaged over squares of `factor` px: (h, w, 3) uint8, and blocks that failed."""
    downsample = slide.levels[level].downsample
    # what the decoder shrinks by itself, then squares of what is left of the factor
    shrink = max(s for s in offered_shrinks(slide, level) if factor % s == 0)
    rest = factor // shrink
    height, width = raster_size(bounds, downsample * factor)
    reduced = np.empty((height, width, 3), dtype=np.uint8)
    side = max(1, _BLOCK_PX // factor)  # of a block, px of `reduced`
    n_failed = 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = min(side, height - top), min(side, width - left)
            x0 = bounds.x0 + round(left * factor * downsample)
            y0 = bounds.y0 + round(top * factor * downsample)
            target = reduced[top : top + rows, left : left + columns]
            try:
                block = np.empty((rows * rest, columns * rest, int(getattr(slide, "n_channels", 3))), np.uint8)
                read_into(slide, block, x0, y0, level, shrink)
            except TileReadError:
                # what cannot be read is shown as such; the picture's caption counts it
                target[:] = UNREADABLE_RGB
                n_failed += 1
                continue
            target[:] = cv2.resize(to_rgb(block), (columns, rows), interpolation=cv2.INTER_AREA)
    return reduced, n_failed


def _average(pixels: np.ndarray, n_px: int, step: float) -> np.ndarray:
    """Average (n, k, 3) uint8 along its first axis to (n_px, k, 3); px j takes the interval [j, j + 1) x step."""
    if step == 1.0 and len(pixels) == n_px:
        return pixels
    weights = coverage(np.arange(n_px) * step, step, len(pixels)).astype(np.float32)
    total = np.asarray(weights.sum(axis=1))  # below `step` only at the far edge
    flat = weights @ pixels.reshape(len(pixels), -1).astype(np.float32)
    flat /= np.maximum(total, 1e-6)[:, None]
    return np.rint(flat).astype(np.uint8).reshape(n_px, *pixels.shape[1:])


def read_square(slide: Slide, x0: int, y0: int, extent0: tuple[float, float], size_px: int) -> np.ndarray:
    """Read one tile as the eye wants it: (size_px, size_px, 3) uint8.

    Args:
        slide: an open slide.
        x0, y0: top-left corner, level-0 px.
        extent0: width and height of the tile, level-0 px.
        size_px: side of the result.

    Raises:
        TileReadError: the file cannot be decoded there.
    """
    wanted = max(extent0) / size_px
    level = level_for_mpp(1.0, tuple(lv.downsample for lv in slide.levels), wanted)
    downsample = slide.levels[level].downsample
    width_px, height_px = (max(1, round(side / downsample)) for side in extent0)
    pixels = to_rgb(slide.read_region(x0, y0, level, width_px, height_px).pixels)
    if (height_px, width_px) == (size_px, size_px):
        return pixels
    shrinks = height_px >= size_px and width_px >= size_px
    return cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
