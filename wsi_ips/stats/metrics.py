"""How good a model is, with the spread that chance alone would give.

Patients, not slides, are resampled: two slides of one patient are not two independent cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from wsi_ips.config import TaskSettings
from wsi_ips.tasks import probabilities

__all__ = ["Interval", "auroc", "auroc_interval", "task_auroc", "tile_auroc"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # cases


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, as the share of pairs in the right order; NaN where one class is absent.

    >>> auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    y = np.asarray(is_positive).astype(bool)
    if y.all() or not y.any():
        return float("nan")
    return float(roc_auc_score(y, score))


def task_auroc(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> float:
    """AUROC of a task: of the positive class (binary), or the mean of one class against the rest.

    Args:
        outputs: (n, P_t) logits.
        targets: (n,) class numbers.
    """
    if task.kind == "binary":
        return auroc(targets == 1, outputs[:, 0])
    probs = probabilities(outputs, task)
    each = [auroc(targets == k, probs[:, k]) for k in range(probs.shape[1])]
    return float(np.nanmean(each)) if not np.all(np.isnan(each)) else float("nan")


def auroc_interval(
    is_positive: np.ndarray, score: np.ndarray, patients: Sequence[str], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """AUROC with a percentile interval from resampling patients.

    Args:
        is_positive: (n,) truth.
        score: (n,) higher means positive.
        patients: (n,) whose slide each is.

    Source: percentile bootstrap over clusters; Field and Welsh, J. R. Stat. Soc. B 69, 2007.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rows_of = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(names), len(names))])
        draws.append(auroc(is_positive[rows], score[rows]))
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if draws else (float("nan"), float("nan"))
    return Interval(auroc(is_positive, score), float(low), float(high), len(score))


def tile_auroc(attention: np.ndarray, lesion: np.ndarray, *, positive_from: float = 0.25) -> float:
    """How well attention tells lesion tiles from lesion-free ones on one slide.

    Args:
        attention: (N,).
        lesion: (N,) share of each tile that lesion covers; between 0 and `positive_from` a tile is left out.
        positive_from: share from which a tile counts as lesion.
    """
    keep = (lesion == 0.0) | (lesion >= positive_from)
    return auroc(lesion[keep] > 0.0, attention[keep])
