"""A manifest's label cells into numbers to learn from and to judge by; every cell that cannot be read is told at once.

An empty cell is unknown. Nothing else is: a cell that cannot be read is a problem with its line, never a gap.

Shapes: Q targets of all tasks (see `wsi_ips.tasks`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wsi_ips.errors import ManifestError, Note
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.records import read_number
from wsi_ips.tables import shown
from wsi_ips.tasks import TaskSettings

__all__ = ["NO_CLASS", "Cohort", "Faults", "Member", "labels_in", "members_of", "number_cell", "targets_of"]

NO_CLASS = ("-", "none")  # multilabel: a slide that is known to have none of the classes
_EVENTS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}


@dataclass(frozen=True)
class Member:
    """A slide with its targets."""

    record: SlideRecord
    targets: tuple[float, ...]  # Q numbers of all tasks in order, NaN where unknown

    @property
    def is_labelled(self) -> bool:
        """Whether any target is known."""
        return not all(math.isnan(t) for t in self.targets)


@dataclass(frozen=True)
class Cohort:
    """Who learns, who decides the best epoch, who judges and is never learned from."""

    train: tuple[Member, ...]
    val: tuple[Member, ...]
    test: tuple[Member, ...]
    notes: tuple[Note, ...]
    name: str = ""  # "fold 2"; "" for the only one


class Faults:
    """Gathers what is wrong with cells; the same fault of many rows is one sentence."""

    def __init__(self, manifest: Manifest) -> None:
        self._file = manifest.path.name
        self._columns = manifest.columns
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, record: SlideRecord, column: str, text: str) -> None:
        """Remember a fault of a cell."""
        where = f"line {record.row}" if record.row else f"slide {record.slide_id}"
        self._found.setdefault((column, text), []).append(where)

    def add_column(self, column: str, text: str) -> None:
        """Remember a fault of a whole column."""
        self._found.setdefault((column, text), []).append("")

    def has_columns(self, task: TaskSettings, records: Sequence[SlideRecord]) -> bool:
        """Tell whether all of a task's columns were read; remember it where not."""
        if task.kind == "survival" and not task.event_column:
            self.add_column(task.label_column, f"task {task.name!r} is survival and needs a column of events, 1 or 0: --event {task.name}=COLUMN "
                            "(in settings event_column)")  # fmt: skip
            return False
        missing = [c for c in task.columns if any(c not in r.labels for r in records)]
        for column in missing:
            found = f"found: {', '.join(self._columns)}" if self._columns else "give a manifest that has it"
            self.add_column(column, f"no such column to take labels from; {found}")
        return not missing

    def raise_any(self) -> None:
        """Raise all.

        Raises:
            ManifestError: when there are any.
        """
        sentences = []
        for (column, text), places in self._found.items():
            first = f"{places[0]}, " if places[0] else ""
            n = len(places) - 1
            more = f" (and {n} more row{'s' if n > 1 else ''})" if n and places[0] else ""
            sentences.append(f"{self._file}: {first}column {column!r}: {text}{more}")
        if sentences:
            raise ManifestError(sentences)


def members_of(manifest: Manifest, tasks: tuple[TaskSettings, ...]) -> tuple[Member, ...]:
    """Read the targets of every slide that is not excluded, labelled or not.

    Args:
        manifest: read with all of the tasks' columns.
        tasks: resolved.

    Raises:
        ManifestError: every cell that cannot be read, with line, column, value and cure.
    """
    faults = Faults(manifest)
    records = [r for r in manifest.records if not r.is_excluded]
    usable = [faults.has_columns(task, records) for task in tasks]
    rows = [
        [targets_of(r, task, faults) for task, is_there in zip(tasks, usable, strict=True) if is_there] for r in records
    ]
    faults.raise_any()
    return tuple(Member(r, tuple(t for part in row for t in part)) for r, row in zip(records, rows, strict=True))


def targets_of(record: SlideRecord, task: TaskSettings, faults: Faults) -> tuple[float, ...]:
    """Read the Q_t targets of a task: class number, 0 or 1 a class, value, or (time, event); NaN where unknown."""
    unknown = (math.nan,) * task.n_targets
    cell = record.labels[task.label_column]
    if task.kind == "survival":
        return _survival(record, task, faults) or unknown
    if not cell:
        return unknown
    if task.kind == "regression":
        return (number_cell(record, task.label_column, faults),)
    found = labels_in(cell, task)
    strange = [label for label in found if label not in task.classes]
    for label in strange:
        faults.add(record, task.label_column, _no_class(label, task.classes))
    if strange:
        return unknown
    if task.kind == "multilabel":
        return tuple(float(name in found) for name in task.classes)
    return (float(task.classes.index(cell)),)


def labels_in(cell: str, task: TaskSettings) -> tuple[str, ...]:
    """Name the classes in a cell: one, or for multilabel any number with ";" between.

    >>> labels_in("a; b", TaskSettings(kind="multilabel")), labels_in("none", TaskSettings(kind="multilabel"))
    (('a', 'b'), ())
    """
    if task.kind != "multilabel":
        return (cell,) if cell else ()
    if cell.lower() in NO_CLASS:
        return ()
    return tuple(dict.fromkeys(part.strip() for part in cell.split(";") if part.strip()))


def number_cell(record: SlideRecord, column: str, faults: Faults) -> float:
    """Read a number; NaN for an empty cell and for a fault, which is remembered."""
    text = record.labels[column]
    value = read_number(text)
    if not text:
        return math.nan
    if value is None or not math.isfinite(value):
        faults.add(record, column, f"{shown(text)} is not a finite number; correct it, or leave it empty for unknown")
        return math.nan
    whole, _, rest = text.lstrip("+-").partition(",")
    if len(rest) == 3 and rest.isdecimal() and 1 <= len(whole) <= 3 and whole[0] != "0":
        faults.add(record, column, f"{shown(text)} could be {whole}{rest} or {whole}.{rest}; write a point, or neither")
        return math.nan
    return value


def _survival(record: SlideRecord, task: TaskSettings, faults: Faults) -> tuple[float, float] | None:
    time_text, event_text = record.labels[task.label_column], record.labels[task.event_column]
    if not time_text and not event_text:
        return None
    if not time_text or not event_text:
        empty, other = (task.event_column, task.label_column) if time_text else (task.label_column, task.event_column)
        faults.add(record, empty, f"is empty while {other!r} is filled; fill both, or neither for unknown")
        return None
    time = number_cell(record, task.label_column, faults)
    event = _EVENTS.get(event_text.lower())
    if event is None:
        faults.add(record, task.event_column, f"{shown(event_text)} is no event; write 1 for seen, 0 for not seen")
    if time < 0.0:
        faults.add(record, task.label_column, f"the time {time:g} is negative; correct it, or empty both cells")
    return None if event is None or math.isnan(time) or time < 0.0 else (time, event)


def _no_class(label: str, classes: Sequence[str]) -> str:
    value = read_number(label)
    same = [c for c in classes if c.lower() == label.lower() or (value is not None and read_number(c) == value)]
    near = same or difflib.get_close_matches(label, classes, n=1, cutoff=0.6)
    cure = f"did you mean {near[0]!r}?" if near else "correct it, or leave it empty for unknown"
    return f"{shown(label)} is none of the classes {', '.join(classes)}; {cure}"
