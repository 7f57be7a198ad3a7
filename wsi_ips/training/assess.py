"""What can be said of one task's outputs against the truth: calls, curves, calibration, operating points, errors.

Everything takes the (n, P_t) logits and (n, Q_t) targets of one task, without unknown targets, and gives numbers.

Shapes: n cases, K classes, P_t outputs and Q_t targets of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wsi_ips.stats.calibration import Bin, expected_calibration_error, reliability
from wsi_ips.stats.curves import Band, pr_band, roc_band
from wsi_ips.stats.intervals import Interval, auroc_interval, bounds, resampled_rows
from wsi_ips.stats.likelihood import negative_log_likelihood
from wsi_ips.stats.metrics import called_classes
from wsi_ips.stats.metrics import confusion as count_cells
from wsi_ips.stats.operating import apply_threshold, operating_points
from wsi_ips.tasks import TaskSettings, predicted_number, probabilities

__all__ = ["Calibration", "ClassCurves", "OperatingRow", "RiskGroup", "calibrate", "case_losses", "class_counts", "class_curves",
           "confusion", "intervals_of", "operating_rows", "risk_groups", "views"]  # fmt: skip

_FEWEST = 2  # cases of each side below which a curve is not drawn


class View(NamedTuple):
    """A question of yes or no that a task answers; k cases for which the answer is known."""

    name: str  # the class
    prob: np.ndarray  # (k,) of yes
    is_positive: np.ndarray  # (k,) bool
    patients: tuple[str, ...]


class ClassCurves(NamedTuple):
    """ROC and precision over recall of one class against the rest."""

    name: str
    n_positive: int
    n: int
    auroc: Interval
    roc: Band
    pr: Band


class Calibration(NamedTuple):
    """Do probabilities mean what they say?"""

    temperatures: tuple[float, ...]  # that were applied, each once: of the model, or of each fold's
    ece_before: float  # expected calibration error with temperature 1
    ece_after: float
    bins_before: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]


class OperatingRow(NamedTuple):
    """A threshold and what it gives on the judged cases."""

    label: str  # the class
    name: str  # "in use", "sensitivity 0.95", ...
    threshold: float
    chosen_on: str  # the part whose cases chose it, "val"; "" when it was not chosen by cases
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval


class RiskGroup(NamedTuple):
    """Kaplan-Meier estimate of the patients of one side of the median risk."""

    name: str
    n: int
    n_events: int
    time: tuple[float, ...]  # 0 first
    share: tuple[float, ...]  # without the event, from each time on
    censored: tuple[float, ...]


def intervals_of(
    measure: Callable[[np.ndarray], Sequence[float]], patients: Sequence[str], *, n_resamples: int, seed: int
) -> list[Interval]:
    """Give several numbers of the same cases their 95 % intervals from the same resamples of patients.

    Args:
        measure: from row numbers to the numbers; NaN where undefined, and such resamples are left out.
        patients: (n,) whose case each row is.
    """
    values = measure(np.arange(len(patients)))
    draws = [measure(rows) for rows in resampled_rows(patients, n_resamples, seed)]
    low, high = bounds(np.asarray(draws, dtype=np.float64).reshape(-1, len(values)))
    return [Interval(float(v), float(a), float(b), len(patients)) for v, a, b in zip(values, low, high, strict=True)]


def views(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings, patients: Sequence[str]) -> list[View]:
    """Break a task of classes into questions of yes or no: the positive class, or each class against the rest."""
    probs, names = probabilities(outputs, task), tuple(patients)
    if task.kind == "binary":
        return [View(task.classes[1], probs[:, 1], targets[:, 0] == 1, names)]
    if task.kind in ("multiclass", "ordinal"):
        return [View(c, probs[:, k], targets[:, 0] == k, names) for k, c in enumerate(task.classes)]
    found = []
    for k, name in enumerate(task.classes if task.kind == "multilabel" else ()):
        known = np.flatnonzero(~np.isnan(targets[:, k]))
        found.append(View(name, probs[known, k], targets[known, k] == 1, tuple(names[i] for i in known)))
    return found


def class_curves(some: Sequence[View], *, n_resamples: int, seed: int) -> tuple[ClassCurves, ...]:
    """Draw the curves of every class that has at least two cases on either side."""
    curves = []
    for view in some:
        y, p = view.is_positive, view.prob
        if min(int(y.sum()), int((~y).sum())) < _FEWEST:
            continue
        area = auroc_interval(y, p, view.patients, n_resamples=n_resamples, seed=seed)
        roc = roc_band(y, p, view.patients, n_resamples=n_resamples, seed=seed)
        pr = pr_band(y, p, view.patients, n_resamples=n_resamples, seed=seed)
        curves.append(ClassCurves(view.name, int(y.sum()), len(y), area, roc, pr))
    return tuple(curves)


def class_counts(targets: np.ndarray, task: TaskSettings) -> dict[str, int]:
    """Count the cases of each class; survival: of events seen and not seen; regression: {}."""
    y = targets
    if task.kind == "regression":
        return {}
    if task.kind == "multilabel":
        return {c: int((y[:, k] == 1).sum()) for k, c in enumerate(task.classes)}
    if task.kind == "survival":
        return {"event seen": int((y[:, 1] == 1).sum()), "not seen": int((y[:, 1] == 0).sum())}
    return {c: int((y[:, 0] == k).sum()) for k, c in enumerate(task.classes)}


def confusion(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> np.ndarray | None:
    """Count true class (rows) by called class (columns): (K, K) int64; None for tasks that call no single class."""
    if task.kind not in ("binary", "multiclass", "ordinal"):
        return None
    return count_cells(targets[:, 0], called_classes(probabilities(outputs, task), task), len(task.classes))


def calibrate(
    outputs: np.ndarray, targets: np.ndarray, task: TaskSettings, temperatures: np.ndarray
) -> Calibration | None:
    """Measure calibration with and without temperature; None for regression and survival.

    Bins of binary and multilabel hold the probability of each positive class, others' the largest of a case.

    Args:
        outputs: (n, P_t) logits that the task's own temperature divides.
        targets: (n, Q_t).
        task: what they answer.
        temperatures: (n,) of the models that gave them, so that outputs x own / task's are the logits as trained.
    """
    if task.kind in ("regression", "survival") or not len(outputs):
        return None
    found = []
    as_trained = outputs * (temperatures / task.temperature)[:, None]
    for logits, scale in ((as_trained, 1.0), (outputs, task.temperature)):
        probs = probabilities(logits, task.replace(temperature=scale))
        if task.kind == "multilabel":
            known = ~np.isnan(targets)
            flat, y = probs[known], targets[known]
            ece = expected_calibration_error(np.stack([1.0 - flat, flat], axis=1), y.astype(np.int64))
            bins = reliability(flat, y == 1)
        else:
            y = targets[:, 0].astype(np.int64)
            ece = expected_calibration_error(probs, y)
            is_binary = task.kind == "binary"
            stated = probs[:, 1] if is_binary else probs.max(axis=1)
            bins = reliability(stated, y == 1 if is_binary else probs.argmax(axis=1) == y)
        found.append((float(ece), tuple(bins)))
    (before, bins_before), (after, bins_after) = found
    return Calibration(tuple(dict.fromkeys(temperatures.tolist())), before, after, bins_before, bins_after)


def operating_rows(
    judged: View, chosen_on: str, chosen: View | None, in_use: float, *, n_resamples: int, seed: int
) -> list[OperatingRow]:
    """Hold thresholds against the judged cases: the one in use, and those that a part's cases chose.

    Args:
        judged: of the judged cases.
        chosen_on: name of the part whose cases choose.
        chosen: those cases; None chooses nothing.
        in_use: threshold the model calls by.
    """
    points = [("in use", in_use, "")]
    if chosen is not None:
        points += [(p.name, p.threshold, chosen_on) for p in operating_points(chosen.prob, chosen.is_positive)]
    rows = []
    for name, threshold, where in points:

        def rates(cases: np.ndarray, cut: float = threshold) -> tuple[float, ...]:
            return apply_threshold(judged.prob[cases], judged.is_positive[cases], cut)[2:]

        found = intervals_of(rates, judged.patients, n_resamples=n_resamples, seed=seed)
        rows.append(OperatingRow(judged.name, name, float(threshold), where, *found))
    return rows


def case_losses(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> np.ndarray:
    """How far each case is from its truth: (n,) float64, larger is worse.

    Negative log-likelihood in nats; regression: absolute error in the unit of the column.
    """
    if task.kind == "regression":
        return np.abs(predicted_number(outputs, task) - targets[:, 0])
    return negative_log_likelihood(outputs, targets, task)


def risk_groups(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> tuple[RiskGroup, ...]:
    """Halve the cases at the median predicted risk and follow each half; () for other kinds of task.

    Source: Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958.
    """
    if task.kind != "survival" or len(outputs) < 2 * _FEWEST:
        return ()
    risk = predicted_number(outputs, task)
    is_high = risk > np.median(risk)
    groups = []
    for name, mask in (("lower risk", ~is_high), ("higher risk", is_high)):
        if not mask.any():
            continue
        time, event = targets[mask, 0], targets[mask, 1] == 1
        at = np.unique(time[event])
        died = np.array([np.sum(event & (time == t)) for t in at])
        at_risk = np.array([np.sum(time >= t) for t in at])
        share = np.cumprod(1.0 - died / at_risk) if len(at) else np.zeros(0)
        ends = ([float(time.max())], [float(share[-1]) if len(share) else 1.0])
        groups.append(RiskGroup(name, int(mask.sum()), int(event.sum()), (0.0, *map(float, at), *ends[0]),
                                (1.0, *map(float, share), *ends[1]), tuple(map(float, np.sort(time[~event])))))  # fmt: skip
    return tuple(groups)
