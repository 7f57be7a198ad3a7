"""The table that everything is judged on: one row a slide and training, what the model said and what is true.

`cases.csv` carries it from `finetune` and `evaluate` to whoever wants to compute a number of their own. Floats are
written with all their digits, so that what is read back is what was judged; text that a spreadsheet would take for a
formula is written behind an apostrophe, which reading takes off again.

Shapes: n rows, P outputs and Q targets of all tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.stopping import write_whole
from wsi_ips.tables import cell_text, csv_bytes, read_table
from wsi_ips.tasks import TaskSettings, called_class, probabilities, split_outputs, split_targets

__all__ = ["CaseTable", "case_bytes", "join_cases", "read_cases", "write_cases"]

_FIXED = ("slide_id", "patient_id", "site", "part", "seed")


@dataclass(frozen=True)
class CaseTable:
    """Cases in rows.

    Raises:
        ConfigError: columns of different lengths.
    """

    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    sites: tuple[str, ...]  # "" where unknown
    parts: tuple[str, ...]  # "val", "test", "fold 3", ...
    outputs: np.ndarray  # (n, P) float64, logits
    targets: np.ndarray  # (n, Q) float64, NaN where unknown
    tasks: tuple[TaskSettings, ...]
    seeds: tuple[int, ...] = field(default=())  # of the training; () means 0 everywhere
    joined: np.ndarray | None = None  # (n, T) temperatures of the models behind the rows, where several were joined

    def __post_init__(self) -> None:
        n = len(self.slide_ids)
        object.__setattr__(self, "seeds", tuple(self.seeds) or (0,) * n)
        shapes = {
            "outputs": (n, sum(t.n_outputs for t in self.tasks)),
            "targets": (n, sum(t.n_targets for t in self.tasks)),
        }
        for name, shape in shapes.items():
            array = np.asarray(getattr(self, name), dtype=np.float64)
            array = array.reshape(shape) if n == 0 else array
            if array.shape != shape:
                raise ConfigError(f"cases: {name} have shape {array.shape}; {n} slides and these tasks need {shape}")
            object.__setattr__(self, name, array)
        for name in ("patient_ids", "sites", "parts", "seeds"):
            if len(getattr(self, name)) != n:
                raise ConfigError(f"cases: {len(getattr(self, name))} {name} for {n} slides")

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def temperatures(self) -> np.ndarray:
        """Temperature of the model behind each row and task: (n, T); the outputs are in terms of the tasks' own."""
        own = np.tile([t.temperature for t in self.tasks], (len(self), 1))
        return own if self.joined is None else self.joined

    def rows(self, mask: np.ndarray | Sequence[int]) -> CaseTable:
        """Take some rows: a mask (n,) of bool, or row numbers."""
        chosen = np.asarray(mask)
        at = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        names = ("slide_ids", "patient_ids", "sites", "parts", "seeds")
        columns = {name: tuple(getattr(self, name)[i] for i in at) for name in names}
        joined = None if self.joined is None else self.joined[at]
        return replace(self, **columns, outputs=self.outputs[at], targets=self.targets[at], joined=joined)

    def in_part(self, *parts: str) -> CaseTable:
        """Take the rows of some parts."""
        return self.rows(np.array([p in parts for p in self.parts], dtype=bool))


def join_cases(tables: Sequence[CaseTable]) -> CaseTable:
    """Put tables below each other, in terms of the first one's tasks.

    Models of several folds may differ in temperature, centre and spread; outputs are rescaled so that the first
    table's tasks give the same probabilities and values.

    Raises:
        ConfigError: other classes, kinds or cuts; or no table.
    """
    if not tables:
        raise ConfigError("no cases to join")
    tasks = tables[0].tasks
    outputs = [_in_terms_of(t, tasks) for t in tables]

    def all_of(name: str) -> tuple:
        return tuple(x for t in tables for x in getattr(t, name))

    return CaseTable(all_of("slide_ids"), all_of("patient_ids"), all_of("sites"), all_of("parts"), np.concatenate(outputs),
                     np.concatenate([t.targets for t in tables]), tasks, all_of("seeds"),
                     np.concatenate([t.temperatures for t in tables]))  # fmt: skip


def _in_terms_of(table: CaseTable, tasks: tuple[TaskSettings, ...]) -> np.ndarray:
    def fixed(task: TaskSettings) -> tuple[object, ...]:
        return task.name, task.kind, task.classes, task.cuts

    if [fixed(t) for t in table.tasks] != [fixed(t) for t in tasks]:
        theirs, ours = (
            ", ".join(f"{t.name} ({t.kind}: {'/'.join(t.classes)})" for t in s) for s in (table.tasks, tasks)
        )
        raise ConfigError(f"cases of different tasks cannot be joined: {ours}; {theirs}")
    parts = []
    for own, wanted, z in zip(table.tasks, tasks, split_outputs(table.outputs, table.tasks), strict=True):
        if (own.center, own.spread, own.temperature) == (wanted.center, wanted.spread, wanted.temperature):
            parts.append(z)  # to the last digit
        elif wanted.kind == "regression":
            parts.append((own.center + own.spread * z - wanted.center) / wanted.spread)
        else:
            parts.append(z * (wanted.temperature / own.temperature))
    return np.concatenate(parts, axis=1)


def _columns(tasks: tuple[TaskSettings, ...]) -> list[str]:
    names = list(_FIXED)
    for task in tasks:
        names += [f"{task.name}_{end}" for end in _target_ends(task)]
        names += [f"{task.name}_logit_{i}" for i in range(task.n_outputs)]
        names += [f"{task.name}_prob_{c}" for c in task.classes]
        names += [f"{task.name}_called"]
    return names


def _target_ends(task: TaskSettings) -> list[str]:
    if task.kind == "survival":
        return ["time", "event"]
    return [f"target_{c}" for c in task.classes] if task.kind == "multilabel" else ["target"]


def case_bytes(table: CaseTable) -> bytes:
    """Lay cases out as CSV: ids, then for each task targets, logits, probabilities and the call.

    Targets of classes are written as the class's name; an unknown target is an empty cell.
    """
    rows = [_columns(table.tasks)]
    outputs, targets = split_outputs(table.outputs, table.tasks), split_targets(table.targets, table.tasks)
    for i in range(len(table)):
        cells = [table.slide_ids[i], table.patient_ids[i], table.sites[i], table.parts[i], str(table.seeds[i])]
        for task, z, y in zip(table.tasks, outputs, targets, strict=True):
            probs = probabilities(z[i], task)
            cells += [_target_text(v, task) for v in y[i]]
            cells += [repr(float(v)) for v in (*z[i], *probs)]
            cells += [called_class(probs, z[i], task)]
        rows.append(cells)
    return csv_bytes([_safe(c) for c in row] for row in rows)


def write_cases(path: str | Path, table: CaseTable) -> None:
    """Write `case_bytes` as a file, whole or not at all.

    Raises:
        StoppedError: the environment gave out.
    """
    write_whole(Path(path), case_bytes(table))


def read_cases(path: str | Path, tasks: tuple[TaskSettings, ...]) -> CaseTable:
    """Read what `write_cases` wrote.

    Raises:
        ManifestError: not such a table for these tasks; names line, column and value.
    """
    path = Path(path)
    raw = read_table(path, may_be_empty=True)  # a refit has neither validation nor test slides
    problems = [f"{path.name}: line {p.line}: {p.text}" for p in raw.problems]
    at = {_bare(name): i for i, name in enumerate(raw.header)}
    missing = [c for c in _columns(tasks) if c.strip() not in at]
    if missing or problems:
        named = f"{path.name}: no column {', '.join(missing[:5])}; is it the cases.csv of another model?"
        raise ManifestError([*problems, *([named] if missing else [])])
    rows = [(r.line, {c: _bare(r.cells[at[c.strip()]]) for c in _columns(tasks)}) for r in raw.rows]
    fixed = {c: tuple(row[c] for _, row in rows) for c in _FIXED}
    targets = np.array([[v for t in tasks for v in _targets_of(path, line, row, t)] for line, row in rows])
    logits = [f"{t.name}_logit_{i}" for t in tasks for i in range(t.n_outputs)]
    outputs = np.array([[_number(path, line, c, row[c]) for c in logits] for line, row in rows])
    seeds = tuple(int(_number(path, line, "seed", row["seed"])) for line, row in rows)
    return CaseTable(
        fixed["slide_id"], fixed["patient_id"], fixed["site"], fixed["part"], outputs, targets, tasks, seeds
    )


def _safe(text: str) -> str:
    """As `cell_text`, and text that already starts with an apostrophe gets another, so that reading is exact."""
    return "'" + text if text.startswith("'") else cell_text(text)


def _bare(text: str) -> str:
    return text.removeprefix("'")


def _target_text(value: float, task: TaskSettings) -> str:
    if np.isnan(value):
        return ""
    if task.kind in ("binary", "multiclass", "ordinal"):
        return task.classes[int(value)]
    return repr(float(value)) if task.kind in ("regression", "survival") else str(int(value))


def _targets_of(path: Path, line: int, row: dict[str, str], task: TaskSettings) -> Iterator[float]:
    for end in _target_ends(task):
        column = f"{task.name}_{end}"
        text = row[column]
        if not text:
            yield float("nan")
        elif task.kind not in ("binary", "multiclass", "ordinal"):
            yield _number(path, line, column, text)
        elif text in task.classes:
            yield float(task.classes.index(text))
        else:
            known = ", ".join(task.classes)
            raise ManifestError([f"{path.name}: line {line}, column {column!r}: {text!r} is none of {known}"])


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ManifestError([f"{path.name}: line {line}, column {column!r}: {text!r} is not a number"]) from None
