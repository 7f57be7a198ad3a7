"""What every reader does with a rectangle: clip it to the scan, put it on white, count what is missing.

Frames: level-0 px (suffix `0`), px of a level (suffix `_px`). A level's px grid starts at level-0 (0, 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.errors import Note
from wsi_ips.geometry import Box0
from wsi_ips.slide.protocol import Level, Region

__all__ = ["Clip", "clip_region", "composite_on_white", "place_on_white", "premultiplied_on_white", "touches",
           "usable_levels"]  # fmt: skip

_ASPECT_TOLERANCE = 0.02
_OPAQUE = 255 << 24
_ALPHA_BITS = int(np.array([0, 0, 0, 255], np.uint8).view(np.uint32)[0])


class Clip(NamedTuple):
    """The part of a wanted rectangle that lies inside the scan."""

    left_px: int  # offset inside the wanted rectangle, px of the level
    top_px: int
    width_px: int  # 0 when nothing of it was scanned
    height_px: int
    x0: int  # level-0 px of the part's top-left corner
    y0: int


def clip_region(bounds: Box0, downsample: float, x0: int, y0: int, width_px: int, height_px: int) -> Clip:
    """Cut a rectangle of a level down to the scanned bounds.

    A px of the level belongs to the scan when its centre does.

    >>> clip_region(Box0(10, 0, 100, 50), 2.0, 0, 0, 8, 30)
    Clip(left_px=5, top_px=0, width_px=3, height_px=25, x0=10, y0=0)
    """
    left, right = _span(x0, bounds.x0, bounds.width0, downsample, width_px)
    top, bottom = _span(y0, bounds.y0, bounds.height0, downsample, height_px)
    return Clip(left, top, right - left, bottom - top, x0 + round(left * downsample), y0 + round(top * downsample))


def _span(start0: int, bound0: int, extent0: int, downsample: float, size_px: int) -> tuple[int, int]:
    first = math.ceil((bound0 - start0) / downsample - 0.5)
    stop = math.ceil((bound0 + extent0 - start0) / downsample - 0.5)
    first = min(max(first, 0), size_px)
    return first, max(first, min(stop, size_px))


def place_on_white(pixels: np.ndarray, clip: Clip, width_px: int, height_px: int) -> np.ndarray:
    """Put the clipped pixels (h, w, C) uint8 back into the wanted (height_px, width_px, C), white around them."""
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    canvas = np.full((height_px, width_px, pixels.shape[2]), 255, np.uint8)
    canvas[clip.top_px : clip.top_px + clip.height_px, clip.left_px : clip.left_px + clip.width_px] = pixels
    return canvas


def composite_on_white(rgba: np.ndarray) -> Region:
    """Put straight-alpha RGBA (h, w, 4) uint8 on white; px of alpha 0 are missing from the file.

    Source: Porter and Duff, SIGGRAPH 1984, "over" with an opaque white ground.
    """
    # all px in one word each: a strided look at the alpha channel costs as much as decoding a tile
    words = np.ascontiguousarray(rgba).view(np.uint32)
    if int(np.bitwise_and.reduce(words, axis=None)) & _ALPHA_BITS == _ALPHA_BITS:
        return Region(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), 0)
    alpha = rgba[..., 3]
    a = alpha[..., None].astype(np.uint32)
    rgb = (rgba[..., :3].astype(np.uint32) * a + 255 * (255 - a) + 127) // 255
    return Region(rgb.astype(np.uint8), int(np.count_nonzero(alpha == 0)))


def premultiplied_on_white(argb: np.ndarray, out: np.ndarray) -> int:
    """Put premultiplied px (h, w) uint32, alpha in the highest byte, on white.

    Args:
        argb: as OpenSlide gives them.
        out: (h, w, 3) uint8 RGB, written.

    Returns:
        Px of alpha 0, which are missing from the file.

    Source: as `composite_on_white`; c alpha + 255 (1 - alpha) needs no division where c alpha is given.
    """
    bgra = argb.view(np.uint8).reshape(*argb.shape, 4)  # on little-endian machines, all that OpenSlide is built for
    if int(np.bitwise_and.reduce(argb, axis=None)) >= _OPAQUE:
        cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB, dst=out)
        return 0
    alpha = bgra[..., 3]
    np.add(bgra[..., 2::-1], (255 - alpha)[..., None], out=out)
    return int(np.count_nonzero(alpha == 0))


def usable_levels(sizes: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[Level, ...], tuple[Note, ...]]:
    """Keep the levels that show the whole of level 0, finest first.

    Args:
        sizes: (width, height) of each level of the file, px; the largest is level 0.

    Returns:
        Numbers of the kept levels in the file, the levels, and a note `E_LEVEL` for those left out: their width and
        height shrink by factors more than 2 % (and more than the rounding to whole px) apart.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1])
    width0, height0 = sizes[order[0]]
    kept, levels, notes = [], [], []
    for i in order:
        width, height = sizes[i]
        ratio_x, ratio_y = width0 / max(width, 1), height0 / max(height, 1)
        # a side of 31 px may have been 30.0 or 32.0 before it was rounded
        slack = _ASPECT_TOLERANCE + 1.0 / max(min(width, height), 1)
        if min(width, height) < 1 or abs(ratio_x / ratio_y - 1.0) > slack:
            message = f"level {i} of {width} x {height} px is left out: it does not show all of {width0} x {height0} px"
            notes.append(Note("E_LEVEL", message))
            continue
        kept.append(i)
        levels.append(Level(width, height, (ratio_x + ratio_y) / 2.0))
    return tuple(kept), tuple(levels), tuple(notes)


def touches(box: Box0, x0: float, y0: float, width0: float, height0: float) -> bool:
    """Tell whether a rectangle, all in level-0 px, has an area in common with a box."""
    return x0 < box.x0 + box.width0 and box.x0 < x0 + width0 and y0 < box.y0 + box.height0 and box.y0 < y0 + height0
