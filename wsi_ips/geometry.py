"""Arithmetic between the frames of a slide; no files, no pixels.

Frames: level-0 px (suffix `0`), px of a stored level, tile px (the encoder's input), micrometres.
A tile is placed once, in level-0 px; every other place follows from it, so two rooms cannot disagree by a rounding.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Box0", "Mpp", "level0_to_level_px", "level_for_mpp", "shrink_for", "tile_px_to_level0"]


class Mpp(NamedTuple):
    """Micrometres per level-0 px, and who says so."""

    x: float
    y: float
    source: str  # "manifest", "vendor", "ome", "tiff", "nominal (objective power)", "array"


class Box0(NamedTuple):
    """A rectangle in level-0 px: what was scanned, or where a tile lies."""

    x0: int
    y0: int
    width0: int
    height0: int


def tile_px_to_level0(size_px: int, tile_mpp: float, slide_mpp: float) -> float:
    """Convert a length in tile px to level-0 px (exact, not rounded).

    >>> tile_px_to_level0(256, 0.5, 0.25)
    512.0
    """
    return size_px * tile_mpp / slide_mpp


def level0_to_level_px(length0: float, downsample: float) -> int:
    """Convert a length in level-0 px to whole px of a level, at least one.

    >>> level0_to_level_px(1021.0, 4.0)
    255
    """
    return max(1, round(length0 / downsample))


def level_for_mpp(level0_mpp: float, downsamples: tuple[float, ...], wanted_mpp: float) -> int:
    """Find the coarsest level that is at least as fine as wanted; level 0 when none is.

    Args:
        level0_mpp: µm per level-0 px.
        downsamples: level-0 px per px of each level; 1.0 first.
        wanted_mpp: µm per px.

    One per cent of slack: a level of downsample 4.0016 serves "four times coarser".

    >>> level_for_mpp(0.25, (1.0, 4.0016, 16.0), 1.0)
    1
    >>> level_for_mpp(0.25, (1.0, 4.0, 16.0), 0.9)
    0
    """
    fine = [i for i, d in enumerate(downsamples) if level0_mpp * d <= wanted_mpp * 1.01]
    return max(fine, key=lambda i: downsamples[i], default=0)


def shrink_for(ratio: float, shrinks: tuple[int, ...]) -> int:
    """Choose the largest factor a decoder offers that keeps the px at least as fine as wanted.

    Args:
        ratio: px of the level per px wanted.
        shrinks: what is offered; 1 among them.

    One per cent of slack, as in `level_for_mpp`: 0.2521 µm/px, halved, serves 0.5.

    >>> shrink_for(0.5 / 0.2521, (1, 2, 4)), shrink_for(3.9, (1, 2, 4))
    (2, 2)
    """
    return max((s for s in shrinks if s <= ratio * 1.01), default=1)
