"""Two runs on the same cases: is one better than the other, and by how much?

DeLong's test where cases are independent (a binary task, one slide a patient); patients are resampled for every
primary metric.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.stats.compare import Comparison, delong, paired_bootstrap
from wsi_ips.stats.metrics import primary_metric, primary_score
from wsi_ips.tasks import TaskSettings, split_outputs, split_targets
from wsi_ips.training.cases import CaseTable

__all__ = ["Compared", "compare_cases"]


class Compared(NamedTuple):
    """What a test says of one task."""

    task: str
    metric: str  # key of the primary metric
    test: str
    found: Comparison


def compare_cases(
    table: CaseTable, other: CaseTable, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[Compared, ...]:
    """Compare the outputs of two models for the same slides, task by task.

    Args:
        table: the first model's cases; its targets are the truth.
        other: the second model's cases; slides that only one of them has are left out.

    Raises:
        ConfigError: no slide or no task in common, or classes that differ.
    """
    place = {s: i for i, s in enumerate(other.slide_ids)}
    common = [i for i, s in enumerate(table.slide_ids) if s in place]
    if not common:
        raise ConfigError("the two runs have no judged slide in common; compare runs of the same cohort")
    a, b = table.rows(common), other.rows([place[table.slide_ids[i]] for i in common])
    theirs = {t.name: k for k, t in enumerate(b.tasks)}
    found: list[Compared] = []
    for k, task in enumerate(a.tasks):
        if task.name in theirs:
            _refuse_other(task, b.tasks[theirs[task.name]])
            found += _compare_task(a, b, (k, theirs[task.name]), n_resamples=n_resamples, seed=seed)
    if not found:
        ours = ", ".join(t.name for t in a.tasks)
        raise ConfigError(
            f"the two runs share no task: {ours}; {', '.join(theirs)}. Compare models that answer the same"
        )
    return tuple(found)


def _refuse_other(task: TaskSettings, other: TaskSettings) -> None:
    if (task.kind, task.classes) != (other.kind, other.classes):
        ours, theirs = (f"{t.kind}: {', '.join(t.classes)}" for t in (task, other))
        raise ConfigError(
            f"task {task.name!r} is not the same in both runs ({ours}; {theirs}); their figures cannot be compared"
        )


def _compare_task(a: CaseTable, b: CaseTable, at: tuple[int, int], *, n_resamples: int, seed: int) -> list[Compared]:
    task, other = a.tasks[at[0]], b.tasks[at[1]]
    y = split_targets(a.targets, a.tasks)[at[0]]
    unknown = np.isnan(y)
    known = ~(unknown.all(axis=1) if task.kind == "multilabel" else unknown.any(axis=1))
    if not known.any():
        return []
    y, patients = y[known], [p for p, k in zip(a.patient_ids, known, strict=True) if k]
    za, zb = split_outputs(a.outputs, a.tasks)[at[0]][known], split_outputs(b.outputs, b.tasks)[at[1]][known]
    # each model's numbers by its own temperature, centre, threshold; which of the two is told by the first column
    tagged_a, tagged_b = np.insert(za, 0, 0.0, axis=1), np.insert(zb, 0, 1.0, axis=1)

    def metric(z: np.ndarray, rows: np.ndarray) -> float:
        return primary_score(z[rows, 1:], y[rows], other if z[0, 0] else task)

    name = primary_metric(task)
    found = [Compared(task.name, name, "patients resampled",
                      paired_bootstrap(metric, tagged_a, tagged_b, patients, n_resamples=n_resamples, seed=seed))]  # fmt: skip
    if task.kind == "binary" and len(set(patients)) == len(patients):
        found.insert(0, Compared(task.name, name, "DeLong", delong(y[:, 0] == 1, za[:, 0], zb[:, 0])))
    return found
