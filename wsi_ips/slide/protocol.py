"""What a slide is to the rest of the house, whatever it is read with."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from wsi_ips.errors import Note
from wsi_ips.geometry import Box0, Mpp

__all__ = ["Level", "Region", "Slide", "TileSlide"]


class Level(NamedTuple):
    """One stored resolution."""

    width: int
    height: int
    downsample: float  # level-0 px per px of this level


class Region(NamedTuple):
    """Pixels of a rectangle, on white."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB; (height, width, C) for an ArraySlide of C channels
    n_missing: int  # px inside the scan that the file does not hold (alpha 0), shown white


@runtime_checkable
class Slide(Protocol):
    """An open slide. Safe to use from several threads; refuses to be pickled; closed by `close` or `with`."""

    @property
    def name(self) -> str:
        """File name without folder, for messages."""

    @property
    def path(self) -> str | None:
        """Path or URI it was opened by, by which its content is known again; None for a slide in memory."""

    @property
    def reader(self) -> str:
        """Library and version that decodes, "openslide 4.0.1"."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Usable levels, finest first."""

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 px."""

    @property
    def bounds(self) -> Box0:
        """The scanned rectangle; nothing outside it is ever read."""

    @property
    def tile_corners(self) -> np.ndarray | None:
        """(n, 2) int64 level-0 px of explicit tiles, or None where the grid decides."""

    @property
    def properties(self) -> dict[str, str]:
        """Technical properties from an allow-list; never names, dates, barcodes, paths."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """Warnings found while opening."""

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle of a level.

        Args:
            x0, y0: top-left corner in level-0 px, as OpenSlide has it.
            level: index into `levels`.
            width_px, height_px: size in px of that level.

        Returns:
            Pixels on white. What lies outside `bounds` is white and does not count as missing.

        Raises:
            TileReadError: the file holds pixels there that cannot be decoded (`E_TILE`).
        """

    def close(self) -> None:
        """Close all handles; reading afterwards is an error."""

    def __enter__(self) -> Slide: ...

    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class TileSlide(Slide, Protocol):
    """A slide that reads straight into the place where the pixels are wanted, shrunk by the decoder where it can."""

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Factors by which the decoder of a level shrinks at no cost: (1,), or up to (1, 2, 4, 8)."""

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle of a level.

        Args:
            out: (h, w, 3) uint8, C-contiguous; becomes RGB on white. w x shrink and h x shrink px of the level are read.
            x0, y0: top-left corner in level-0 px.
            level: index into `levels`.
            shrink: px of the level along each side that become one; one of `shrinks(level)`.

        Returns:
            Px of the level inside the scan that the file does not hold, shown white.

        Raises:
            TileReadError: the file holds pixels there that cannot be decoded (`E_TILE`).
        """
