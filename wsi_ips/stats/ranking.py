"""How well a score puts cases in order: areas under the ROC and the precision-recall curve.

Both depend on ranks alone. A resampled cohort is the same cohort with whole-number weights, so that thousands of
resamples share one sort.

Shapes: n cases, B resamples.
"""

from __future__ import annotations

import numpy as np

from wsi_ips.errors import ModelError

__all__ = ["auroc", "average_precision", "step_sums", "weighted_auroc", "wins"]


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, as the share of pairs in the right order, ties half; NaN where one class is absent.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.

    Raises:
        ModelError: a score is NaN.

    >>> auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75

    Source: Hanley and McNeil, Radiology 143, 1982.
    """
    y, s = _checked(is_positive, score)
    positives, negatives = s[y], s[~y]
    n_pairs = len(positives) * len(negatives)
    return float(wins(positives, negatives).sum() / n_pairs) if n_pairs else float("nan")


def wins(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Count for each of (n,) scores how many of the others lie below it, ties half: (n,) float64, exact.

    >>> wins(np.array([2.0, 3.0]), np.array([1.0, 2.0, 2.0])).tolist()
    [2.0, 3.0]
    """
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")) / 2


def average_precision(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function; NaN without positives.

    Each positive counts the precision at the threshold that first calls it; tied cases are called together. A score
    that knows nothing gets the share of positives.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.

    Raises:
        ModelError: a score is NaN.

    >>> round(average_precision(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    y, s = _checked(is_positive, score)
    if not y.any():
        return float("nan")
    hits, misses = step_sums(y, s, np.ones((1, len(y))))
    precision = np.cumsum(hits[0]) / np.cumsum(hits[0] + misses[0])
    return float((precision * hits[0]).sum() / hits[0].sum())


def weighted_auroc(is_positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of every resample at once.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.
        weights: (B, n) how often each case is in each resample.

    Returns:
        (B,) float64, NaN where a resample lacks a class.
    """
    y, s = _checked(is_positive, score)
    positive, negative = step_sums(y, s, weights)
    below = negative.sum(axis=1, keepdims=True) - np.cumsum(negative, axis=1)  # negatives of lower score
    with np.errstate(invalid="ignore"):
        return (positive * (below + negative / 2)).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def step_sums(is_positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weights of positives and of negatives at each distinct score, highest score first.

    Args:
        is_positive: (n,) bool.
        score: (n,).
        weights: (B, n).

    Returns:
        Two (B, G) arrays for G distinct scores.
    """
    if not len(score):
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    y, w = is_positive[order], weights[:, order]
    return np.add.reduceat(w * y, starts, axis=1), np.add.reduceat(w * ~y, starts, axis=1)


def _checked(is_positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(is_positive).astype(bool), np.asarray(score, dtype=np.float64)
    if np.isnan(s).any():
        raise ModelError(f"score {int(np.flatnonzero(np.isnan(s))[0])} of {len(s)} is NaN; it has no place in an order")
    return y, s
