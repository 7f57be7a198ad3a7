"""The spread that chance alone would give, from resampling patients.

Patients, not slides, are resampled: two slides of one patient are not two independent cases.

Shapes: n cases, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from wsi_ips.stats.ranking import auroc, weighted_auroc

__all__ = ["Interval", "auroc_interval", "bounds", "patient_bootstrap", "resampled_rows", "resampled_weights"]

_CHUNK = 2_000_000  # weights held at a time, 16 MB


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # cases


def patient_bootstrap(
    metric: Callable[[np.ndarray], float], patients: Sequence[str], n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Compute a metric with a percentile interval from resampling patients with replacement.

    Args:
        metric: from row numbers (int64, repeated where a patient was drawn twice) to the metric of those rows; NaN
            where it is undefined. Such resamples are left out; when all are, so is the interval (NaN).
        patients: (n,) whose case each row is.

    Source: percentile bootstrap over clusters; Field and Welsh, J. R. Stat. Soc. B 69, 2007.
    """
    n = len(patients)
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    draws = np.array([metric(rows) for rows in resampled_rows(patients, n_resamples, seed)], dtype=np.float64)
    low, high = bounds(draws)
    return Interval(float(metric(np.arange(n))), float(low), float(high), n)


def auroc_interval(
    is_positive: np.ndarray, score: np.ndarray, patients: Sequence[str], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """AUROC with a percentile interval from resampling patients.

    The same draws and the same numbers as `patient_bootstrap` of `auroc`, in one sort.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.
        patients: (n,) whose slide each is.
    """
    parts = [weighted_auroc(is_positive, score, w) for w in resampled_weights(patients, n_resamples, seed)]
    low, high = bounds(np.concatenate([*parts, np.empty(0)]))
    return Interval(auroc(is_positive, score), float(low), float(high), len(score))


def resampled_rows(patients: Sequence[str], n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each resample: all rows of each patient drawn."""
    n_patients, owner = _owners(patients)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=n_patients)
    rows_of = np.split(order, np.cumsum(counts)[:-1])
    is_single = len(owner) == n_patients
    for draws in _draws(n_patients, n_resamples, seed, len(owner)):
        for drawn in draws:
            yield order[drawn] if is_single else np.concatenate([rows_of[i] for i in drawn])


def resampled_weights(patients: Sequence[str], n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the same resamples as `resampled_rows`, as (b, n) float64 counts of each row, many resamples at a time."""
    n_patients, owner = _owners(patients)
    for draws in _draws(n_patients, n_resamples, seed, len(owner)):
        cells = draws + n_patients * np.arange(len(draws))[:, None]
        counts = np.bincount(cells.ravel(), minlength=draws.size).reshape(draws.shape)
        yield counts[:, owner].astype(np.float64)


def bounds(draws: np.ndarray, percent: float = 95.0) -> np.ndarray:
    """Give the middle `percent` of (B, ..) draws, NaN ones left out: (2, ..), NaN where none is left."""
    draws = np.asarray(draws, dtype=np.float64)
    ends = np.full((2, *draws.shape[1:]), np.nan)
    has_any = ~np.isnan(draws).all(axis=0)
    if len(draws) and has_any.any():
        tail = (100.0 - percent) / 2
        ends[:, has_any] = np.nanpercentile(draws[:, has_any], [tail, 100.0 - tail], axis=0)
    return ends


def _owners(patients: Sequence[str]) -> tuple[int, np.ndarray]:
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    return len(names), owner


def _draws(n_patients: int, n_resamples: int, seed: int, n: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // max(n, 1))
    for start in range(0, n_resamples if n_patients else 0, at_once):
        yield rng.integers(0, n_patients, (min(at_once, n_resamples - start), n_patients))
