"""The slides one learns from: labels into class numbers, patients into splits, leaks refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.errors import ManifestError, Note
from wsi_ips.manifest import Manifest, SlideRecord

__all__ = ["Cohort", "Member", "refuse_absent", "split_cohort", "tasks_of"]


@dataclass(frozen=True)
class Member:
    """A slide with its targets."""

    record: SlideRecord
    targets: tuple[int, ...]  # class number a task, -1 where unknown


@dataclass(frozen=True)
class Cohort:
    """Who learns, who decides the best epoch, who is never touched."""

    train: tuple[Member, ...]
    val: tuple[Member, ...]
    test: tuple[Member, ...]
    notes: tuple[Note, ...]


def tasks_of(
    manifest: Manifest, columns: Sequence[str], classes: Mapping[str, Sequence[str]] | None = None
) -> tuple[TaskSettings, ...]:
    """Make one task a label column: binary for two classes, multiclass for more.

    Args:
        columns: names of label columns.
        classes: order of classes by column; by default sorted, numbers by value. Binary: the last is the positive one.

    Raises:
        ManifestError: a column without two classes.
    """
    tasks, problems = [], []
    for column in columns:
        found = {r.labels[column] for r in manifest.records if not r.is_excluded and r.labels.get(column)}
        order = tuple((classes or {}).get(column) or sorted(found, key=_by_number))
        unknown = sorted(found - set(order))
        if unknown:
            problems.append(
                f"column {column!r}: labels {', '.join(unknown)} are not among the classes {', '.join(order)}"
            )
        elif len(order) < 2:
            problems.append(f"column {column!r}: learning needs two classes, found {', '.join(order) or 'no label'}")
        else:
            tasks.append(TaskSettings(name=column, kind="binary" if len(order) == 2 else "multiclass", classes=order))
    if problems:
        raise ManifestError(problems)
    return tuple(tasks)


def split_cohort(manifest: Manifest, tasks: tuple[TaskSettings, ...], *, val_fraction: float, seed: int) -> Cohort:
    """Divide the labelled slides by patient: by the column `split` where it is filled, else by a stratified draw.

    Raises:
        ManifestError: a patient on two sides, or a class that is absent from training or validation.
    """
    members = [_member(r, tasks) for r in manifest.records if not r.is_excluded]
    usable = [m for m in members if any(t >= 0 for t in m.targets)]
    notes = []
    if len(usable) < len(members):
        notes.append(Note("E_NO_LABEL", f"{len(members) - len(usable)} slides without a label are not used"))
    if any(m.record.patient_is_default for m in usable):
        notes.append(Note("E_NO_PATIENT", "some rows name no patient: each such slide counts as a patient of its own, "
                          "and slides of one patient may land on two sides"))  # fmt: skip
    sides: dict[str, list[Member]] = defaultdict(list)
    if any(m.record.split for m in usable):
        for m in usable:
            sides[m.record.split or "unused"].append(m)
    else:
        sides["train"] = usable
    _refuse_leaks(sides)
    if not sides["val"]:
        sides["train"], sides["val"] = _draw(sides["train"], val_fraction, seed)
        notes.append(
            Note("E_SPLIT_MADE", f"validation split made here: {len(sides['val'])} slides, by patient, seed {seed}")
        )
    refuse_absent(sides, tasks)
    return Cohort(tuple(sides["train"]), tuple(sides["val"]), tuple(sides["test"]), tuple(notes))


def _by_number(text: str) -> tuple[float, str]:
    return (float(text), text) if re.fullmatch(r"[+-]?\d+(\.\d+)?", text) else (float("inf"), text)


def _member(record: SlideRecord, tasks: tuple[TaskSettings, ...]) -> Member:
    targets = tuple(t.classes.index(label) if (label := record.labels.get(t.name)) else -1 for t in tasks)
    return Member(record, targets)


def _draw(members: list[Member], fraction: float, seed: int) -> tuple[list[Member], list[Member]]:
    """Hold out a share of the patients of each class of the first task."""
    by_class: dict[int, list[str]] = defaultdict(list)
    for patient, target in {m.record.patient_id: m.targets[0] for m in members}.items():
        by_class[target].append(patient)
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for target in sorted(by_class):
        patients = sorted(by_class[target])
        n = min(len(patients) - 1, max(1, round(fraction * len(patients))))
        held |= set(rng.permutation(patients)[:n].tolist())
    return [m for m in members if m.record.patient_id not in held], [m for m in members if m.record.patient_id in held]


def _refuse_leaks(sides: Mapping[str, list[Member]]) -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for side in ("train", "val", "test"):
        for m in sides.get(side, ()):
            where[m.record.patient_id].add(side)
    leaks = [
        f"patient {p}: slides in {' and '.join(sorted(s))}; a patient belongs on one side"
        for p, s in where.items()
        if len(s) > 1
    ]
    if leaks:
        raise ManifestError(leaks)


def refuse_absent(sides: Mapping[str, Sequence[Member]], tasks: tuple[TaskSettings, ...]) -> None:
    """Refuse to learn or to judge without every class.

    Args:
        sides: the slides of `train` and `val`.

    Raises:
        ManifestError: names side, task and class.
    """
    problems = []
    for side in ("train", "val"):
        for i, task in enumerate(tasks):
            present = {m.targets[i] for m in sides[side]}
            absent = [name for k, name in enumerate(task.classes) if k not in present]
            if absent:
                problems.append(
                    f"{side}: no slide of class {', '.join(absent)} ({task.name}); add some, or change the split"
                )
    if problems:
        raise ManifestError(problems)
