"""Whether one model is better than another on the same cases.

DeLong's test holds AUROCs of independent cases against each other; where patients have several slides, or for any other
metric, patients are resampled.

Shapes: n cases, m positives, k negatives, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from wsi_ips.errors import ModelError
from wsi_ips.stats.intervals import bounds, resampled_rows
from wsi_ips.stats.ranking import auroc, wins

__all__ = ["Comparison", "delong", "paired_bootstrap"]


class Comparison(NamedTuple):
    """Two models on the same cases."""

    a: float
    b: float
    difference: float  # a - b
    low: float  # 95 % interval of the difference
    high: float
    p: float  # two-sided, of no difference
    n: int  # cases


def delong(is_positive: np.ndarray, score_a: np.ndarray, score_b: np.ndarray) -> Comparison:
    """Compare two AUROCs on the same independent cases.

    Two scores that order every pair of classes alike differ by 0 with p = 1. Where the difference is not 0 but has no
    spread (a perfect order against a perfectly wrong one), or a class has fewer than two cases, the data cannot tell:
    `low`, `high` and `p` are NaN.

    Args:
        is_positive: (n,) truth.
        score_a, score_b: (n,) higher means positive.

    Raises:
        ModelError: a score is NaN, or the lengths differ.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; in n log n as in Sun and Xu, IEEE Signal Process.
    Lett. 21, 2014.
    """
    y = np.asarray(is_positive).astype(bool)
    _check_lengths(y, score_a, score_b)
    a, b = auroc(y, score_a), auroc(y, score_b)
    m, k = int(y.sum()), int((~y).sum())
    nan = float("nan")
    if m < 2 or k < 2:
        return Comparison(a, b, a - b, nan, nan, nan, len(y))
    gain = _placements(y, np.asarray(score_a)) - _placements(y, np.asarray(score_b))
    by_positive, by_negative = gain[y], gain[~y]  # multiples of one half, exactly
    difference = float(by_positive.sum()) / (m * k)
    if not np.ptp(by_positive) and not np.ptp(by_negative):
        return Comparison(a, b, difference, *((0.0, 0.0, 1.0) if difference == 0.0 else (nan, nan, nan)), len(y))
    spread = float(np.sqrt(np.var(by_positive / k, ddof=1) / m + np.var(by_negative / m, ddof=1) / k))
    reach = float(ndtri(0.975)) * spread
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return Comparison(a, b, difference, low, high, float(2.0 * ndtr(-abs(difference) / spread)), len(y))


def paired_bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float],
    score_a: np.ndarray,
    score_b: np.ndarray,
    patients: Sequence[str],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare any metric of two models by resampling patients; both models see the same resamples.

    p is twice the smaller share of resamples in which the difference lies on one side of 0 or at it, each share counting
    one resample more than was found, so it is never below 2 / (B + 1). Resamples where the metric is NaN are left out.

    Args:
        metric: from a model's scores (all n) and row numbers to the metric of those rows.
        score_a, score_b: (n,) or (n, P).
        patients: (n,) whose case each row is.

    Raises:
        ModelError: the lengths differ.

    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, ch. 4.
    """
    _check_lengths(np.asarray(patients), score_a, score_b)
    everyone = np.arange(len(patients))
    a, b = (float(metric(s, everyone)) for s in (score_a, score_b))
    found = [metric(score_a, rows) - metric(score_b, rows) for rows in resampled_rows(patients, n_resamples, seed)]
    draws = np.asarray(found, dtype=np.float64)
    draws = draws[~np.isnan(draws)]
    if not len(draws) or np.isnan(a - b):
        return Comparison(a, b, a - b, *(float("nan"),) * 3, len(patients))
    low, high = bounds(draws)
    one_side = min(int((draws <= 0.0).sum()), int((draws >= 0.0).sum()))
    p = min(1.0, 2.0 * (one_side + 1) / (len(draws) + 1))
    return Comparison(a, b, a - b, float(low), float(high), p, len(patients))


def _placements(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Count for each case how many of the other class it beats: (n,), positives by lying above, negatives below."""
    beaten = np.empty(len(y))
    beaten[y], beaten[~y] = wins(score[y], score[~y]), wins(-score[~y], -score[y])
    return beaten


def _check_lengths(cases: np.ndarray, score_a: np.ndarray, score_b: np.ndarray) -> None:
    if not len(cases) == len(score_a) == len(score_b):
        raise ModelError(
            f"{len(cases)} cases, {len(score_a)} scores of a and {len(score_b)} of b; compare on the same cases"
        )
