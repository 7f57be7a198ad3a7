"""Whether a probability of 0.8 comes true eight times in ten, and the one number that makes it so.

Shapes: n cases, K classes, P_t outputs and Q_t targets of one task.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from wsi_ips.stats.likelihood import known_rows, negative_log_likelihood
from wsi_ips.tasks import TaskSettings

__all__ = ["TEMPERATURES", "Bin", "brier", "expected_calibration_error", "fit_temperature", "reliability"]

TEMPERATURES = (0.05, 20.0)
"""Least and largest temperature that is fitted."""
_PRIOR = 0.5  # standard deviation of the logarithm: temperatures from 0.4 to 2.7 are nothing unusual


class Bin(NamedTuple):
    """Cases of similar confidence; `confidence` and `accuracy` are NaN where there are none."""

    low: float
    high: float
    n: int
    confidence: float  # mean
    accuracy: float  # share that came true


def fit_temperature(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> float:
    """Find the temperature under which held-out cases are most likely.

    All logits are divided by it, so no order and no most probable class changes. Few cases, all of them right, would be
    most likely at temperature 0; so the likelihood is weighed against a normal prior on the temperature's logarithm
    (mean 0, standard deviation 0.5), which a hundred cases outweigh and ten do not. It is searched between 0.05 and
    20. Where the data cannot tell (no rows, a single class, no event, regression) it is 1.

    Args:
        outputs: (n, P_t) logits of cases the model did not learn from, before any temperature; that of `task` is
            not used.
        targets: (n, Q_t), NaN where unknown.

    Raises:
        ModelError: shapes that do not fit the task, outputs that are not finite, classes that do not exist.

    Source: Guo, Pleiss, Sun and Weinberger, ICML 2017.
    """
    if task.kind == "regression":
        return 1.0
    z, y = known_rows(outputs, targets, task)
    seen = y[:, 1] if task.kind == "survival" else y[~np.isnan(y)]
    if len(np.unique(seen)) < 2 and not (task.kind == "survival" and seen.any()):
        return 1.0

    def loss(temperature: float) -> float:
        tempered = task.model_copy(update={"temperature": temperature})
        prior = 0.5 * (np.log(temperature) / _PRIOR) ** 2
        return float(negative_log_likelihood(z, y, tempered).sum() + prior)

    # the loss is convex in 1 / temperature, so it has one valley; the search itself never tries the ends
    found = minimize_scalar(
        lambda log: loss(float(np.exp(log))), bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return min((1.0, float(np.exp(found.x)), *TEMPERATURES), key=loss)


def reliability(confidence: np.ndarray, is_hit: np.ndarray, n_bins: int = 10) -> list[Bin]:
    """Compare confidence with the share that came true, in bins of equal width over [0, 1].

    A bin holds its lower bound and not its upper one; the last holds both.

    Args:
        confidence: (n,) probability of what was called, or of the positive class.
        is_hit: (n,) whether it came true.
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(is_hit, dtype=np.float64)
    edges = np.arange(n_bins + 1) / n_bins  # 7 / 10 is 0.7, which 7 * 0.1 is not
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, n_bins - 1)
    n = np.bincount(place, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=p, minlength=n_bins) / n
        share = np.bincount(place, weights=hit, minlength=n_bins) / n
    return [
        Bin(float(low), float(high), int(k), float(c), float(a))
        for low, high, k, c, a in zip(edges[:-1], edges[1:], n, mean, share, strict=True)
    ]


def expected_calibration_error(probs: np.ndarray, classes: np.ndarray, n_bins: int = 10) -> float:
    """Mean gap between confidence and accuracy, weighted by the cases of each bin; NaN without cases.

    Confidence is the largest of a case's K probabilities, for two classes as for more (so never below 1 / K), and a hit
    is when that class is the true one; bins of equal width, see `reliability`. A decision threshold plays no part.

    Args:
        probs: (n, K).
        classes: (n,) true class numbers.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    if not len(probs):
        return float("nan")
    bins = reliability(probs.max(axis=1), probs.argmax(axis=1) == np.asarray(classes), n_bins)
    return float(sum(b.n * abs(b.confidence - b.accuracy) for b in bins if b.n) / len(probs))


def brier(prob: np.ndarray, is_positive: np.ndarray) -> float:
    """Mean squared distance of the positive class's probability from the truth, 0 to 1; NaN without cases.

    Args:
        prob: (n,).
        is_positive: (n,) truth.

    Source: Brier, Mon. Weather Rev. 78, 1950, halved for two classes.
    """
    if not len(prob):
        return float("nan")
    return float(np.mean((np.asarray(prob) - np.asarray(is_positive).astype(bool)) ** 2))
