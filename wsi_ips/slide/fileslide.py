"""A slide in a file: the `Slide` protocol over any backend.

What is common to all readers stands here once: which levels are used, the scanned bounds, white ground, missing px,
colour, handles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wsi_ips.errors import Note
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.backends import Backend, Description, Handle
from wsi_ips.slide.handles import HandlePool
from wsi_ips.slide.protocol import Level, Region
from wsi_ips.slide.regions import clip_region, composite_on_white, place_on_white, usable_levels

__all__ = ["FileSlide"]


class FileSlide:
    """The `Slide` protocol over a backend.

    Args:
        name: file name, for messages.
        backend: opens handles.
        description: what the first handle said.
        mpp: µm per level-0 px.
        properties: technical properties, already chosen.
        notes: warnings found before.
        colour: maps (h, w, 3) uint8 device RGB to sRGB, or None.
    """

    tile_corners: np.ndarray | None = None
    path: str | None = None  # set by who opened it

    def __init__(
        self, name: str, backend: Backend, description: Description, *, mpp: Mpp, properties: Mapping[str, str],
        notes: tuple[Note, ...], colour: Callable[[np.ndarray], np.ndarray] | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.reader = description.reader
        self.mpp = mpp
        self.properties = dict(properties)
        self._numbers, self.levels, level_notes = usable_levels(description.level_sizes)
        self.notes = notes + level_notes
        self.bounds = _clip_bounds(description.bounds, self.levels[0])
        self._colour = colour
        self._pool: HandlePool[Handle] = HandlePool(name, backend.open)

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle of a level; see `Slide.read_region`."""
        grid = self.levels[level]
        scan = clip_region(self.bounds, grid.downsample, x0, y0, width_px, height_px)
        # a level's sides are rounded to whole px, so its edge can lie a px before the scan's
        stored = Box0(0, 0, round(grid.width * grid.downsample), round(grid.height * grid.downsample))
        edge = clip_region(stored, grid.downsample, scan.x0, scan.y0, scan.width_px, scan.height_px)
        clip = edge._replace(left_px=scan.left_px + edge.left_px, top_px=scan.top_px + edge.top_px)
        if clip.width_px < 1 or clip.height_px < 1:
            return Region(np.full((height_px, width_px, 3), 255, np.uint8), 0)
        with self._pool.borrow() as handle:
            rgba = handle.fetch(clip.x0, clip.y0, self._numbers[level], clip.width_px, clip.height_px)
        if self._colour is not None:
            rgba = np.dstack([self._colour(rgba[..., :3]), rgba[..., 3]])
        region = composite_on_white(rgba)
        return Region(place_on_white(region.pixels, clip, width_px, height_px), region.n_missing)

    def close(self) -> None:
        """Close all handles."""
        self._pool.close()

    def __enter__(self) -> FileSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an open slide cannot be pickled; pass its path and open it where it is used")


def _clip_bounds(bounds: Box0 | None, level0: Level) -> Box0:
    whole = Box0(0, 0, level0.width, level0.height)
    if bounds is None:
        return whole
    left, top = max(0, bounds.x0), max(0, bounds.y0)
    right = min(level0.width, bounds.x0 + bounds.width0)
    bottom = min(level0.height, bounds.y0 + bounds.height0)
    return Box0(left, top, right - left, bottom - top) if right > left and bottom > top else whole
