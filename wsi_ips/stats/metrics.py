"""How good a model is at each kind of task.

A metric that has nothing to be counted on is NaN, never 0. Intervals: `wsi_ips.stats.intervals`.

Shapes: n cases, P_t outputs and Q_t targets of one task, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from wsi_ips.stats.calibration import brier, expected_calibration_error
from wsi_ips.stats.intervals import Interval, auroc_interval
from wsi_ips.stats.likelihood import known_rows, negative_log_likelihood
from wsi_ips.stats.operating import apply_threshold
from wsi_ips.stats.ranking import auroc, average_precision, wins
from wsi_ips.stats.survival import concordance
from wsi_ips.tasks import TaskSettings, predicted_number, probabilities

__all__ = [
    "Interval",
    "auroc",
    "auroc_interval",
    "called_classes",
    "confusion",
    "primary_metric",
    "primary_score",
    "quadratic_weighted_kappa",
    "task_auroc",
    "task_metrics",
    "tile_auroc",
]


def task_metrics(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> dict[str, float]:
    """Measure a task by every metric of its kind, the primary one first; cases without a target are left out.

    * binary: auroc, auprc, balanced_accuracy, accuracy, sensitivity, specificity, f1, brier, log_loss, ece
    * multiclass: auroc (mean of one class against the rest), balanced_accuracy, accuracy, macro_f1, log_loss, ece,
      auroc_<class>
    * multilabel: auroc and auprc (means over labels that have both values), auroc_<class>; a label unknown of a case
      leaves that case out of that label only
    * ordinal: qwk, mae (in classes), accuracy, auroc (mean over the cuts between classes)
    * regression: r2, mae, rmse, pearson, spearman
    * survival: c_index

    Calls are those of `wsi_ips.tasks.called_class`. log_loss is in nats; ece as in `expected_calibration_error`.

    Args:
        outputs: (n, P_t) logits.
        targets: (n, Q_t), NaN where unknown.

    Raises:
        ModelError: shapes that do not fit the task, outputs that are not finite, classes that do not exist.
    """
    z, y = known_rows(outputs, targets, task)
    return _METRICS[task.kind](z, y, task)


def primary_metric(task: TaskSettings) -> str:
    """Name the metric a task is chosen by; higher is better."""
    return {"ordinal": "qwk", "regression": "r2", "survival": "c_index"}.get(task.kind, "auroc")


def primary_score(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> float:
    """Compute the primary metric alone, as `task_metrics` would; NaN where it is undefined."""
    z, y = known_rows(outputs, targets, task)
    if task.kind == "ordinal":
        called = called_classes(probabilities(z, task), task)
        return quadratic_weighted_kappa(y[:, 0], called, len(task.classes))
    if task.kind == "regression":
        return _r2(y[:, 0], predicted_number(z, task))
    if task.kind == "survival":
        return concordance(y[:, 0], y[:, 1], predicted_number(z, task))
    return _mean(_aurocs(z, y, task))


def task_auroc(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> float:
    """AUROC of a task: of the positive class (binary), else the mean over classes, labels or cuts where it exists.

    Args:
        outputs: (n, P_t) logits.
        targets: (n,) class numbers, or (n, Q_t); NaN where unknown.

    Returns:
        NaN for regression and survival.
    """
    return _mean(_aurocs(*known_rows(outputs, targets, task), task))


def tile_auroc(attention: np.ndarray, lesion: np.ndarray, *, positive_from: float = 0.25) -> float:
    """How well attention tells lesion tiles from lesion-free ones on one slide.

    Args:
        attention: (N,).
        lesion: (N,) share of each tile that lesion covers; between 0 and `positive_from` a tile is left out.
        positive_from: share from which a tile counts as lesion.
    """
    keep = (lesion == 0.0) | (lesion >= positive_from)
    return auroc(lesion[keep] > 0.0, attention[keep])


def called_classes(probs: np.ndarray, task: TaskSettings) -> np.ndarray:
    """Call a class from (n, K) probabilities as `wsi_ips.tasks.called_class` does: (n,) int64; not for multilabel."""
    if task.kind == "binary":
        return (probs[:, 1] >= (0.5 if task.threshold is None else task.threshold)).astype(np.int64)
    if task.kind in ("ordinal", "survival"):
        return np.minimum((np.cumsum(probs, axis=1) < 0.5).sum(axis=1), len(task.classes) - 1)
    return probs.argmax(axis=1)


def confusion(truth: np.ndarray, called: np.ndarray, n_classes: int) -> np.ndarray:
    """Count cases by true class (rows) and called class (columns): (K, K) int64."""
    cells = np.asarray(truth, dtype=np.int64) * n_classes + np.asarray(called, dtype=np.int64)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def quadratic_weighted_kappa(truth: np.ndarray, called: np.ndarray, n_classes: int) -> float:
    """Agreement beyond chance, where a miss costs the square of its distance in classes; NaN when chance has no cost.

    Args:
        truth, called: (n,) class numbers.

    Source: Cohen, Psychol. Bull. 70, 1968.
    """
    table = confusion(truth, called, n_classes)
    cost = np.subtract.outer(np.arange(n_classes), np.arange(n_classes)) ** 2
    by_chance = float((cost * np.outer(table.sum(axis=1), table.sum(axis=0))).sum())
    return 1.0 - float((cost * table).sum()) * len(truth) / by_chance if by_chance else float("nan")


def _binary(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    probs, truth = probabilities(z, task), y[:, 0] == 1.0
    called = called_classes(probs, task)
    point = apply_threshold(called, truth, 1)
    f1 = _f1(confusion(truth, called, 2))[1]
    return {
        "auroc": auroc(truth, z[:, 0]),
        "auprc": average_precision(truth, z[:, 0]),
        "balanced_accuracy": _mean([point.sensitivity, point.specificity]),
        "accuracy": _mean(called == truth),
        "sensitivity": point.sensitivity,
        "specificity": point.specificity,
        "f1": float(f1),
        "brier": brier(probs[:, 1], truth),
        "log_loss": _mean(negative_log_likelihood(z, y, task)),
        "ece": expected_calibration_error(probs, truth),
    }


def _multiclass(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    probs, truth = probabilities(z, task), y[:, 0]
    called, each = called_classes(probs, task), _aurocs(z, y, task)
    table = confusion(truth, called, len(task.classes))
    with np.errstate(invalid="ignore"):
        recall = np.diag(table) / table.sum(axis=1)
    return {
        "auroc": _mean(each),
        "balanced_accuracy": _mean(recall),
        "accuracy": _mean(called == truth),
        "macro_f1": _mean(_f1(table)),
        "log_loss": _mean(negative_log_likelihood(z, y, task)),
        "ece": expected_calibration_error(probs, truth),
    } | {f"auroc_{name}": a for name, a in zip(task.classes, each, strict=True)}


def _multilabel(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    each = _aurocs(z, y, task)
    precisions = [float("nan") if np.isnan(a) else average_precision(*_label(z, y, k)) for k, a in enumerate(each)]
    named = {f"auroc_{name}": a for name, a in zip(task.classes, each, strict=True)}
    return {"auroc": _mean(each), "auprc": _mean(precisions)} | named


def _ordinal(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    called, truth = called_classes(probabilities(z, task), task), y[:, 0]
    return {
        "qwk": quadratic_weighted_kappa(truth, called, len(task.classes)),
        "mae": _mean(np.abs(called - truth)),
        "accuracy": _mean(called == truth),
        "auroc": _mean(_aurocs(z, y, task)),
    }


def _regression(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    truth, guess = y[:, 0], predicted_number(z, task)
    return {
        "r2": _r2(truth, guess),
        "mae": _mean(np.abs(guess - truth)),
        "rmse": float(np.sqrt(_mean((guess - truth) ** 2))),
        "pearson": _correlation(truth, guess),
        "spearman": _correlation(wins(truth, truth), wins(guess, guess)),  # midranks, less one half
    }


def _survival(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> dict[str, float]:
    return {"c_index": concordance(y[:, 0], y[:, 1], predicted_number(z, task))}


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, TaskSettings], dict[str, float]]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "ordinal": _ordinal,
    "regression": _regression,
    "survival": _survival,
}


def _aurocs(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> list[float]:
    if task.kind == "binary":
        return [auroc(y[:, 0] == 1.0, z[:, 0])]
    if task.kind == "multiclass":
        probs = probabilities(z, task)
        return [auroc(y[:, 0] == k, probs[:, k]) for k in range(len(task.classes))]
    if task.kind == "multilabel":
        return [auroc(*_label(z, y, k)) for k in range(len(task.classes))]
    if task.kind == "ordinal":
        falling = np.minimum.accumulate(z, axis=1)  # as the probabilities are made
        return [auroc(y[:, 0] > k, falling[:, k]) for k in range(z.shape[1])]
    return []


def _label(z: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    is_known = ~np.isnan(y[:, k])
    return y[is_known, k] == 1.0, z[is_known, k]


def _mean(values: np.ndarray | Iterable[float]) -> float:
    numbers = np.asarray(list(values), dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def _f1(table: np.ndarray) -> np.ndarray:
    """F1 of each class, NaN of a class neither true nor called."""
    with np.errstate(invalid="ignore"):
        return 2.0 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))


def _r2(truth: np.ndarray, guess: np.ndarray) -> float:
    if len(truth) < 2 or not np.ptp(truth):
        return float("nan")
    return 1.0 - float(((truth - guess) ** 2).sum()) / float(((truth - truth.mean()) ** 2).sum())


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
