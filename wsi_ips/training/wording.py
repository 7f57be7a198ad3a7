"""An evaluation in words: one sentence a task, and tables of text for page, card and terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from wsi_ips.report.training_page import Grid
from wsi_ips.stats.calibration import Bin
from wsi_ips.stats.compare import Comparison
from wsi_ips.stats.intervals import Interval
from wsi_ips.tasks import TaskSettings, split_targets
from wsi_ips.training.evaluation import Evaluation, GroupScore, TaskEvaluation
from wsi_ips.training.targets import Member

__all__ = ["calibration_grid", "comparison_grid", "group_grid", "interval_text", "metric_grid", "metric_name",
           "operating_grid", "remarks", "sentence", "splits_grid"]  # fmt: skip

_NAMES = {
    "auroc": "AUROC", "auprc": "average precision", "balanced_accuracy": "balanced accuracy", "f1": "F1",
    "macro_f1": "macro F1", "brier": "Brier score", "log_loss": "log loss (nats)", "qwk": "quadratic weighted kappa",
    "ece": "calibration error (ECE)", "mae": "mean absolute error", "rmse": "root mean squared error", "r2": "R²",
    "pearson": "Pearson r", "spearman": "Spearman rho", "c_index": "concordance (C-index)",
}  # fmt: skip
_JUDGED = {"test": "test slides", "out-of-fold": "out-of-fold slides", "val": "validation slides", "all": "slides"}


def metric_name(metric: str, task: TaskSettings) -> str:
    """Name a metric for readers.

    >>> metric_name("auroc_tumor", TaskSettings(kind="multilabel", classes=("tumor",)))
    'AUROC of tumor'
    """
    if metric.startswith("auroc_") and metric[6:] in task.classes:
        return f"AUROC of {metric[6:]}"
    unit = {("mae", "ordinal"): " (classes)", ("auroc", "ordinal"): ", mean over cuts",
            ("auroc", "multiclass"): ", mean over classes", ("auroc", "multilabel"): ", mean over classes",
            }.get((metric, task.kind), "")  # fmt: skip
    return _NAMES.get(metric, metric.replace("_", " ")) + unit


def _number(value: float, digits: int) -> str:
    """A number that is never rounded up to a perfect 1."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}f}"
    if abs(float(text)) == 1.0 and abs(value) < 1.0:
        return _number(value, digits + 1) if digits < 4 else f"{math.copysign(0.9999, value)}"
    return text


def interval_text(found: Interval, digits: int = 3) -> str:
    """Write "0.912 (0.861 to 0.953)", or without interval where none could be made."""
    value = _number(found.value, digits)
    if math.isnan(found.value) or math.isnan(found.low):
        return value
    return f"{value} ({_number(found.low, digits)} to {_number(found.high, digits)})"


def sentence(evaluation: Evaluation, t: TaskEvaluation) -> str:
    """Say in one sentence how good a task is, with interval, slides and patients."""
    found, name = t.headline, metric_name(t.primary, t.task)
    who = f"{t.n:,} {_JUDGED.get(evaluation.judged, f'slides ({evaluation.judged})')} of {t.n_patients:,} patients"
    if math.isnan(found.value):
        return f"{name} cannot be said on {who}: it needs cases that differ in the truth."
    within = "no interval"
    if not math.isnan(found.low):
        within = f"95 % interval {_number(found.low, 2)} to {_number(found.high, 2)}"
    return f"{name} {_number(found.value, 2)} ({within}) on {who}."


def remarks(evaluation: Evaluation, t: TaskEvaluation) -> tuple[str, ...]:
    """Say what the sentence must not be read without."""
    found, said = t.headline, []
    if evaluation.judged == "val":
        said.append(
            "These slides chose epoch, temperature and thresholds, so every figure here flatters; judge on slides that had no part in any choice."
        )
    if evaluation.judged == "out-of-fold":
        said.append("Each slide was judged by the model of the fold that had not seen it.")
    if found.low == found.high:
        said.append(
            "Every resample of patients gives the same figure, so the interval shows no spread: that is not certainty."
        )
    if t.n_unknown:
        said.append(f"{t.n_unknown:,} judged slides have no known {t.task.name} and are left out here.")
    if t.n_patients < 30:
        said.append(f"{t.n_patients} patients are few: intervals from so few resampled patients tend to be too narrow.")
    return tuple(said)


def metric_grid(evaluation: Evaluation, t: TaskEvaluation) -> Grid:
    """All metrics of a task with their intervals."""
    rows = tuple((metric_name(m, t.task), _number(i.value, 3), _within(i)) for m, i in t.metrics.items())
    how = (
        f"n = {t.n:,} slides of {t.n_patients:,} patients; intervals: {evaluation.n_resamples:,} resamples of patients."
    )
    return Grid(("metric", "value", "95 % interval"), rows, how)


def _within(i: Interval) -> str:
    return "-" if math.isnan(i.low) else f"{_number(i.low, 3)} to {_number(i.high, 3)}"


def operating_grid(evaluation: Evaluation, t: TaskEvaluation) -> Grid:
    """Thresholds and their rates on the judged cases."""
    has_labels = len({r.label for r in t.operating}) > 1
    rows = tuple(
        (
            (f"{r.label}: " if has_labels else "") + r.name.replace("_", " ").replace("youden", "Youden's"),
            f"{r.threshold:.3f}",
            *(interval_text(i, 2) for i in (r.sensitivity, r.specificity, r.ppv, r.npv)),
        )
        for r in t.operating
    )
    parts = sorted({r.chosen_on for r in t.operating} - {""})
    note = f"Thresholds other than the one in use were chosen on: {', '.join(parts)}." if parts else ""
    if parts and (parts != ["val"] or evaluation.judged == "val"):
        note += " On the very slides they are shown for, they look better than they are."
    note += " PPV and NPV hold for the share of positives among these slides."
    return Grid(("threshold", "probability", "sensitivity", "specificity", "PPV", "NPV"), rows, note.strip())


def calibration_grid(t: TaskEvaluation) -> Grid | None:
    """What the temperature does to the expected calibration error."""
    c = t.calibration
    if c is None:
        return None
    head: tuple[str, ...] = ("probabilities", "temperature", "expected calibration error", "error of the bins drawn")
    rows: tuple[tuple[str, ...], ...] = (("as trained", "1", _number(c.ece_before, 4), _number(_gap(c.bins_before), 4)),)
    if c.temperatures != (1.0,):
        used = ", ".join(f"{t:.3f}" for t in c.temperatures)
        rows += (("calibrated", used, _number(c.ece_after, 4), _number(_gap(c.bins_after), 4)),)
    note = "Expected calibration error: ten bins of each decision's largest probability. 0 is perfect; few cases raise it by chance."
    if len(c.temperatures) > 1:
        note += " Each fold has its own temperature."
    if t.task.kind not in ("binary", "multilabel"):
        head, rows = head[:3], tuple(row[:3] for row in rows)  # the bins drawn are those of the error
    return Grid(head, rows, note)


def _gap(bins: Sequence[Bin]) -> float:
    """Mean distance of the share that came true from the stated probability, weighted by cases."""
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in bins if b.n) / n if n else math.nan


def group_grid(t: TaskEvaluation, groups: Sequence[GroupScore], what: str) -> Grid:
    """The primary metric by site, part or seed, with a line on the spread where it says something."""
    name = metric_name(t.primary, t.task)
    rows = tuple(
        (g.name, f"{g.n:,}", f"{g.n_patients:,}", interval_text(g.score) if g.score else g.why) for g in groups
    )
    spread = {"seed": t.seed_spread, "part": t.fold_spread}.get(what)
    note = ""
    if spread is not None:
        of = "seeds" if what == "seed" else "folds"
        note = (f"Over {spread.n} {of}: mean {_number(spread.mean, 3)}, from {_number(spread.low, 3)} to "
                f"{_number(spread.high, 3)}, standard deviation {_number(spread.spread, 3)}.")  # fmt: skip
    return Grid((what, "slides", "patients", f"{name} (95 % interval)"), rows, note)


def comparison_grid(pairs: Sequence[tuple[str, str, str, Comparison]], names: tuple[str, str]) -> Grid:
    """Two models on the same cases.

    Args:
        pairs: task, metric, test, and what it found.
        names: of the first and the second run.
    """
    rows = tuple(
        (task, metric, f"{c.n:,}", _number(c.a, 3), _number(c.b, 3),
         interval_text(Interval(c.difference, c.low, c.high, c.n)), "-" if math.isnan(c.p) else f"{c.p:.2g}", test)
        for task, metric, test, c in pairs
    )  # fmt: skip
    return Grid(("task", "metric", "slides", *names, "difference (95 % interval)", "p", "test"), rows,
                "Same slides for both. A difference above 0 is in favour of the first; p is two-sided, not corrected for several tasks.")  # fmt: skip


def splits_grid(sides: Mapping[str, Sequence[Member]], tasks: tuple[TaskSettings, ...]) -> Grid:
    """Slides, patients and classes of each side; regression gives the range, survival the events."""
    heads = [h for t in tasks for h in _side_heads(t, len(tasks) > 1)]
    rows = []
    for name, members in sides.items():
        shape = (len(members), sum(t.n_targets for t in tasks))
        parts = split_targets(np.array([m.targets for m in members], dtype=np.float64).reshape(shape), tasks)
        cells = [c for t, y in zip(tasks, parts, strict=True) for c in _side_cells(t, y)]
        rows.append((name, f"{len(members):,}", f"{len({m.record.patient_id for m in members}):,}", *cells))
    return Grid(("", "slides", "patients", *heads), tuple(rows))


def _side_heads(task: TaskSettings, is_named: bool) -> list[str]:
    prefix = f"{task.name}: " if is_named else ""
    if task.kind == "regression":
        return [f"{prefix}median (range)"]
    return [f"{prefix}{c}" for c in (("events", "left before") if task.kind == "survival" else task.classes)]


def _side_cells(task: TaskSettings, y: np.ndarray) -> list[str]:
    if task.kind == "regression":
        v = y[~np.isnan(y)]
        return [f"{np.median(v):.4g} ({v.min():.4g} to {v.max():.4g})" if len(v) else "-"]
    if task.kind == "survival":
        return [f"{int((y[:, 1] == e).sum()):,}" for e in (1, 0)]
    counts = (y == 1).sum(axis=0) if task.kind == "multilabel" else [(y == k).sum() for k in range(len(task.classes))]
    return [f"{int(n):,}" for n in counts]
