"""Time until an event that not everyone was watched for: concordance, and which intervals a patient got through.

Shapes: n patients.
"""

from __future__ import annotations

import numpy as np

__all__ = ["concordance", "cuts_passed"]

_BLOCK = 4_000_000  # pairs compared at a time


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C: the share of comparable pairs in which the earlier event had the higher risk.

    A pair is comparable when the one with the shorter time had the event, or, at equal times, when one had the event
    and the other was last seen then. Equal risks count one half.

    Args:
        time: (n,) until the event or the last time seen.
        event: (n,) 1 where the event was seen.
        risk: (n,) higher means earlier.

    Returns:
        NaN when no pair is comparable.

    >>> concordance(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]), np.array([0.9, 0.1, 0.5]))
    0.6666666666666666

    Source: Harrell, Lee and Mark, Stat. Med. 15, 1996.
    """
    t, r = np.asarray(time, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    seen = np.asarray(event, dtype=np.float64) == 1.0
    first = np.flatnonzero(seen)
    n_pairs, right = 0, 0.0
    step = max(1, _BLOCK // max(len(t), 1))
    for start in range(0, len(first), step):
        i = first[start : start + step, None]
        is_comparable = (t[i] < t) | ((t[i] == t) & ~seen)  # (b, n)
        n_pairs += int(is_comparable.sum())
        right += float((is_comparable & (r[i] > r)).sum()) + 0.5 * float((is_comparable & (r[i] == r)).sum())
    return right / n_pairs if n_pairs else float("nan")


def cuts_passed(time: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
    """Count the cuts a patient was seen to reach without the event; (n,) int64.

    It is also the number of the interval the time lies in; a time at a cut belongs to the interval that begins there.

    >>> cuts_passed(np.array([5.0, 12.0, 30.0]), (12.0, 24.0)).tolist()
    [0, 1, 2]
    """
    return np.searchsorted(np.asarray(cuts, dtype=np.float64), time, side="right")
