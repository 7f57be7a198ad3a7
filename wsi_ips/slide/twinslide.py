"""A slide that is computed: the geometry of another one, known tissue and squares, and no stored pixel.

The picture is a function of the plane: white glass, pink discs of tissue, dark squares on top. A px of any level is the
exact average of that function over the area it stands for, so levels agree with each other to the rounding of a px,
whatever their downsample, and a slide of 200,000 x 100,000 px costs nothing until it is read. What a chain of tools
makes of a square can then be measured at every scale.

Frames: level-0 px (suffix `0`), px of a level (suffix `_px`). A level's px i covers [i, i + 1) x downsample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wsi_ips.errors import ConfigError, Note
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.protocol import Level, Region, Slide
from wsi_ips.slide.regions import clip_region, place_on_white

__all__ = ["SQUARE_RGB", "TISSUE_RGB", "Disc0", "TwinSlide", "discs_around", "twin_of"]

TISSUE_RGB = (226, 168, 200)
SQUARE_RGB = (44, 24, 128)  # red above green: blue as haematoxylin is, and marker ink is not
_GLASS = 255
_BAND_PX = 1 << 18


class Disc0(NamedTuple):
    """A round piece of tissue, level-0 px; the corner of px (0, 0) is (0.0, 0.0)."""

    x0: float
    y0: float
    radius0: float


class TwinSlide:
    """The `Slide` protocol over a drawing of discs and squares.

    Args:
        levels: finest first; downsamples need not be whole.
        mpp: µm per level-0 px.
        squares: dark rectangles, which may not overlap each other.
        discs: tissue, apart from each other; by default one around every square, see `discs_around`.
        bounds: the scanned rectangle; the whole of level 0 by default. What is drawn beyond it is never seen.
        name: for messages.

    Raises:
        ConfigError: no levels, or shapes that overlap.
    """

    reader = "twin"
    path: str | None = None
    tile_corners: np.ndarray | None = None

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        mpp: Mpp,
        squares: Sequence[Box0] = (),
        discs: Sequence[Disc0] | None = None,
        bounds: Box0 | None = None,
        name: str = "twin",
    ) -> None:
        if not levels:
            raise ConfigError(f"{name}: a slide has at least one level")
        self.name = name
        self.levels = tuple(levels)
        self.mpp = mpp
        self.bounds = bounds or Box0(0, 0, levels[0].width, levels[0].height)
        self.squares = tuple(squares)
        self.discs = discs_around(squares) if discs is None else tuple(discs)
        _check_apart(name, self.squares, self.discs)
        self.properties = {"vendor": "twin", "width": str(levels[0].width), "height": str(levels[0].height)}
        self.notes: tuple[Note, ...] = ()
        self._closed = False

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Draw a rectangle of a level, white outside the bounds and never missing; see `Slide.read_region`.

        A corner between two px of the level goes to the nearer one.
        """
        if self._closed:
            raise ConfigError(f"{self.name}: the slide is closed")
        grid = self.levels[level]
        clip = clip_region(self.bounds, grid.downsample, x0, y0, width_px, height_px)
        left = math.floor(x0 / grid.downsample + 0.5) + clip.left_px
        top = math.floor(y0 / grid.downsample + 0.5) + clip.top_px
        pixels = np.full((clip.height_px, clip.width_px, 3), _GLASS, np.uint8)
        # the level ends where its last px does
        rows = slice(max(0, -top), min(clip.height_px, grid.height - top))
        columns = slice(max(0, -left), min(clip.width_px, grid.width - left))
        if rows.start < rows.stop and columns.start < columns.stop:
            step = max(1, _BAND_PX // (columns.stop - columns.start))
            edges_x = (left + np.arange(columns.start, columns.stop + 1)) * grid.downsample
            for row in range(rows.start, rows.stop, step):
                stop = min(row + step, rows.stop)
                edges_y = (top + np.arange(row, stop + 1)) * grid.downsample
                pixels[row:stop, columns] = self._draw(edges_x, edges_y)
        return Region(place_on_white(pixels, clip, width_px, height_px), 0)

    def close(self) -> None:
        """Refuse further reads."""
        self._closed = True

    def __enter__(self) -> TwinSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("an open slide cannot be pickled; draw it again where it is used")

    def _draw(self, edges_x: np.ndarray, edges_y: np.ndarray) -> np.ndarray:
        """Average the drawing over px between edges (w + 1,) and (h + 1,), level-0 px: (h, w, 3) uint8."""
        colours = np.full((len(edges_y) - 1, len(edges_x) - 1, 3), float(_GLASS), np.float32)
        area = (edges_x[1] - edges_x[0]) * (edges_y[1] - edges_y[0])
        stain = np.float32(_GLASS) - np.array(TISSUE_RGB, np.float32)
        for disc in self.discs:
            x, y, r = disc
            rows, columns = _touched(edges_y, y - r, y + r), _touched(edges_x, x - r, x + r)
            if rows.stop > rows.start and columns.stop > columns.start:
                near_y, near_x = edges_y[rows.start : rows.stop + 1], edges_x[columns.start : columns.stop + 1]
                seen = _disc_areas(disc, near_x, near_y)
                for s in self.squares:
                    if (
                        abs(s.x0 + s.width0 / 2 - x) < r + s.width0 / 2
                        and abs(s.y0 + s.height0 / 2 - y) < r + s.height0 / 2
                    ):
                        inner_x, inner_y = (
                            np.clip(near_x, s.x0, s.x0 + s.width0),
                            np.clip(near_y, s.y0, s.y0 + s.height0),
                        )
                        seen -= _disc_areas(disc, inner_x, inner_y)  # hidden under the square
                colours[rows, columns] -= (seen / area).astype(np.float32)[..., None] * stain
        stain = np.float32(_GLASS) - np.array(SQUARE_RGB, np.float32)
        for s in self.squares:
            rows = _touched(edges_y, s.y0, s.y0 + s.height0)
            columns = _touched(edges_x, s.x0, s.x0 + s.width0)
            if rows.stop > rows.start and columns.stop > columns.start:
                down = np.diff(np.clip(edges_y[rows.start : rows.stop + 1], s.y0, s.y0 + s.height0))
                across = np.diff(np.clip(edges_x[columns.start : columns.stop + 1], s.x0, s.x0 + s.width0))
                colours[rows, columns] -= (np.outer(down, across) / area).astype(np.float32)[..., None] * stain
        return np.floor(np.clip(colours, 0.0, 255.0) + 0.5).astype(np.uint8)


def twin_of(slide: Slide, squares: Sequence[Box0], discs: Sequence[Disc0] | None = None) -> TwinSlide:
    """Draw a twin with the levels, bounds and µm per px of an open slide; see `TwinSlide`."""
    return TwinSlide(
        slide.levels, mpp=slide.mpp, squares=squares, discs=discs, bounds=slide.bounds, name=f"twin of {slide.name}"
    )


def discs_around(squares: Sequence[Box0], reach: float = 2.5) -> tuple[Disc0, ...]:
    """Put a disc around every square, `reach` times its longer side in radius; discs that meet become a larger one."""
    discs = [
        Disc0(s.x0 + s.width0 / 2, s.y0 + s.height0 / 2, reach * max(s.width0, s.height0)) for s in squares
    ]  # fmt: skip
    done: list[Disc0] = []
    while discs:
        disc = discs.pop()
        other = next((d for d in done if _distance(d, disc) < d.radius0 + disc.radius0), None)
        if other is None:
            done.append(disc)
        else:
            done.remove(other)
            discs.append(_around_both(disc, other))
    return tuple(sorted(done))


def _distance(a: Disc0, b: Disc0) -> float:
    return math.hypot(a.x0 - b.x0, a.y0 - b.y0)


def _around_both(a: Disc0, b: Disc0) -> Disc0:
    """Find the smallest disc that holds two."""
    large, small = (a, b) if a.radius0 >= b.radius0 else (b, a)
    apart = _distance(a, b)
    if apart + small.radius0 <= large.radius0:
        return large
    radius0 = (apart + a.radius0 + b.radius0) / 2.0
    share = (radius0 - large.radius0) / apart
    return Disc0(large.x0 + (small.x0 - large.x0) * share, large.y0 + (small.y0 - large.y0) * share, radius0)


def _check_apart(name: str, squares: Sequence[Box0], discs: Sequence[Disc0]) -> None:
    for i, a in enumerate(squares):
        for b in squares[:i]:
            if (
                min(a.x0 + a.width0, b.x0 + b.width0) > max(a.x0, b.x0)
                and min(a.y0 + a.height0, b.y0 + b.height0) > max(a.y0, b.y0)
            ):  # fmt: skip
                raise ConfigError(f"{name}: squares {tuple(b)} and {tuple(a)} overlap")
    for i, disc in enumerate(discs):
        for other in discs[:i]:
            if _distance(disc, other) < (disc.radius0 + other.radius0) * (1 - 1e-9):
                raise ConfigError(f"{name}: discs {tuple(other)} and {tuple(disc)} overlap; give one that holds both")


def _touched(edges: np.ndarray, start0: float, stop0: float) -> slice:
    """Find the px that an interval touches."""
    first = int(np.searchsorted(edges, start0, side="right")) - 1
    last = int(np.searchsorted(edges, stop0, side="left"))
    return slice(max(0, first), min(len(edges) - 1, last))


def _disc_areas(disc: Disc0, edges_x: np.ndarray, edges_y: np.ndarray) -> np.ndarray:
    """Measure the area of a disc inside each px between edges (w + 1,) and (h + 1,): (h, w) float64, level-0 px²."""
    below = _area_below(edges_x - disc.x0, (edges_y - disc.y0)[:, None], disc.radius0)  # (h + 1, w + 1)
    return np.maximum(np.diff(np.diff(below, axis=0), axis=1), 0.0)


def _area_below(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Measure the area of a disc about (0, 0) left of x and above y, by the integral of its chords.

    Between -q and q, where the line at y cuts the disc, a chord runs from the rim to y; beside, it is whole (y > 0) or
    absent.
    """
    x, y = np.clip(x, -radius, radius), np.clip(y, -radius, radius)
    q = np.sqrt(radius * radius - y * y)
    middle = np.clip(x, -q, q)
    cut = y * (middle + q) + _half_chords(middle, radius) - _half_chords(-q, radius)
    beside = _half_chords(np.minimum(x, -q), radius) - _half_chords(np.array(-radius), radius)
    beside = beside + _half_chords(np.maximum(x, q), radius) - _half_chords(q, radius)
    return np.asarray(cut + np.where(y > 0, 2.0 * beside, 0.0))


def _half_chords(t: np.ndarray, radius: float) -> np.ndarray:
    """Integrate half the chord, sqrt(r² - t²), from 0 to t."""
    inside = np.maximum(radius * radius - t * t, 0.0)
    return np.asarray((t * np.sqrt(inside) + radius * radius * np.arcsin(np.clip(t / radius, -1.0, 1.0))) / 2.0)
