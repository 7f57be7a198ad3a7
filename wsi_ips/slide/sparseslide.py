"""A slide that is plain but for some pieces: images made on the fly, of which most is nothing.

Only the pieces are stored, so that an image of 25,000 x 25,000 px with a few thousand marks on it is some megabytes and
is made in no time. It has one level. What `ArraySlide` would hold as one array, px for px.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from wsi_ips.errors import ConfigError, Note
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.protocol import Level, Region

__all__ = ["SparseSlide"]

_CELL_PX = 128  # pieces are looked up by cells of this side

Piece = tuple[int, int, np.ndarray]  # x0, y0 of its top-left corner; (h, w, C) uint8


class SparseSlide:
    """The `Slide` protocol over pieces on a plain background.

    Args:
        size_px: width and height.
        pieces: (x0, y0, (h, w, C) uint8) each, wholly inside; a later one covers the earlier ones.
        mpp: µm per px.
        name: for messages.
        background: value of all channels where no piece lies.

    Raises:
        ConfigError: no piece, or one that is no such array, of other channels than the first, or not inside.
    """

    reader = "sparse"
    is_instant = True  # nothing to decode, so no threads are started for it
    path: str | None = None
    tile_corners: np.ndarray | None = None
    notes: tuple[Note, ...] = ()

    def __init__(
        self, size_px: tuple[int, int], pieces: Sequence[Piece], *, mpp: float = 1.0, name: str = "sparse", background: int = 0
    ) -> None:  # fmt: skip
        width, height = size_px
        if not pieces:
            raise ConfigError(f"{name}: has no piece; a plain image needs none of this, take an ArraySlide")
        self.name, self.background, self._closed = name, background, False
        self.n_channels = int(pieces[0][2].shape[-1])
        self.levels = (Level(width, height, 1.0),)
        self.mpp = Mpp(mpp, mpp, "array")
        self.bounds = Box0(0, 0, width, height)
        self.properties: dict[str, str] = {"vendor": "array", "width": str(width), "height": str(height)}
        self._pieces = list(pieces)
        self._cells: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, (x0, y0, pixels) in enumerate(pieces):
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self.n_channels:
                raise ConfigError(f"{name}: piece {number} is {pixels.shape} {pixels.dtype}, not (h, w, {self.n_channels}) uint8")
            h, w = pixels.shape[:2]
            if x0 < 0 or y0 < 0 or x0 + w > width or y0 + h > height:
                raise ConfigError(f"{name}: piece {number} of {w} x {h} px at ({x0}, {y0}) is not inside {width} x {height} px")
            for cell in _cells(x0, y0, w, h):
                self._cells[cell].append(number)

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle, white outside the bounds; see `Slide.read_region`."""
        out = np.empty((height_px, width_px, self.n_channels), np.uint8)
        return Region(out, self.read_into(out, x0, y0, level))

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Nothing is decoded, so nothing is shrunk: (1,)."""
        return (1,)

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle into `out`; see `TileSlide.read_into`."""
        if self._closed:
            raise ConfigError(f"{self.name}: the slide is closed")
        if level != 0 or shrink != 1:
            raise ConfigError(f"{self.name}: has one level, which is not shrunk (asked for level {level}, shrink {shrink})")
        height_px, width_px = out.shape[:2]
        out[...] = self.background
        for number in sorted({n for cell in _cells(x0, y0, width_px, height_px) for n in self._cells.get(cell, ())}):
            left, top, pixels = self._pieces[number]
            h, w = pixels.shape[:2]
            x1, x2 = max(left, x0), min(left + w, x0 + width_px)
            y1, y2 = max(top, y0), min(top + h, y0 + height_px)
            if x1 < x2 and y1 < y2:
                out[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
        width, height = self.levels[0][:2]
        if x0 < 0 or y0 < 0 or x0 + width_px > width or y0 + height_px > height:
            rows, columns = y0 + np.arange(height_px), x0 + np.arange(width_px)
            out[~(((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width)))] = 255
        return 0

    def close(self) -> None:
        """Refuse further reads."""
        self._closed = True

    def __enter__(self) -> SparseSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("an open slide cannot be pickled; make it again where it is used")


def _cells(x0: int, y0: int, width_px: int, height_px: int) -> list[tuple[int, int]]:
    across = range(x0 // _CELL_PX, (x0 + width_px - 1) // _CELL_PX + 1)
    return [(i, j) for j in range(y0 // _CELL_PX, (y0 + height_px - 1) // _CELL_PX + 1) for i in across]
