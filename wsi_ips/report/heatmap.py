"""Values per tile become rasters, and rasters become colours; the same for every slide and every output format.

Frames: level-0 px (suffix `0`) and px of a raster, whose px (0, 0) begins at the top-left corner of the slide's bounds
and whose px are squares of `downsample` level-0 px. Shapes: N tiles, (h, w) the raster.

A raster px takes the mean of the tiles that lie under it, each weighted by the area it covers. A px is drawn when tiles
cover at least half of it, when a tile's centre lies in it, or when it lies between neighbours whose sides are no whole px: so
no tile vanishes, however coarse the raster, no seam shows, and a tile's edge is drawn within half a px of its place
whenever tiles are larger than px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import matplotlib
import numpy as np
from scipy import sparse, stats

from wsi_ips.geometry import Box0

__all__ = [
    "Colouring",
    "Scale",
    "TileLayout",
    "attention_colouring",
    "coverage",
    "evidence_colouring",
    "next_round",
    "percentile_rank",
    "raster_of_tiles",
    "raster_size",
    "scale_values",
    "times_uniform",
]

Scale = Literal["uniform", "percentile"]
_STEPS = 2048  # of a scale, told apart by colour and opacity
_FEW_PLACES = 1 << 16  # that are filled, tile or not
_LEAST_COVERED = 0.5 - 1e-9  # half a px; the slack forgives the rounding of a sum


def raster_size(bounds: Box0, downsample: float) -> tuple[int, int]:
    """Height and width of the raster that covers the bounds, px.

    >>> raster_size(Box0(0, 0, 1001, 500), 10.0)
    (50, 101)
    """
    # the slack keeps 500 / (500 / 3) at 3
    return (
        max(1, math.ceil(bounds.height0 / downsample - 1e-6)),
        max(1, math.ceil(bounds.width0 / downsample - 1e-6)),
    )


def coverage(starts: np.ndarray, length: float, n_px: int) -> sparse.csr_array:
    """Measure how much of every px of a line each interval covers.

    Args:
        starts: (N,) where the intervals begin, px (any real number).
        length: their length, px.
        n_px: px of the line; px j is the interval [j, j + 1).

    Returns:
        (N, n_px) float64 with values in 0..1; what lies outside the line is left out.
    """
    starts = np.asarray(starts, dtype=np.float64)
    ends = starts + length
    first = np.floor(starts).astype(np.int64)
    # (N, span): every px an interval may touch
    px = first[:, None] + np.arange(math.ceil(length) + 1)
    share = np.minimum(ends[:, None], px + 1) - np.maximum(starts[:, None], px)
    keep = (share > 0) & (px >= 0) & (px < n_px)
    rows = np.broadcast_to(np.arange(len(starts))[:, None], px.shape)
    return sparse.csr_array((share[keep], (rows[keep], px[keep])), shape=(len(starts), n_px))


class TileLayout:
    """Where tiles lie on a raster: worked out once, for the values of any number of maps.

    Args:
        coords: (N, 2) top-left corners, level-0 px.
        extent0: width and height of a tile, level-0 px.
        bounds: the rectangle that is drawn; its corner is the corner of the raster.
        downsample: level-0 px per raster px.
    """

    def __init__(self, coords: np.ndarray, extent0: tuple[float, float], bounds: Box0, downsample: float) -> None:
        self.shape = raster_size(bounds, downsample)  # (h, w)
        # tiles share few columns and rows of places: a raster is down @ (values by place) @ across
        places = [np.unique(coords[:, axis], return_inverse=True) for axis in (0, 1)]
        starts = [(place - corner) / downsample for (place, _), corner in zip(places, bounds[:2], strict=True)]
        self._column, self._row = (number.ravel() for _, number in places)
        self._sizes = (len(starts[1]), len(starts[0]))
        self._down, self._across = _lines(starts, extent0, downsample, self.shape)
        self._area = self._spread(np.ones(len(coords)))
        self.drawn = self._area >= _LEAST_COVERED  # (h, w) bool, px that have a value
        if not _are_whole(extent0):
            # neighbours of a broken side may be up to a level-0 px apart; rounded up they always touch
            whole = (math.ceil(extent0[0]), math.ceil(extent0[1]))
            closed = self._spread(np.ones(len(coords)), _lines(starts, whole, downsample, self.shape))
            self.drawn = _without_seams(self.drawn, (self._area > 0) & (closed >= _LEAST_COVERED))
        held = np.zeros(self.shape, dtype=bool)
        x_px, y_px = (start + side / downsample / 2 for start, side in zip(starts, extent0, strict=True))
        _mark_centres(held, x_px[self._column], y_px[self._row])
        self.drawn |= held & (self._area > 0)

    def fill(self, values: np.ndarray) -> np.ndarray:
        """Lay values (N,) out: (h, w) float32, NaN where no tile is; where tiles overlap, their mean."""
        weighted = self._spread(np.asarray(values, dtype=np.float64))
        np.divide(weighted, self._area, out=weighted, where=self.drawn)
        return np.where(self.drawn, weighted, np.nan).astype(np.float32)

    def _spread(self, values: np.ndarray, lines: tuple[sparse.csr_array, sparse.csr_array] | None = None) -> np.ndarray:
        """Add up value x covered area in every px: (N,) -> (h, w) float64."""
        down, across = lines or (self._down, self._across)
        n_rows, n_columns = self._sizes
        if n_rows * n_columns > 8 * len(values) + _FEW_PLACES:  # scattered tiles, that share few places
            by_place = sparse.csr_array((values, (self._column, self._row)), shape=(n_columns, n_rows))
            return np.asarray((down @ (across @ by_place).T).toarray())
        table = np.bincount(self._column * n_rows + self._row, weights=values, minlength=n_rows * n_columns)
        return np.asarray(down @ (across @ table.reshape(n_columns, n_rows)).T)


def _lines(
    starts: list[np.ndarray], extent0: tuple[float, float], downsample: float, shape: tuple[int, int]
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Measure how far places reach into px, down (h, rows) and across (w, columns)."""
    down, across = (coverage(starts[axis], extent0[axis] / downsample, shape[1 - axis]).T.tocsr() for axis in (1, 0))
    return down, across


def raster_of_tiles(
    values: np.ndarray, coords: np.ndarray, extent0: tuple[float, float], bounds: Box0, downsample: float
) -> np.ndarray:
    """Lay the values of tiles (N,) out on a raster, once; see `TileLayout`.

    Returns:
        (h, w) float32 of `raster_size`, NaN where no tile is.
    """
    return TileLayout(coords, extent0, bounds, downsample).fill(values)


def _are_whole(extent0: tuple[float, float]) -> bool:
    return all(float(side).is_integer() for side in extent0)


def _without_seams(drawn: np.ndarray, may_be: np.ndarray) -> np.ndarray:
    """Close the gaps (h, w) between tiles that only their rounded sides fill; an edge towards glass stays put."""
    for _ in range(2):  # where gaps cross, their ends are closed first
        padded = np.pad(drawn, 1)
        across = padded[1:-1, :-2] & padded[1:-1, 2:]
        down = padded[:-2, 1:-1] & padded[2:, 1:-1]
        drawn = drawn | (may_be & (across | down))
    return drawn


def _mark_centres(held: np.ndarray, x_px: np.ndarray, y_px: np.ndarray) -> None:
    """Mark the px (h, w) that hold a tile's centre, in place."""
    column, row = np.floor(x_px).astype(np.int64), np.floor(y_px).astype(np.int64)
    inside = (row >= 0) & (row < held.shape[0]) & (column >= 0) & (column < held.shape[1])
    held[row[inside], column[inside]] = True


def times_uniform(attention: np.ndarray) -> np.ndarray:
    """Say attention (N,) in multiples of what a uniform map would give: 1 everywhere means no preference.

    >>> times_uniform(np.array([0.5, 0.25, 0.25])).tolist()
    [1.5, 0.75, 0.75]
    """
    return np.asarray(attention, dtype=np.float64) * len(attention)


def percentile_rank(values: np.ndarray) -> np.ndarray:
    """Rank values (N,) within their slide, 0..1; equal values share the middle of their ranks.

    >>> percentile_rank(np.array([3.0, 1.0, 2.0, 2.0])).tolist()
    [0.875, 0.125, 0.5, 0.5]
    """
    return (stats.rankdata(values, method="average") - 0.5) / max(1, len(values))


def scale_values(attention: np.ndarray, scale: Scale) -> np.ndarray:
    """Bring attention (N,) to what a picture shows: attention x N, or percentile rank 0..100."""
    return times_uniform(attention) if scale == "uniform" else 100.0 * percentile_rank(attention)


@dataclass(frozen=True)
class Colouring:
    """How numbers become colours; fixed in advance, so that slides compare.

    Attention is drawn more opaque the higher it is: what the model ignored stays a slide.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    colormap: str = "viridis"
    is_log: bool = False
    opacity_low: float = 0.0
    opacity_high: float = 0.75
    opacity_power: float = 1.0  # 2: opacity grows with the square, so the lower half stays clear
    is_signed: bool = False  # opacity grows with the distance from the middle

    def position(self, values: np.ndarray) -> np.ndarray:
        """Place values on the scale, 0..1; beyond the ends is clipped, NaN stays NaN."""
        v = np.asarray(values, dtype=np.float64)
        if self.is_log:
            span = math.log(self.high) - math.log(self.low)
            return (np.log(np.clip(v, self.low, self.high)) - math.log(self.low)) / span
        return (np.clip(v, self.low, self.high) - self.low) / (self.high - self.low)

    def tick_text(self, tick: float) -> str:
        """Label a tick; the ends of a logarithmic scale are clipped, and say so."""
        if self.is_log and tick in (self.low, self.high):
            return f"{'≤' if tick == self.low else '≥'} {tick:g}"
        return f"{tick:+g}" if self.is_signed and tick else f"{tick:g}"

    def rgba(self, values: np.ndarray) -> np.ndarray:
        """Colour values (...,) as (..., 4) float32 in 0..1, straight alpha; NaN is fully transparent."""
        return _colours(self)[self._steps(values)]

    def rgba8(self, values: np.ndarray) -> np.ndarray:
        """Colour values (...,) as (..., 4) uint8, the same colours."""
        steps = self._steps(values)
        return np.take(_byte_colours(self), steps).view(np.uint8).reshape(*steps.shape, 4)

    def _steps(self, values: np.ndarray) -> np.ndarray:
        t = np.asarray(self.position(values)) * _STEPS
        return np.rint(np.nan_to_num(t, copy=False, nan=_STEPS + 1)).astype(np.int16)


@lru_cache(maxsize=64)
def _colours(c: Colouring) -> np.ndarray:
    """Colours along a scale: (_STEPS + 2, 4) float32; the last is that of NaN."""
    t = np.arange(_STEPS + 1) / _STEPS
    rgba = np.asarray(matplotlib.colormaps[c.colormap](t), dtype=np.float64)
    strength = np.abs(2 * t - 1) if c.is_signed else t
    rgba[:, 3] = c.opacity_low + (c.opacity_high - c.opacity_low) * strength**c.opacity_power
    return np.concatenate([rgba, np.zeros((1, 4))]).astype(np.float32)


@lru_cache(maxsize=64)
def _byte_colours(c: Colouring) -> np.ndarray:
    """The same in bytes, four in a number: (_STEPS + 2,) uint32."""
    return np.rint(255.0 * _colours(c)).astype(np.uint8).view(np.uint32)[:, 0]


_COLOURINGS: dict[Scale, Colouring] = {
    "uniform": Colouring("attention × N  (1 = uniform, logarithmic)", 0.1, 100.0, (0.1, 1.0, 10.0, 100.0), is_log=True,
                         opacity_low=0.04, opacity_high=0.8, opacity_power=1.25),
    "percentile": Colouring("attention, percentile rank within this slide", 0.0, 100.0, (0.0, 25.0, 50.0, 75.0, 100.0),
                            opacity_low=0.04, opacity_high=0.7, opacity_power=2.0),
}  # fmt: skip


def attention_colouring(scale: Scale) -> Colouring:
    """Look up the fixed colours of an attention map."""
    return _COLOURINGS[scale]


def evidence_colouring(evidence: np.ndarray, towards: str) -> Colouring:
    """Choose colours for signed evidence: symmetric about 0, its end the next 1, 2 or 5 above the largest.

    Args:
        evidence: (m,) differences of logits.
        towards: what positive evidence speaks for.
    """
    limit = next_round(float(np.max(np.abs(evidence), initial=0.0)) or 1.0)
    return Colouring(f"evidence towards {towards}  (difference of logit)", -limit, limit, (-limit, 0.0, limit),
                     colormap="PuOr_r", opacity_low=0.6, opacity_high=0.95, is_signed=True)  # fmt: skip


def next_round(value: float) -> float:
    """Find the smallest 1, 2 or 5 times a power of ten that is not below a positive value.

    >>> next_round(0.031), next_round(2.0), next_round(700.0)
    (0.05, 2.0, 1000.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    step = next(s for s in (1.0, 2.0, 5.0, 10.0) if s * power >= value * (1 - 1e-9))
    return float(f"{step * power:.6g}")
