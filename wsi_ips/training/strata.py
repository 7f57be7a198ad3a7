"""Which kinds of patient a split must spread evenly, what a side must not lack, and cohorts too small to trust.

Shapes: n slides, Q targets of all tasks, Q_t of one.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from wsi_ips.errors import ManifestError, Note
from wsi_ips.tasks import TaskSettings, split_targets
from wsi_ips.training.targets import Member

__all__ = ["absent_notes", "absent_problems", "refuse_absent", "size_notes", "strata_of"]

_ONE_CLASS = ("binary", "multiclass", "ordinal")  # kinds with exactly one class a slide
_BINS = 4
# below these a result says more about the draw than about the model
_MIN_TRAIN_SLIDES, _MIN_TRAIN_PATIENTS, _MIN_OF_CLASS, _MIN_JUDGED = 100, 20, 10, 30


def strata_of(members: Sequence[Member], task: TaskSettings) -> dict[str, int]:
    """Name every patient's kind by the labels of its slides: the commonest, of several the highest; -1 unknown.

    Class kinds: the class. Multilabel: the rarest of the slide's classes. Regression: the quarter that the value is in.
    Survival: whether the event was seen, and whether the time lies above the median of such slides.
    """
    if not members:
        return {}
    targets = np.array([m.targets[: task.n_targets] for m in members], dtype=np.float64)  # (n, Q_t)
    is_known = ~np.isnan(targets).any(axis=1)
    strata = np.full(len(members), -1, dtype=np.int64)
    strata[is_known] = _kinds(targets[is_known], task)
    of_patient: dict[str, list[int]] = defaultdict(list)
    for m, s in zip(members, strata.tolist(), strict=True):
        of_patient[m.record.patient_id].append(s)
    return {p: max(Counter(found).items(), key=lambda item: (item[1], item[0]))[0] for p, found in of_patient.items()}


def _kinds(y: np.ndarray, task: TaskSettings) -> np.ndarray:
    if task.kind == "multilabel":
        rank = np.argsort(np.argsort(-y.sum(axis=0), kind="stable"), kind="stable")  # the rarest class is the highest
        return np.where(y > 0.0, rank[None] + 1, 0).max(axis=1)
    if task.kind == "regression":
        inner = np.quantile(y[:, 0], np.arange(1, _BINS) / _BINS) if len(y) else np.empty(0)
        return np.searchsorted(inner, y[:, 0], side="right")
    if task.kind == "survival":
        kinds = (2 * y[:, 1]).astype(np.int64)
        for event in (0.0, 1.0):
            same = y[:, 1] == event
            if same.any():
                kinds[same] += y[same, 0] > np.median(y[same, 0])
        return kinds
    return y[:, 0].astype(np.int64)


def refuse_absent(sides: Mapping[str, Sequence[Member]], tasks: tuple[TaskSettings, ...]) -> None:
    """Refuse to learn or to judge without every class, for kinds with one class a slide.

    Args:
        sides: the slides of `train` and, where any decide, of `val`.
        tasks: all.

    Raises:
        ManifestError: names side, task and class.
    """
    problems = absent_problems(sides, tasks)
    if problems:
        raise ManifestError(problems)


def absent_problems(
    sides: Mapping[str, Sequence[Member]], tasks: tuple[TaskSettings, ...], name: str = ""
) -> list[str]:
    """Say which classes are absent from `train` or `val`, as far as `sides` names them; `name` is the fold's."""
    problems = []
    for side in [s for s in ("train", "val") if s in sides]:
        for task, y in zip(tasks, _targets(sides[side], tasks), strict=True):
            absent = [c for k, c in enumerate(task.classes) if k not in y[:, 0]] if task.kind in _ONE_CLASS and not task.allow_absent else []
            if absent:
                where = f"{name}, {side}" if name else side
                near = [(c, difflib.get_close_matches(c, [o for o in task.classes if o != c], n=1, cutoff=0.75)) for c in absent]
                typo = "".join(f"; is {c!r} a slip for {found[0]!r}?" for c, found in near if found)
                problems.append(
                    f"{where}: no slide of class {', '.join(absent)} ({task.name}); add some, or change the split{typo}"
                )
            if np.isnan(y).all():
                where = f"{name}, {side}" if name else side
                problems.append(f"{where}: no slide with a label for {task.name}; add some, or change the split")
    return list(dict.fromkeys(problems))


def absent_notes(sides: Mapping[str, Sequence[Member]], tasks: tuple[TaskSettings, ...], name: str = "") -> list[Note]:
    """Warn of what a side lacks and can be learned without: labels of a multilabel task, events, classes to test."""
    notes = []
    for side in ("train", "val", "test"):
        if not sides[side]:
            continue
        for task, y in zip(tasks, _targets(sides[side], tasks), strict=True):
            lacks: list[str] = []
            if np.isnan(y).all():
                lacks = ["a label"]
            elif task.kind == "multilabel":
                lacks = [c for k, c in enumerate(task.classes) if not (y[:, k] == 1.0).any()]
            elif task.kind == "survival" and not (y[:, 1] == 1.0).any():
                lacks = ["seen event"]
            elif task.kind in _ONE_CLASS and side == "test":
                lacks = [c for k, c in enumerate(task.classes) if k not in y[:, 0]]
            if lacks:
                where = f"{name}, {side}" if name else side
                text = f"{where}: 0 of {len(y)} slides have {', '.join(lacks)} ({task.name}); it cannot be judged there"
                notes.append(Note("E_SMALL_COHORT", text))
    return notes


def size_notes(
    train: Sequence[Member], val: Sequence[Member], test: Sequence[Member], tasks: tuple[TaskSettings, ...]
) -> list[Note]:
    """Warn, with numbers, of cohorts too small for the result to be trusted."""
    texts = []
    if len(train) < _MIN_TRAIN_SLIDES:
        texts.append(
            f"{len(train)} training slides, fewer than {_MIN_TRAIN_SLIDES}: another draw may give another model"
        )
    n_patients = len({m.record.patient_id for m in train})
    if n_patients < _MIN_TRAIN_PATIENTS:
        texts.append(
            f"{n_patients} training patients, fewer than {_MIN_TRAIN_PATIENTS}: slides of one are no new cases"
        )
    for task, y in zip(tasks, _targets(train, tasks), strict=True):
        if task.kind in _ONE_CLASS:
            n_of = {c: int((y[:, 0] == k).sum()) for k, c in enumerate(task.classes)}
        elif task.kind == "multilabel":
            n_of = {c: int((y[:, k] == 1.0).sum()) for k, c in enumerate(task.classes)}
        elif task.kind == "survival":
            n_of = {"seen event": int((y[:, 1] == 1.0).sum())}
        else:
            continue
        rarest = min(n_of, key=lambda c: (n_of[c], c))
        if n_of[rarest] < _MIN_OF_CLASS:
            text = f"{n_of[rarest]} training slides of {rarest} ({task.name}), fewer than {_MIN_OF_CLASS}"
            texts.append(f"{text}: what is learned of it may be their accident")
    for what, members in (("validation", val), ("test", test)):
        n = len({m.record.patient_id for m in members})
        if 0 < n < _MIN_JUDGED:
            texts.append(f"{n} {what} patients, fewer than {_MIN_JUDGED}: the interval of any figure will be wide")
    return [Note("E_SMALL_COHORT", text) for text in texts]


def _targets(members: Sequence[Member], tasks: tuple[TaskSettings, ...]) -> list[np.ndarray]:
    """Targets (n, Q_t) of each task."""
    n_targets = sum(t.n_targets for t in tasks)
    return split_targets(np.array([m.targets for m in members], dtype=np.float64).reshape(-1, n_targets), tasks)
