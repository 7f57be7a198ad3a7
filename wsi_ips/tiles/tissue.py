"""Tissue told from glass on a low-resolution view.

Stain gives colour, glass does not: the threshold lies on chroma, relative to the glass's own tint. Otsu's method sets
it between two guards, because it fails where one class is rare: a floor keeps the noise of bare glass out, a ceiling
keeps pale tissue beside dark tissue, and a slide with one per cent of tissue, in. One pass over the view; what is kept
of it is one byte a px for the score and one for ink. No label and no annotation is known here.

Frames: level-0 px (suffix `0`), mask px = view px (suffix `_px`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from wsi_ips.config import TissueSettings
from wsi_ips.errors import Note, NoTissueError, TileReadError
from wsi_ips.results import TissueOutline
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.colour import judge_colours
from wsi_ips.tiles.coverage import covered_share
from wsi_ips.tiles.morphology import drop_specks, fill_holes, grow_ink
from wsi_ips.tiles.view import Damage, View, plan_view, read_view

__all__ = ["TissueMask", "find_tissue"]

# chroma above the glass's own, 0 to 255
_FLOOR = 7
_CEILING = 9
_INK_REACH_UM = 50.0
_MIN_INK_UM2 = 1000.0
_BRIDGED_PX = 5
_OUTLINE_PX = 4_000_000
_BAND_ROWS = 64


@dataclass(frozen=True)
class TissueMask:
    """Where the tissue lies."""

    mask: np.ndarray  # (h, w) bool, True on tissue
    x0: int  # level-0 px of the mask's top-left corner
    y0: int
    downsample_x: float  # level-0 px per mask px
    downsample_y: float
    tissue_mm2: float
    notes: tuple[Note, ...] = ()

    def fraction(self, coords: np.ndarray, extent0: tuple[float, float]) -> np.ndarray:
        """Share of each tile that is tissue, by exact area, parts of mask px included.

        Args:
            coords: (N, 2) level-0 px of top-left corners.
            extent0: width and height of a tile, level-0 px; what lies beyond the mask is no tissue.

        Returns:
            (N,) float32 in [0, 1].
        """
        scale = np.array([self.downsample_x, self.downsample_y])
        corners = (np.asarray(coords, dtype=np.float64) - (self.x0, self.y0)) / scale
        return covered_share(self.mask, corners, (extent0[0] / scale[0], extent0[1] / scale[1]))

    def outline(self, max_px: int = _OUTLINE_PX) -> TissueOutline:
        """Make the mask small enough to travel: reduced by a whole factor, a px is tissue when half of it is."""
        height, width = self.mask.shape
        factor = max(1, int(np.ceil(np.sqrt(height * width / max_px))))
        if factor == 1:
            return TissueOutline(self.mask, self.x0, self.y0, self.downsample_x, self.downsample_y)
        h, w = -(-height // factor), -(-width // factor)
        small = np.zeros((h, w), bool)
        for row in range(h):
            band = np.zeros((factor, w * factor), np.uint8)
            rows = self.mask[row * factor : (row + 1) * factor]
            band[: len(rows), :width] = rows
            small[row] = 2 * band.reshape(factor, w, factor).sum(axis=(0, 2)) >= factor * factor
        return TissueOutline(small, self.x0, self.y0, self.downsample_x * factor, self.downsample_y * factor)


def find_tissue(slide: Slide, settings: TissueSettings) -> TissueMask:
    """Separate tissue from glass on a view of about `settings.view_mpp` µm per px.

    Chroma above glass is thresholded, ink of pens is taken out, small holes are filled, specks dropped. Pixels that the
    file does not hold are white and so no tissue; where no level can be read all is tissue. Tissue throughout, and unread, is what the method `whole` calls so,
    and a slide that names its own tiles.

    Args:
        slide: open; the coarsest level at least as fine as the view is read, once.
        settings: method, resolution, and areas in µm.

    Raises:
        NoTissueError: `E_NO_TISSUE`, only glass, ink or dirt.
        TileReadError: nothing of the view can be read (`E_TILE`).

    Source: Otsu, IEEE Trans. SMC 9(1), 1979.
    """
    view = plan_view(slide, settings.view_mpp)
    if settings.method == "whole" or slide.tile_corners is not None:
        return _as_mask(slide, view, np.ones((view.height_px, view.width_px), np.uint8), ())
    damage = Damage()
    score, flags, threshold = _score_view(slide, view, damage)
    mask = cv2.medianBlur(score, 5)
    del score  # maps of the whole view are few, and go as soon as they can
    cv2.threshold(mask, threshold, 1, cv2.THRESH_BINARY, dst=mask)
    # septa of pale tissue, alveoli for instance, hold together
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((_BRIDGED_PX, _BRIDGED_PX), np.uint8))
    px_um2 = view.downsample_x * slide.mpp.x * view.downsample_y * slide.mpp.y
    reach_px = max(1, round(_INK_REACH_UM / px_um2**0.5))
    ink = grow_ink(flags, _MIN_INK_UM2 / px_um2, reach_px) if settings.remove_pen else np.zeros_like(flags)
    del flags
    notes = _ink_notes(slide, cv2.countNonZero(mask & ink), cv2.countNonZero(mask))
    mask[ink > 0] = 0
    fill_holes(mask, settings.max_hole_um2 / px_um2)
    mask[ink > 0] = 0  # ink is not a hole
    drop_specks(mask, settings.min_region_um2 / px_um2)
    notes += _damage_notes(slide, view, damage, damage.paint(mask, 1))
    if not mask.any():
        raise NoTissueError(
            "E_NO_TISSUE",
            f"{slide.name}: nothing stained on a view of {view.width_px} x {view.height_px} px "
            f"(chroma above {threshold}, regions above {settings.min_region_um2:g} µm², without ink)",
        )
    return _as_mask(slide, view, mask, notes)


def _score_view(slide: Slide, view: View, damage: Damage) -> tuple[np.ndarray, np.ndarray, int]:
    """Read the view once: (h, w) uint8 score, (h, w) uint8 ink flags, and the score above which a px is stained."""
    score = np.empty((view.height_px, view.width_px), np.uint8)
    flags = np.empty_like(score)
    counts, glass = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for rows, columns, pixels in _bands(read_view(slide, view, damage=damage)):
        found = judge_colours(pixels)
        score[rows, columns], flags[rows, columns] = found.score, found.ink
        counts += np.bincount(found.score[~found.is_fill], minlength=256)
        glass += np.bincount(found.glass, minlength=256)
    tint, noise = _glass_tint(glass, int(counts.sum()))
    floor = tint + max(_FLOOR, round(3.0 * noise))
    return score, flags, min(max(_otsu(counts), floor), max(tint + _CEILING, floor))


def _bands(blocks: Iterator[tuple[slice, slice, np.ndarray]]) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Cut blocks into bands of rows that fit a processor's cache."""
    for rows, columns, pixels in blocks:
        for first in range(0, len(pixels), _BAND_ROWS):
            band = pixels[first : first + _BAND_ROWS]
            yield slice(rows.start + first, rows.start + first + len(band)), columns, band


def _glass_tint(glass: np.ndarray, n_px: int) -> tuple[int, float]:
    """Chroma of the glass itself and its standard deviation, from the histogram (256,) of bright px.

    Zero where bright px are few or of no one colour.
    """
    total = int(glass.sum())
    if total < 0.005 * n_px or total == 0:
        return 0, 0.0
    mode = int(np.argmax(np.convolve(glass, [1, 1, 1], mode="same")))
    reach = max(4, mode // 2)
    values = np.arange(max(0, mode - reach), mode + reach + 1)
    weights = glass[values]
    if weights.sum() < 0.5 * total or mode > 30:
        return 0, 0.0
    return mode, float(np.sqrt(np.average((values - mode) ** 2, weights=weights)))


def _otsu(counts: np.ndarray) -> int:
    """Find the cut of a histogram (256,) that parts it into the two most separate classes: values above are the upper.

    Source: Otsu, IEEE Trans. SMC 9(1), 1979, eq. 18.
    """
    values = np.arange(len(counts), dtype=np.float64)
    below = np.cumsum(counts, dtype=np.float64)
    above = below[-1] - below
    sums = np.cumsum(counts * values)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)))


def _ink_notes(slide: Slide, ink_px: int, stained_px: int) -> tuple[Note, ...]:
    """Warn where ink is most of what is stained: it may be a blue or green stain."""
    if 2 * ink_px <= stained_px or not ink_px:
        return ()
    share = 100.0 * ink_px / stained_px
    text = f"{share:.0f} % of the stained area has the colour of marker ink and was left out"
    return (Note("E_PEN", f"{slide.name}: {text}; if it is a stain (trichrome), set tissue.remove_pen to false"),)


def _damage_notes(slide: Slide, view: View, damage: Damage, n_unknown: int) -> tuple[Note, ...]:
    """Warn where the view was put together from several levels, and where none could be read.

    What is unknown counts as tissue, so that its tiles are tried, and those that fail are counted.

    Raises:
        TileReadError: nothing at all can be read (`E_TILE`).
    """
    if damage.first is None:
        return ()
    if n_unknown == view.width_px * view.height_px:
        raise TileReadError("E_TILE", f"{slide.name}: nothing of it can be read on any level; {damage.first.message}")
    levels = ", ".join(map(str, sorted(damage.levels)))
    text = f"{slide.name}: level {levels} cannot be read everywhere, so the tissue was found on finer levels there"
    if n_unknown:
        share = 100.0 * n_unknown / (view.width_px * view.height_px)
        text = f"{slide.name}: {share:.2g} % of the scan cannot be read on any level and counts as tissue, so that its tiles are tried"
    return (Note("E_LEVEL", text),)


def _as_mask(slide: Slide, view: View, mask: np.ndarray, notes: tuple[Note, ...]) -> TissueMask:
    mm2 = cv2.countNonZero(mask) * view.downsample_x * slide.mpp.x * view.downsample_y * slide.mpp.y / 1e6
    x0, y0, _, _ = slide.bounds
    return TissueMask(mask.view(bool), x0, y0, view.downsample_x, view.downsample_y, mm2, notes)
