"""How good a model is on given cases: one evaluation in numbers, the same for `finetune` and `evaluate`.

Which cases judge: the part `test` where there is one, else the folds together (each case by the model that had not
seen it), else everything there is. Other parts get a line of their own. Of several trainings that differ by seed alone
the first one is judged, since it is the one that is kept; the others give the spread. Intervals resample patients.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.stats.intervals import Interval, patient_bootstrap
from wsi_ips.stats.metrics import primary_metric, primary_score, task_metrics
from wsi_ips.tasks import TaskSettings, called_class, predicted_number, probabilities, split_outputs, split_targets
from wsi_ips.training.assess import (
    Calibration,
    ClassCurves,
    OperatingRow,
    RiskGroup,
    calibrate,
    case_losses,
    class_counts,
    class_curves,
    confusion,
    intervals_of,
    operating_rows,
    risk_groups,
    views,
)
from wsi_ips.training.cases import CaseTable

__all__ = ["Evaluation", "GroupScore", "Spread", "TaskEvaluation", "WorstCase", "evaluate_cases", "judged_cases"]

_MIN_SITE = 10  # cases below which a site's interval says nothing
_N_WORST = 12
_FOLD = re.compile(r"fold \S+")


class GroupScore(NamedTuple):
    """The primary metric on some of the cases."""

    name: str
    n: int
    n_patients: int
    score: Interval | None
    why: str = ""  # why there is none


class Spread(NamedTuple):
    """The primary metric over several trainings: seeds, or folds."""

    n: int
    mean: float
    low: float  # smallest
    high: float  # largest
    spread: float  # standard deviation, n - 1


class WorstCase(NamedTuple):
    """A case far from its truth."""

    slide_id: str
    site: str
    part: str
    truth: str
    called: str
    number: float  # probability of the true class, predicted value, or risk; NaN for multilabel
    loss: float


@dataclass(frozen=True)
class TaskEvaluation:
    """Everything about one task."""

    task: TaskSettings
    primary: str  # name of the primary metric
    n: int  # cases with a known target
    n_unknown: int
    n_patients: int
    class_counts: dict[str, int]
    metrics: dict[str, Interval]  # the primary one first
    confusion: np.ndarray | None  # (K, K) true by called
    curves: tuple[ClassCurves, ...]
    calibration: Calibration | None
    operating: tuple[OperatingRow, ...]
    groups: tuple[RiskGroup, ...]
    pairs: tuple[np.ndarray, np.ndarray] | None  # regression: true and predicted (n,)
    sites: tuple[GroupScore, ...]
    parts: tuple[GroupScore, ...]
    fold_spread: Spread | None
    seeds: tuple[GroupScore, ...]
    seed_spread: Spread | None
    worst: tuple[WorstCase, ...]

    @property
    def headline(self) -> Interval:
        """The primary metric on the judged cases."""
        return self.metrics[self.primary]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the judged cases."""

    judged: str  # "test", "out-of-fold", "val", ...
    n: int
    n_patients: int
    n_resamples: int
    seed: int
    tasks: tuple[TaskEvaluation, ...]


def evaluate_cases(table: CaseTable, *, n_resamples: int = 1000, seed: int = 0, everyone: bool = False) -> Evaluation:
    """Judge cases, for every task that any of them has a known target of.

    Args:
        table: of one or several parts, of one or several seeds.
        n_resamples: resamplings of patients behind every interval.
        seed: of the resampling.
        everyone: every part judges, not the test part alone.

    Raises:
        ConfigError: no case, none with a known target, or a slide twice among those judged.
    """
    judged, name = judged_cases(table, everyone=everyone)
    judges = [_Judge(table, i, n_resamples, seed) for i in range(len(table.tasks))]
    work = [j.run(judged, name) for j in judges if len(j.side(judged).outputs)]
    if not work:
        names = ", ".join(repr(t.name) for t in table.tasks)
        raise ConfigError(f"task {names}: no case with a known target among {len(judged)} ({name})")
    return Evaluation(name, len(judged), len(set(judged.patient_ids)), n_resamples, seed, tuple(work))


def judged_cases(table: CaseTable, *, everyone: bool = False) -> tuple[CaseTable, str]:
    """Take the cases that judge, and say what they are called.

    Raises:
        ConfigError: no case, or a slide twice among those judged.
    """
    if not len(table):
        raise ConfigError("there is no case to judge; give slides with a label and a prediction")
    first = table.rows(np.array([s == table.seeds[0] for s in table.seeds], dtype=bool))
    folds = [p for p in dict.fromkeys(first.parts) if _FOLD.fullmatch(p)]
    if everyone:
        judged, name = first, "all"
    elif "test" in first.parts:
        judged, name = first.in_part("test"), "test"
    elif folds:
        judged, name = first.in_part(*folds), "out-of-fold"
    else:
        judged, name = first, "/".join(dict.fromkeys(first.parts))
    twice = [s for s, n in Counter(judged.slide_ids).items() if n > 1]
    if twice:
        raise ConfigError(
            f"slide {twice[0]} stands more than once among the judged cases ({name}); each slide judges once"
        )
    return judged, name


class _Side(NamedTuple):
    """One task's part of some cases, without unknown targets."""

    cases: CaseTable
    outputs: np.ndarray
    targets: np.ndarray


class _Judge:
    """Judges one task; holds how intervals are made."""

    def __init__(self, table: CaseTable, task: int, n_resamples: int, seed: int) -> None:
        self.table, self.at, self.task = table, task, table.tasks[task]
        self.again = {"n_resamples": n_resamples, "seed": seed}

    def side(self, cases: CaseTable) -> _Side:
        y = split_targets(cases.targets, cases.tasks)[self.at]
        unknown = np.isnan(y)
        known = ~(unknown.all(axis=1) if self.task.kind == "multilabel" else unknown.any(axis=1))
        return _Side(cases.rows(known), split_outputs(cases.outputs, cases.tasks)[self.at][known], y[known])

    def run(self, judged: CaseTable, name: str) -> TaskEvaluation:
        side, task = self.side(judged), self.task
        cases, z, y = side
        by_seed, by_part = self._by_seed(judged), self._by_part()
        return TaskEvaluation(
            task=task,
            primary=primary_metric(task),
            n=len(z),
            n_unknown=len(judged) - len(z),
            n_patients=len(set(cases.patient_ids)),
            class_counts=class_counts(y, task),
            metrics=self._metrics(side),
            confusion=confusion(z, y, task),
            curves=class_curves(views(z, y, task, cases.patient_ids), **self.again),
            calibration=calibrate(z, y, task, cases.temperatures[:, self.at]),
            operating=self._operating(side, name),
            groups=risk_groups(z, y, task),
            pairs=(y[:, 0], predicted_number(z, task)) if task.kind == "regression" else None,
            sites=self._by(judged, judged.sites, fewest=_MIN_SITE) if len(set(judged.sites) - {""}) > 1 else (),
            parts=by_part,
            fold_spread=_spread(tuple(g for g in by_part if _FOLD.fullmatch(g.name))),
            seeds=by_seed,
            seed_spread=_spread(by_seed),
            worst=_worst(side, task),
        )

    def _metrics(self, side: _Side) -> dict[str, Interval]:
        def measure(rows: np.ndarray) -> list[float]:
            return list(task_metrics(side.outputs[rows], side.targets[rows], self.task).values())

        names = task_metrics(side.outputs, side.targets, self.task)
        return dict(zip(names, intervals_of(measure, side.cases.patient_ids, **self.again), strict=True))

    def _score(self, name: str, cases: CaseTable, fewest: int = 1) -> GroupScore:
        """The primary metric on some cases, or why there is none."""
        chosen, z, y = self.side(cases)
        n, n_patients = len(z), len(set(chosen.patient_ids))
        value = primary_score(z, y, self.task) if n else float("nan")
        if n < fewest or np.isnan(value):
            why = f"fewer than {fewest} cases" if n < fewest else "cannot be said of these cases"
            return GroupScore(name, n, n_patients, None, why)

        def measure(rows: np.ndarray) -> float:
            return primary_score(z[rows], y[rows], self.task)

        return GroupScore(name, n, n_patients, patient_bootstrap(measure, chosen.patient_ids, **self.again))

    def _by(self, cases: CaseTable, names: tuple[str, ...], fewest: int = 1) -> tuple[GroupScore, ...]:
        groups = {n: cases.rows(np.array([n == m for m in names], dtype=bool)) for n in dict.fromkeys(names)}
        return tuple(self._score(n or "unknown", groups[n], fewest) for n in sorted(groups, key=_natural))

    def _by_part(self) -> tuple[GroupScore, ...]:
        first = self._first()
        return self._by(first, first.parts) if len(set(first.parts)) > 1 else ()

    def _first(self) -> CaseTable:
        seeds = self.table.seeds
        return self.table.rows(np.array([s == seeds[0] for s in seeds], dtype=bool))

    def _by_seed(self, judged: CaseTable) -> tuple[GroupScore, ...]:
        """The judged parts again, once for each seed; () for a single seed."""
        seeds = dict.fromkeys(self.table.seeds)
        same = self.table.in_part(*set(judged.parts))
        by_seed = {s: same.rows(np.array([s == t for t in same.seeds], dtype=bool)) for s in seeds}
        return tuple(self._score(f"seed {s}", c) for s, c in by_seed.items()) if len(seeds) > 1 else ()

    def _operating(self, side: _Side, name: str) -> tuple[OperatingRow, ...]:
        """Thresholds chosen on the validation cases where there are any besides the judged ones, else on these."""
        if self.task.kind not in ("binary", "multilabel"):
            return ()
        val = self.side(self._first().in_part("val")) if name == "test" else None
        part, on = ("val", val) if val is not None and len(val.outputs) else (name, side)
        in_use = 0.5 if self.task.threshold is None else self.task.threshold
        judged = views(side.outputs, side.targets, self.task, side.cases.patient_ids)
        chosen = views(on.outputs, on.targets, self.task, on.cases.patient_ids)
        rows = [operating_rows(j, part, c, in_use, **self.again) for j, c in zip(judged, chosen, strict=True)]
        return tuple(row for some in rows for row in some)


def _natural(text: str) -> tuple[str | int, ...]:
    """Sort key under which fold 10 follows fold 9."""
    return tuple(int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", text))


def _spread(by_seed: tuple[GroupScore, ...]) -> Spread | None:
    values = np.array([g.score.value for g in by_seed if g.score is not None])
    if len(values) < 2:
        return None
    return Spread(
        len(values), float(values.mean()), float(values.min()), float(values.max()), float(values.std(ddof=1))
    )


def _worst(side: _Side, task: TaskSettings) -> tuple[WorstCase, ...]:
    """The cases of the largest loss, the worst first; equal ones in the table's order."""
    losses, probs = case_losses(side.outputs, side.targets, task), probabilities(side.outputs, task)
    numbers = predicted_number(side.outputs, task)
    found = []
    for i in np.argsort(-losses, kind="stable")[:_N_WORST]:
        y, number = side.targets[i], float(numbers[i])
        if task.kind in ("binary", "multiclass", "ordinal"):
            truth, number = task.classes[int(y[0])], float(probs[i, int(y[0])])
        elif task.kind == "multilabel":
            truth = ";".join(c for c, v in zip(task.classes, y, strict=True) if v == 1) or "none"
        else:
            truth = f"{y[0]:.6g}" + ("" if task.kind == "regression" else " (event)" if y[1] == 1 else " (left)")
        c = side.cases
        called = called_class(probs[i], side.outputs[i], task)
        found.append(
            WorstCase(c.slide_ids[i], c.sites[i], c.parts[i], truth, called, number, float(losses[i]))
        )
    return tuple(found)
