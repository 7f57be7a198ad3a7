"""From a probability to a call: thresholds, and what each costs.

A case is called positive from the threshold on. Thresholds lie halfway between neighbouring probabilities, so that
rounding one on its way to a file changes no call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wsi_ips.stats.ranking import step_sums

__all__ = ["OperatingPoint", "apply_threshold", "operating_points"]

_FIXED = (0.90, 0.95)


class OperatingPoint(NamedTuple):
    """A threshold and its rates; NaN where a rate has no case to be counted on."""

    name: str  # "youden", "sensitivity 0.90"
    threshold: float
    sensitivity: float
    specificity: float
    ppv: float  # share of the called that are positive
    npv: float  # share of the uncalled that are negative


def operating_points(prob: np.ndarray, is_positive: np.ndarray) -> list[OperatingPoint]:
    """Choose thresholds: Youden's, and those that keep a sensitivity or a specificity of 0.90 and 0.95.

    Youden: largest sensitivity + specificity; of several the most sensitive. Fixed sensitivity: the most specific
    threshold that is at least so sensitive; fixed specificity the other way round. Choose on validation cases: on the
    cases it was chosen on, a threshold looks better than it is.

    Args:
        prob: (n,) probability of the positive class.
        is_positive: (n,) truth.

    Returns:
        Five points, or none where a class is absent.

    Source: Youden, Cancer 3, 1950.
    """
    p, y = np.asarray(prob, dtype=np.float64), np.asarray(is_positive).astype(bool)
    if y.all() or not y.any():
        return []
    hits, misses = step_sums(y, p, np.ones((1, len(p))))
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    called_positive = np.concatenate([[0.0], np.cumsum(hits[0])])  # from none called to all called
    called_negative = np.concatenate([[0.0], np.cumsum(misses[0])])
    sensitivity, specificity = called_positive / n_positive, (n_negative - called_negative) / n_negative
    # whole numbers, so that ties are ties
    gain = called_positive * n_negative - called_negative * n_positive
    last = len(gain) - 1
    chosen = {"youden": last - int(np.argmax(gain[::-1]))}
    chosen |= {f"sensitivity {f:.2f}": int(np.argmax(sensitivity >= f)) for f in _FIXED}
    chosen |= {f"specificity {f:.2f}": last - int(np.argmax((specificity >= f)[::-1])) for f in _FIXED}
    thresholds = _between(np.unique(p)[::-1])
    return [apply_threshold(p, y, float(thresholds[i]), name) for name, i in chosen.items()]


def apply_threshold(prob: np.ndarray, is_positive: np.ndarray, threshold: float, name: str = "given") -> OperatingPoint:
    """Count what a threshold does.

    Args:
        prob: (n,) probability of the positive class.
        is_positive: (n,) truth.
        threshold: from which a case is called positive.
    """
    y, called = np.asarray(is_positive).astype(bool), np.asarray(prob) >= threshold
    hits, passes = int((called & y).sum()), int((~called & ~y).sum())
    return OperatingPoint(
        name,
        float(threshold),
        _share(hits, int(y.sum())),
        _share(passes, int((~y).sum())),
        _share(hits, int(called.sum())),
        _share(passes, int((~called).sum())),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _between(falling: np.ndarray) -> np.ndarray:
    """Thresholds (G + 1,) that call none, the first, .. all of G falling probabilities."""
    middle = (falling[:-1] + falling[1:]) / 2
    middle = np.where(middle > falling[1:], middle, falling[:-1])  # neighbours in float64 have no middle
    top = (falling[0] + 1.0) / 2 if falling[0] < 1.0 else 1.0
    return np.concatenate([[top if top > falling[0] else np.nextafter(falling[0], np.inf)], middle, falling[-1:]])
