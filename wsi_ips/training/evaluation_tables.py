"""An evaluation as files: metrics.json with everything, metrics.csv with one number a row.

JSON has no NaN: what is undefined is null. In the CSV it is an empty cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wsi_ips.report.training_page import Grid
from wsi_ips.stats.intervals import Interval
from wsi_ips.tables import csv_bytes
from wsi_ips.training.evaluation import Evaluation, GroupScore, TaskEvaluation

__all__ = ["evaluation_json", "grid_csv", "json_able", "metrics_csv"]

_COLUMNS = ("task", "group", "name", "metric", "value", "low", "high", "n", "n_patients")


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Lay an evaluation out for metrics.json; the pairs of regression stand in cases.csv alone."""
    return {
        "judged": evaluation.judged, "n": evaluation.n, "n_patients": evaluation.n_patients,
        "n_resamples": evaluation.n_resamples, "seed": evaluation.seed, "interval": "95 %, percentile, patients resampled",
        "tasks": {t.task.name: _task(t) for t in evaluation.tasks},
    }  # fmt: skip


def _task(t: TaskEvaluation) -> dict[str, Any]:
    whole = {
        name: json_able(getattr(t, name))
        for name in ("primary", "n", "n_unknown", "n_patients", "class_counts", "metrics", "confusion", "curves",
                     "calibration", "operating", "groups", "sites", "parts", "fold_spread", "seeds", "seed_spread", "worst")
    }  # fmt: skip
    return {"kind": t.task.kind, "classes": list(t.task.classes), **whole}


def json_able(value: Any) -> Any:
    """Turn tuples with names into objects, arrays into lists, NaN into null."""
    if hasattr(value, "_asdict"):
        return {k: json_able(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {str(k): json_able(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_able(v) for v in value]
    if isinstance(value, np.ndarray):
        return json_able(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def grid_csv(grid: Grid) -> bytes:
    """Write a table as CSV."""
    return csv_bytes([grid.head, *grid.rows])


def metrics_csv(evaluation: Evaluation) -> bytes:
    """Lay all numbers with their intervals out as CSV, one a row."""
    table: list[Sequence[object]] = [_COLUMNS]
    for t in evaluation.tasks:
        for group, name, metric, found, n_patients in _rows(evaluation, t):
            numbers = ["" if math.isnan(v) else repr(float(v)) for v in found[:3]]
            table.append([t.task.name, group, name, metric, *numbers, found.n, n_patients])
    return csv_bytes(table)


def _rows(evaluation: Evaluation, t: TaskEvaluation) -> Iterator[tuple[str, str, str, Interval, int]]:
    for metric, found in t.metrics.items():
        yield "judged", evaluation.judged, metric, found, t.n_patients
    for row in t.operating:
        for metric in ("sensitivity", "specificity", "ppv", "npv"):
            yield (
                "threshold",
                f"{row.label}: {row.name} ({row.threshold:.4g})",
                metric,
                getattr(row, metric),
                t.n_patients,
            )
    groups: tuple[tuple[str, tuple[GroupScore, ...]], ...] = (("site", t.sites), ("part", t.parts), ("seed", t.seeds))
    for group, some in groups:
        for g in some:
            nothing = Interval(math.nan, math.nan, math.nan, g.n)
            yield group, g.name, t.primary, g.score or nothing, g.n_patients
