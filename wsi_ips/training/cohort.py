"""What is asked of the slides: label columns into tasks with classes, intervals and scales that follow from the data.

Classes are named by all slides that are not excluded; whatever is estimated from labels (the intervals of survival,
the scale of a regression) comes from the slides given: training slides alone, or those of all folds, which share it.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.records import read_number
from wsi_ips.tables import shown
from wsi_ips.tasks import TaskKind, TaskSettings
from wsi_ips.training.strata import refuse_absent
from wsi_ips.training.targets import NO_CLASS, Cohort, Faults, Member, labels_in, members_of, number_cell, targets_of

__all__ = ["Cohort", "Member", "members_of", "refuse_absent", "resolve_tasks", "tasks_of"]

_MISSING = ("na", "n/a", "nan", "null", "#n/a")
_ESTIMATED = ("regression", "survival")
_MANY = 30  # more different numbers than this are measurements, not classes


def tasks_of(
    manifest: Manifest,
    columns: Sequence[str],
    classes: Mapping[str, Sequence[str]] | None = None,
    kinds: Mapping[str, TaskKind] | None = None,
    events: Mapping[str, str] | None = None,
) -> tuple[TaskSettings, ...]:
    """Make one task a label column: of the kind named, else binary for two classes and multiclass for more.

    Intervals and scales stay open, since they belong to training slides: `resolve_tasks` fills them in after the split.

    Args:
        manifest: read with all these columns, and those of `events`.
        columns: names of label columns.
        classes: order of classes by column; by default sorted, numbers by value. Binary: the last is the positive one.
        kinds: kind by column.
        events: survival: column of events by column of times.

    Raises:
        ManifestError: every cell and column that cannot be learned from. ConfigError: classes that no kind has.
    """
    for option, names in (("--kind", kinds or {}), ("--event", events or {}), ("--classes", classes or {})):
        strange = [name for name in names if name not in columns]
        if strange:
            raise ConfigError(f"{option} {strange[0]}: no label column of that name; there are {', '.join(columns)}")
    for column, kind in (kinds or {}).items():
        if kind not in (known := get_args(TaskKind)):
            near = difflib.get_close_matches(kind, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "there are"
            raise ConfigError(f"--kind {column}={kind}: no such kind of task; {hint} {', '.join(known) if not near else ''}".rstrip())
    asked = []
    for column in columns:
        order = tuple((classes or {}).get(column, ()))
        found = order or {label for r in _usable(manifest) if (label := r.labels.get(column))}
        counted: TaskKind = "survival" if column in (events or {}) else "binary" if len(found) == 2 else "multiclass"
        kind = (kinds or {}).get(column) or counted
        event = (events or {}).get(column, "")
        asked.append(TaskSettings().replace(name=column, kind=kind, classes=order, event_column=event))
    resolved = resolve_tasks(manifest, asked)
    return tuple(a if a.kind in _ESTIMATED else r for a, r in zip(asked, resolved, strict=True))


def resolve_tasks(
    manifest: Manifest, asked: Sequence[TaskSettings], records: Sequence[SlideRecord] | None = None
) -> tuple[TaskSettings, ...]:
    """Fill in what tasks leave open, and check every cell of their columns.

    Targets do not depend on what `records` decides, so tasks can be resolved from all slides before the split, and
    again from what was asked with the training records when the split is known. What is set already stays.

    Args:
        manifest: read with all of the tasks' columns.
        asked: kinds decided; classes, cuts, center and spread may be open.
        records: slides that intervals and scales are estimated from: the training split; None: all, for a split only.

    Raises:
        ManifestError: every cell and column that cannot be learned from, with line, value and cure.
    """
    faults = Faults(manifest)
    usable = _usable(manifest)
    learn = usable if records is None else list(records)
    names = [t.name for t in asked]
    tasks = []
    for task in asked:
        if names.count(task.name) > 1:
            faults.add_column(task.label_column, f"there are {names.count(task.name)} tasks named {task.name!r}")
        if not faults.has_columns(task, [*usable, *learn]):
            continue
        if task.kind == "regression":
            resolved = _scaled(task, learn, faults)
        elif task.kind == "survival":
            resolved = _cut(task, learn, faults)
        else:
            resolved = _classed(task, usable, faults)
        if resolved.is_resolved:
            for record in usable:
                targets_of(record, resolved, faults)
        tasks.append(resolved)
    faults.raise_any()
    return tuple(tasks)


def _usable(manifest: Manifest) -> list[SlideRecord]:
    return [r for r in manifest.records if not r.is_excluded]


def _classed(task: TaskSettings, records: Sequence[SlideRecord], faults: Faults) -> TaskSettings:
    """Name the classes."""
    if task.classes:
        return task
    column = task.label_column
    found: dict[str, SlideRecord] = {}
    for record in records:
        for label in labels_in(record.labels[column], task):
            found.setdefault(label, record)
    for label, record in found.items():
        if label.lower() in _MISSING:
            faults.add(record, column, f"{shown(label)} looks like a gap; leave the cell empty, or name all classes")
        if task.kind == "multilabel" and label.lower() in NO_CLASS:
            faults.add(record, column, f"{shown(label)} stands for no class and not beside others; remove it")
    for same in _alike(found):
        faults.add(found[same[-1]], column, f"{' and '.join(map(repr, same))} look like one class; write them alike")
    classes = tuple(sorted(found, key=_by_number))
    wrong = _classes_fault(task, classes)
    if wrong:
        faults.add_column(column, wrong)
        return task
    return task.replace(classes=classes)


def _classes_fault(task: TaskSettings, classes: tuple[str, ...]) -> str:
    n, listed = len(classes), ", ".join(classes[:8]) + (" .." if len(classes) > 8 else "")
    if n < (1 if task.kind == "multilabel" else 2):
        need = "a class" if task.kind == "multilabel" else "two classes"
        return f"learning needs {need}, found {listed or 'no label'}"
    if task.kind == "binary" and n > 2:
        return f"kind binary has two classes, found {n} ({listed}); correct them, or say kind multiclass or ordinal"
    numbers = sum(read_number(c) is not None for c in classes)
    if task.kind in ("multiclass", "ordinal") and n > _MANY and numbers == n:
        return f"{n} different numbers ({listed}); say kind regression, or name the classes"
    if task.kind == "ordinal" and math.isinf(max(map(_by_number, classes))[1]):
        return f"the order of {listed} cannot be told from their names; name the classes in rising order"
    return ""


def _alike(labels: Mapping[str, SlideRecord]) -> list[list[str]]:
    """Group labels that differ but for case, or are one number."""
    groups: dict[object, list[str]] = defaultdict(list)
    for label in labels:
        value = read_number(label)
        groups[label.casefold() if value is None else value].append(label)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _by_number(text: str) -> tuple[str, float, str]:
    """Sort numbers by value, "G2" before "G10", and other names by their letters behind."""
    value = read_number(text)
    if value is not None:
        return "", value, text
    stem, digits = re.fullmatch(r"(.*?)(\d*)", text, re.DOTALL | re.ASCII).groups()  # type: ignore[union-attr]
    return stem, float(digits) if digits else math.inf, text


def _scaled(task: TaskSettings, records: Sequence[SlideRecord], faults: Faults) -> TaskSettings:
    """Give a regression the mean and standard deviation of its training values."""
    if (task.center, task.spread) != (0.0, 1.0):
        return task
    values = np.array([number_cell(r, task.label_column, faults) for r in records], dtype=np.float64)
    known = np.sort(values[np.isfinite(values)])  # sorted, so that the sum does not depend on the order of rows
    if len(known) < 2 or known[0] == known[-1]:
        found = f"found {known[0]:g} only" if len(known) else "found none"
        faults.add_column(task.label_column, f"learning needs two different numbers in training, {found}")
        return task
    return task.replace(center=float(known.mean()), spread=float(known.std()))


def _cut(task: TaskSettings, records: Sequence[SlideRecord], faults: Faults) -> TaskSettings:
    """Cut time so that as many seen events of training fall into each interval, and name the intervals."""
    cuts = task.cuts
    if not cuts:
        both = [targets_of(r, task, faults) for r in records]
        seen = np.array([time for time, event in both if event == 1.0], dtype=np.float64)
        shares = np.arange(1, task.n_intervals) / task.n_intervals
        found = np.quantile(seen, shares) if len(seen) else np.empty(0)
        cuts = tuple(sorted({c for q in found if (c := float(f"{q:.4g}")) > 0.0}))
    if not cuts:
        text = f"learning needs seen events after time 0 in training, found {len(seen)} events"
        faults.add_column(task.label_column, text)
        return task
    if task.classes:
        return task.replace(cuts=cuts)
    marks = [f"{c:g}" if float(f"{c:g}") == c else repr(c) for c in (0.0, *cuts)]
    names = [f"{a}-{b}" for a, b in itertools.pairwise(marks)]
    return task.replace(cuts=cuts, classes=(*names, f"{marks[-1]} or later"))
