"""ROC and precision-recall curves with the band that chance alone would give, on a common grid.

Shapes: n cases, G grid points, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from wsi_ips.stats.intervals import bounds, resampled_weights
from wsi_ips.stats.ranking import step_sums

__all__ = ["Band", "pr_band", "roc_band"]

_ROUNDING = 1e-12  # a share of whole numbers may lie this far from the grid point it equals


class Band(NamedTuple):
    """A curve and its pointwise 95 % band, float64; NaN throughout where the curve is undefined."""

    x: np.ndarray  # (G,) 0 to 1
    y: np.ndarray  # (G,)
    low: np.ndarray  # (G,)
    high: np.ndarray  # (G,)


def roc_band(
    is_positive: np.ndarray,
    score: np.ndarray,
    patients: Sequence[str],
    *,
    n_resamples: int = 1000,
    n_points: int = 101,
    seed: int = 0,
) -> Band:
    """Sensitivity over the share of false positives (1 - specificity), with a band from resampling patients.

    Between thresholds the curve is straight; where it jumps, the upper end counts. Resamples without both classes are
    left out.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.
        patients: (n,) whose case each is.
        n_points: of the grid, ends included.

    Source: vertical averaging; Fawcett, Pattern Recognit. Lett. 27, 2006.
    """
    return _band(_roc, is_positive, score, resampled_weights(patients, n_resamples, seed), n_points)


def pr_band(
    is_positive: np.ndarray,
    score: np.ndarray,
    patients: Sequence[str],
    *,
    n_resamples: int = 1000,
    n_points: int = 101,
    seed: int = 0,
) -> Band:
    """Precision over recall, with a band from resampling patients.

    Precision at a recall is that of the highest threshold that reaches it: steps, as in `average_precision`, since a
    straight line between two thresholds promises a precision that none has. Resamples without positives are left out.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.
        patients: (n,) whose case each is.
        n_points: of the grid, ends included.

    Source: on interpolation, Davis and Goadrich, ICML 2006.
    """
    return _band(_pr, is_positive, score, resampled_weights(patients, n_resamples, seed), n_points)


_Curve = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _band(
    curve: _Curve, is_positive: np.ndarray, score: np.ndarray, weights: Iterable[np.ndarray], n_points: int
) -> Band:
    y, s = np.asarray(is_positive).astype(bool), np.asarray(score, dtype=np.float64)
    x = np.linspace(0.0, 1.0, n_points)
    drawn = [np.empty((0, n_points))]
    for some in weights:
        hits, misses = step_sums(y, s, some)
        drawn.append(np.stack([curve(x, h, m) for h, m in zip(hits, misses, strict=True)]))
    hits, misses = step_sums(y, s, np.ones((1, len(y))))
    low, high = bounds(np.concatenate(drawn))
    return Band(x, curve(x, hits[0], misses[0]), low, high)


def _roc(x: np.ndarray, hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
    if not hits.sum() or not misses.sum():
        return np.full(len(x), np.nan)
    sensitivity = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
    false_share = np.concatenate([[0.0], np.cumsum(misses) / misses.sum()])
    return np.interp(x + _ROUNDING, false_share, sensitivity)


def _pr(x: np.ndarray, hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
    is_used = hits + misses > 0  # a score nobody in the resample has is no threshold
    hits, misses = hits[is_used], misses[is_used]
    if not hits.sum():
        return np.full(len(x), np.nan)
    precision = np.cumsum(hits) / np.cumsum(hits + misses)
    return precision[np.searchsorted(np.cumsum(hits) / hits.sum(), x - _ROUNDING)]
