"""A slide in a file: the `Slide` protocol over any backend.

What is common to all readers stands here once: which levels are used, the scanned bounds, white ground, missing px,
colour, handles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from wsi_ips.errors import Note, printable
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.backends import Backend, Description, Handle
from wsi_ips.slide.directtiles import DirectTiles
from wsi_ips.slide.handles import HandlePool
from wsi_ips.slide.protocol import Level, Region
from wsi_ips.slide.regions import clip_region, usable_levels
from wsi_ips.slide.stamps import Stamps
from wsi_ips.stages import StageClock

__all__ = ["FileSlide"]

_WORTH_PX = 64 * 64  # shrunk px inside the scan from which on a rectangle that reaches out is read in parts


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
        direct: reads instead of the backend, where the file is of a proven kind; closed with the slide.
    """

    tile_corners: np.ndarray | None = None
    path: str | None = None  # set by who opened it
    stamps: Stamps = ()  # so is this

    def __init__(
        self, name: str, backend: Backend, description: Description, *, mpp: Mpp, properties: Mapping[str, str],
        notes: tuple[Note, ...], colour: Callable[[np.ndarray], np.ndarray] | None, direct: DirectTiles | None = None,
    ) -> None:  # fmt: skip
        self.name = printable(name)
        self.reader = f"direct ({direct.decoder}; {description.reader})" if direct else description.reader
        self.mpp = mpp
        self.properties = dict(properties)
        self._numbers, self.levels, level_notes = usable_levels(description.level_sizes)
        self.notes = notes + level_notes
        self.bounds = _clip_bounds(description.bounds, self.levels[0])
        self._colour, self._direct = colour, direct
        self._pool: HandlePool[Handle] = HandlePool(name, backend.open)
        # what lies left of and above this, in level-0 px, is inside scan and level whole
        self._far0 = [
            (min(self.bounds.x0 + self.bounds.width0, one.width * one.downsample),
             min(self.bounds.y0 + self.bounds.height0, one.height * one.downsample))
            for one in self.levels
        ]  # fmt: skip
        self._clock: StageClock | None = None

    @property
    def clock(self) -> StageClock | None:
        """Takes the seconds of reading bytes, decoding and copying; None counts nothing."""
        return self._clock

    @clock.setter
    def clock(self, clock: StageClock | None) -> None:
        self._clock = clock
        if self._direct is not None:
            self._direct.clock = clock

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle of a level; see `Slide.read_region`."""
        pixels = np.empty((height_px, width_px, 3), np.uint8)
        n_missing = self.read_into(pixels, x0, y0, level)
        return Region(pixels, n_missing)

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Factors by which the decoder shrinks; see `TileSlide.shrinks`."""
        return (1,) if self._direct is None else self._direct.shrinks(self._numbers[level])

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle of a level into `out`; see `TileSlide.read_into`.

        Where the corner does not fall on a whole px of the shrunk level, or the rectangle reaches out of the scan, whole
        px are read and averaged.
        """
        if not out.flags.c_contiguous:
            whole = np.empty(out.shape, np.uint8)
            n_missing = self.read_into(whole, x0, y0, level, shrink)
            out[...] = whole
            return n_missing
        downsample, (far_x0, far_y0) = self.levels[level].downsample, self._far0[level]
        height_px, width_px = out.shape[0] * shrink, out.shape[1] * shrink
        is_inside = x0 >= self.bounds.x0 and y0 >= self.bounds.y0
        is_inside &= x0 + width_px * downsample <= far_x0 and y0 + height_px * downsample <= far_y0
        if is_inside:
            if shrink == 1:
                return self._read(out, x0, y0, level)
            left, top = _nearest(x0, downsample), _nearest(y0, downsample)
            if self._direct is not None and left % shrink == 0 and top % shrink == 0:
                return self._read(out, x0, y0, level, shrink)
        if shrink == 1:
            return self._read_clipped(out, x0, y0, level)
        return self._read_averaged(out, x0, y0, level, shrink)

    def has_streams(self, coords: np.ndarray, level: int, side_px: int, max_bytes: int) -> bool:
        """Tell whether squares are whole file tiles in JPEG, which `tile_stream` gives undecoded.

        Args:
            coords: (n, 2) level-0 px of top-left corners.
            level: index into `levels`.
            side_px: of the squares, px of that level.
            max_bytes: that the longest stream of the level may have.
        """
        stored = self._direct.stored(self._numbers[level]) if self._direct is not None else None
        if stored is None or self._colour is not None or stored[:2] != (side_px, side_px) or stored[2] > max_bytes:
            return False
        downsample = self.levels[level].downsample
        corners = np.floor(coords / downsample + 0.5)
        is_inside = (coords >= self.bounds[:2]) & (coords + side_px * downsample <= self._far0[level])
        return bool(is_inside.all() and (corners % side_px == 0).all())

    def tile_stream(self, x0: int, y0: int, level: int) -> bytes:
        """Give the JPEG stream of a tile that `has_streams` vouches for; empty where the file holds none.

        Raises:
            TileReadError: its bytes are cut short (`E_TILE`).
        """
        assert self._direct is not None
        self._pool.check()
        downsample = self.levels[level].downsample
        return self._direct.stream(_nearest(x0, downsample), _nearest(y0, downsample), self._numbers[level])

    def _read_averaged(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int) -> int:
        """Read whole px and average them; what lies inside the scan and is large goes the fast way."""
        step0 = self.levels[level].downsample * shrink
        (far_x0, far_y0), (height, width) = self._far0[level], out.shape[:2]
        rows, columns = (min(n, max(0, int((far - at) / step0))) for n, far, at in ((height, far_y0, y0), (width, far_x0, x0)))
        starts_inside = x0 >= self.bounds.x0 and y0 >= self.bounds.y0
        if starts_inside and (rows, columns) != (height, width) and rows * columns > _WORTH_PX:
            n_missing = 0
            below, right = (slice(rows, height), slice(0, width)), (slice(0, rows), slice(columns, width))
            for part in ((slice(0, rows), slice(0, columns)), right, below):
                if (pixels := np.empty(out[part].shape, np.uint8)).size:
                    corner = x0 + round(part[1].start * step0), y0 + round(part[0].start * step0)
                    n_missing += self.read_into(pixels, *corner, level, shrink)
                    out[part] = pixels
            return n_missing
        whole = np.empty((height * shrink, width * shrink, 3), np.uint8)
        n_missing = self._read_clipped(whole, x0, y0, level)
        cv2.resize(whole, (width, height), dst=out, interpolation=cv2.INTER_AREA)
        return n_missing

    def _read_clipped(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        grid, (height_px, width_px) = self.levels[level], out.shape[:2]
        scan = clip_region(self.bounds, grid.downsample, x0, y0, width_px, height_px)
        # a level's sides are rounded to whole px, so its edge can lie a px before the scan's
        stored = Box0(0, 0, round(grid.width * grid.downsample), round(grid.height * grid.downsample))
        edge = clip_region(stored, grid.downsample, scan.x0, scan.y0, scan.width_px, scan.height_px)
        clip = edge._replace(left_px=scan.left_px + edge.left_px, top_px=scan.top_px + edge.top_px)
        if clip.width_px == width_px and clip.height_px == height_px:
            return self._read(out, clip.x0, clip.y0, level)
        out[...] = 255
        if clip.width_px < 1 or clip.height_px < 1:
            return 0
        part = np.empty((clip.height_px, clip.width_px, 3), np.uint8)
        n_missing = self._read(part, clip.x0, clip.y0, level)
        out[clip.top_px : clip.top_px + clip.height_px, clip.left_px : clip.left_px + clip.width_px] = part
        return n_missing

    def _read(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read what lies inside the level."""
        if self._direct is not None:
            self._pool.check()
            grid, size_px = self.levels[level], (out.shape[1] * shrink, out.shape[0] * shrink)
            # rounding to whole px must not lead beyond the last one
            left = min(_nearest(x0, grid.downsample), grid.width - size_px[0])
            top = min(_nearest(y0, grid.downsample), grid.height - size_px[1])
            n_missing = self._direct.read(out, left, top, self._numbers[level], shrink)
        else:
            started = time.perf_counter()
            with self._pool.borrow() as handle:
                n_missing = handle.read(out, x0, y0, self._numbers[level])
            if self._clock is not None:
                self._clock.add("decode", time.perf_counter() - started)
        if self._colour is not None:
            out[...] = self._colour(out)
        return n_missing

    def forget_tiles(self) -> None:
        """Give back the memory of decoded file tiles."""
        if self._direct is not None:
            self._direct.forget()

    def close(self) -> None:
        """Close all handles."""
        self._pool.close()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> FileSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an open slide cannot be pickled; pass its path and open it where it is used")


def _nearest(at0: int, downsample: float) -> int:
    """Px of a level that is nearest to a level-0 px."""
    return at0 if downsample == 1.0 else math.floor(at0 / downsample + 0.5)


def _clip_bounds(bounds: Box0 | None, level0: Level) -> Box0:
    whole = Box0(0, 0, level0.width, level0.height)
    if bounds is None:
        return whole
    left, top = max(0, bounds.x0), max(0, bounds.y0)
    right = min(level0.width, bounds.x0 + bounds.width0)
    bottom = min(level0.height, bounds.y0 + bounds.height0)
    return Box0(left, top, right - left, bottom - top) if right > left and bottom > top else whole
