"""A slide that lives in memory: for tests, for made data and for images that never were a slide file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsi_ips.errors import ConfigError, Note, TileReadError
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.protocol import Level, Region
from wsi_ips.slide.regions import clip_region, place_on_white, touches

__all__ = ["ArraySlide"]


class ArraySlide:
    """The `Slide` protocol over arrays.

    Args:
        array_or_levels: (H, W, C) uint8 level 0, or a list of levels, finest first. C is any number of channels.
        mpp: µm per level-0 px.
        name: for messages.
        bounds: the scanned rectangle, level-0 px; the whole of level 0 by default.
        tile_corners: (n, 2) level-0 px of explicit tiles, or None.
        missing: (H, W) bool, True where the file holds no pixels (shown white, counted).
        fail_at: level-0 rectangles whose reading raises `TileReadError`, to try what happens then; other faults: `FaultySlide`.

    Levels are read to whole px: a corner between two px of a level goes to the nearer one.
    """

    reader = "array"
    is_instant = True  # nothing to decode, so no threads are started for it
    path: str | None = None

    def __init__(
        self,
        array_or_levels: np.ndarray | Sequence[np.ndarray],
        *,
        mpp: float = 0.5,
        name: str = "array",
        bounds: Box0 | None = None,
        tile_corners: np.ndarray | None = None,
        missing: np.ndarray | None = None,
        fail_at: Sequence[Box0] = (),
    ) -> None:
        arrays = [array_or_levels] if isinstance(array_or_levels, np.ndarray) else list(array_or_levels)
        for array in arrays:
            if array.ndim != 3 or array.dtype != np.uint8:
                found = f"{array.shape} {array.dtype}"
                raise ConfigError(f"{name}: a level is a (height, width, channels) uint8 array, not {found}")
        self._arrays = arrays
        height, width = arrays[0].shape[:2]
        if missing is not None and missing.shape != (height, width):
            raise ConfigError(f"{name}: missing has shape {missing.shape}, level 0 has {(height, width)}")
        self._missing = missing
        self._fail_at = tuple(fail_at)
        self._closed = False
        self.name = name
        self.n_channels = int(arrays[0].shape[2])
        self.levels = tuple(
            Level(a.shape[1], a.shape[0], (width / a.shape[1] + height / a.shape[0]) / 2.0) for a in arrays
        )
        self.mpp = Mpp(mpp, mpp, "array")
        self.bounds = bounds or Box0(0, 0, width, height)
        self.tile_corners = None if tile_corners is None else np.asarray(tile_corners, dtype=np.int64)
        self.properties: dict[str, str] = {"vendor": "array", "width": str(width), "height": str(height)}
        self.notes: tuple[Note, ...] = ()

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle of a level, white outside the bounds; see `Slide.read_region`."""
        if self._closed:
            raise ConfigError(f"{self.name}: the slide is closed")
        downsample = self.levels[level].downsample
        for box in self._fail_at:
            if touches(box, x0, y0, width_px * downsample, height_px * downsample):
                raise TileReadError("E_TILE", f"{self.name}: no pixels at level-0 px ({x0}, {y0}), level {level}")
        clip = clip_region(self.bounds, downsample, x0, y0, width_px, height_px)
        array = self._arrays[level]
        rows, row_inside = _indices(y0, clip.top_px, clip.height_px, downsample, array.shape[0])
        columns, column_inside = _indices(x0, clip.left_px, clip.width_px, downsample, array.shape[1])
        pixels = array[np.ix_(rows, columns)]
        pixels[~(row_inside[:, None] & column_inside[None, :])] = 255
        n_missing = 0
        if self._missing is not None and pixels.size:
            gone = self._missing[np.ix_(_centres(rows, downsample, self._missing.shape[0]),
                                        _centres(columns, downsample, self._missing.shape[1]))]  # fmt: skip
            gone &= row_inside[:, None] & column_inside[None, :]
            pixels[gone] = 255
            n_missing = int(np.count_nonzero(gone))
        return Region(place_on_white(pixels, clip, width_px, height_px), n_missing)

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Nothing is decoded, so nothing is shrunk: (1,)."""
        return (1,)

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle into `out`; see `TileSlide.read_into`."""
        if shrink != 1:
            raise ConfigError(f"{self.name}: is not shrunk (asked for {shrink})")
        bounds, (height_px, width_px) = self.bounds, out.shape[:2]
        is_inside = (bounds.x0 <= x0 and bounds.y0 <= y0 and x0 + width_px <= bounds.x0 + bounds.width0
                     and y0 + height_px <= bounds.y0 + bounds.height0)  # fmt: skip
        if level == 0 and is_inside and self._missing is None and not self._fail_at and not self._closed:
            out[...] = self._arrays[0][y0 : y0 + height_px, x0 : x0 + width_px]  # small tiles: ten times faster
            return 0
        region = self.read_region(x0, y0, level, width_px, height_px)
        out[...] = region.pixels
        return region.n_missing

    def close(self) -> None:
        """Refuse further reads."""
        self._closed = True

    def __enter__(self) -> ArraySlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("an open slide cannot be pickled; pass its path and open it where it is used")


def _indices(start0: int, offset_px: int, n_px: int, downsample: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole px of the level (clipped to it) and whether each lies inside."""
    wanted = int(np.floor(start0 / downsample + 0.5)) + offset_px + np.arange(n_px)
    return np.clip(wanted, 0, size - 1), (wanted >= 0) & (wanted < size)


def _centres(indices: np.ndarray, downsample: float, size0: int) -> np.ndarray:
    return np.minimum(((indices + 0.5) * downsample).astype(np.int64), size0 - 1)
