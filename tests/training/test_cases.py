"""The table of cases: what is written is what is read, and a spreadsheet runs none of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.tasks import TaskSettings, predicted_number, probabilities
from wsi_ips.training.cases import CaseTable, join_cases, read_cases, write_cases

KINDS = (
    TaskSettings(name="tumor", classes=("normal", "=tumor")),
    TaskSettings(name="type", kind="multiclass", classes=("a", "b", "c, d")),
    TaskSettings(name="@grade", kind="ordinal", classes=("1", "2", "3")),
    TaskSettings(name="found", kind="multilabel", classes=("x", "y")),
    TaskSettings(name="count", kind="regression", center=3.0, spread=2.0),
    TaskSettings(name="life", kind="survival", event_column="dead", cuts=(1.0, 2.0), classes=("0", "1", "2")),
)


def _table(n: int = 7, tasks: tuple[TaskSettings, ...] = KINDS, seed: int = 0) -> CaseTable:
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 3, (n, sum(t.n_outputs for t in tasks)))
    columns = []
    for t in tasks:
        k = len(t.classes)
        drawn = {"multilabel": lambda k=k: rng.integers(0, 2, (n, k)), "regression": lambda: rng.normal(0, 9, (n, 1)),
                 "survival": lambda: np.stack([rng.random(n), rng.integers(0, 2, n)], axis=1)}  # fmt: skip
        columns.append(drawn.get(t.kind, lambda k=k: rng.integers(0, k, (n, 1)))())
    targets = np.concatenate(columns, axis=1).astype(np.float64)
    targets[2] = np.nan
    ids = tuple(f"slide {i}" for i in range(n))
    odd = ("=cmd()", "'quoted", 'with, "both"', "Ångström", "-0.5", "", "+x")[:n]
    return CaseTable(
        ids, odd, odd[::-1], ("test", "fold 3") * (n // 2) + ("val",), outputs, targets, tasks, tuple(range(n))
    )


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    """Ids, odd texts, every digit of every float and every gap come back, for each kind of task."""
    table = _table()
    write_cases(tmp_path / "cases.csv", table)
    again = read_cases(tmp_path / "cases.csv", KINDS)
    for name in ("slide_ids", "patient_ids", "sites", "parts", "seeds", "tasks"):
        assert getattr(again, name) == getattr(table, name)
    assert np.array_equal(again.outputs, table.outputs)
    assert np.array_equal(again.targets, table.targets, equal_nan=True)


def test_fault_049_no_cell_is_a_formula(tmp_path: Path) -> None:
    """Cells and column names that begin like a formula are numbers or stand behind an apostrophe."""
    write_cases(tmp_path / "cases.csv", _table())
    with (tmp_path / "cases.csv").open(newline="") as f:
        cells = [c for row in csv.reader(f) for c in row]
    assert "'=cmd()" in cells
    assert "'@grade_target" in cells
    for cell in cells:
        if cell[:1] in tuple("=+-@"):
            float(cell)


def test_probabilities_and_calls_are_those_of_the_logits(tmp_path: Path) -> None:
    """A logit of 0 is a probability of 0.5 and, from 0.5 on, a positive call."""
    task = TaskSettings(name="t", classes=("no", "yes"))
    table = CaseTable(
        ("a", "b"), ("p", "q"), ("", ""), ("test",) * 2, np.array([[0.0], [-9.0]]), np.array([[1.0], [np.nan]]), (task,)
    )
    write_cases(tmp_path / "c.csv", table)
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert (rows[0]["t_prob_yes"], rows[0]["t_called"], rows[0]["t_target"]) == ("0.5", "yes", "yes")
    assert (rows[1]["t_called"], rows[1]["t_target"], rows[1]["seed"]) == ("no", "", "0")


def test_columns_of_different_lengths_are_refused() -> None:
    """A table whose columns do not agree says which one, and what the tasks need."""
    task = TaskSettings(name="t", classes=("no", "yes"))
    with pytest.raises(ConfigError, match=r"outputs have shape \(2, 2\).*\(2, 1\)"):
        CaseTable(("a", "b"), ("p", "q"), ("", ""), ("x", "x"), np.zeros((2, 2)), np.zeros((2, 1)), (task,))
    with pytest.raises(ConfigError, match="1 sites for 2 slides"):
        CaseTable(("a", "b"), ("p", "q"), ("",), ("x", "x"), np.zeros((2, 1)), np.zeros((2, 1)), (task,))


def test_rows_are_taken_by_mask_number_and_part() -> None:
    """A mask, row numbers in any order, and names of parts choose the same columns everywhere."""
    table = _table()
    assert table.rows([3, 1]).slide_ids == ("slide 3", "slide 1")
    assert table.rows([3, 1]).outputs[0, 0] == table.outputs[3, 0]
    assert table.rows(np.arange(7) > 4).seeds == (5, 6)
    assert table.in_part("val").slide_ids == ("slide 6",)
    assert len(table.in_part("nowhere")) == 0


def test_folds_are_joined_in_terms_of_the_first_ones_tasks() -> None:
    """Other temperatures and scales of a fold's model change its logits, not its probabilities and values."""
    tasks = (KINDS[0], KINDS[4])
    other = (tasks[0].replace(temperature=2.5), tasks[1].replace(center=-1.0, spread=0.5))
    a, b = _table(5, tasks), replace(_table(5, tasks, seed=1), tasks=other)
    both = join_cases([a, b])
    assert both.tasks == tasks
    assert np.array_equal(both.outputs[:5], a.outputs)
    assert probabilities(both.outputs[5:, :1], tasks[0]) == pytest.approx(probabilities(b.outputs[:, :1], other[0]))
    assert predicted_number(both.outputs[5:, 1:], tasks[1]) == pytest.approx(
        predicted_number(b.outputs[:, 1:], other[1])
    )


def test_joined_rows_remember_their_own_temperature(tmp_path: Path) -> None:
    """So that calibration can be told as trained; a table without rows can be written and read, too."""
    task = KINDS[0]
    a, b = (replace(_table(3, (task,)), tasks=(task.replace(temperature=t),)) for t in (2.0, 0.5))
    both = join_cases([a, b])
    assert both.temperatures[:, 0].tolist() == [2.0] * 3 + [0.5] * 3
    assert both.rows([1, 4]).temperatures[:, 0].tolist() == [2.0, 0.5]
    write_cases(tmp_path / "none.csv", both.rows([]))
    assert len(read_cases(tmp_path / "none.csv", (task,))) == 0


def test_cases_of_other_classes_are_not_joined() -> None:
    """Tables whose classes differ cannot be one table."""
    task = KINDS[0]
    other = replace(_table(3, (task,)), tasks=(task.replace(classes=("tumor", "normal")),))
    with pytest.raises(ConfigError, match="different tasks"):
        join_cases([_table(3, (task,)), other])


def test_a_table_that_does_not_fit_says_where(tmp_path: Path) -> None:
    """A missing column, an unknown class and a word for a number are told with line, column and value."""
    task = TaskSettings(name="t", classes=("no", "yes"))
    path = tmp_path / "c.csv"
    path.write_text(
        "slide_id,patient_id,site,part,seed,t_target,t_logit_0,t_prob_no,t_prob_yes\na,p,,test,0,no,1,0,1\n"
    )
    with pytest.raises(ManifestError, match="no column t_called"):
        read_cases(path, (task,))
    head = "slide_id,patient_id,site,part,seed,t_target,t_logit_0,t_prob_no,t_prob_yes,t_called\n"
    path.write_text(head + "a,p,,test,0,maybe,1,0,1,yes\n")
    with pytest.raises(ManifestError, match="line 2, column 't_target': 'maybe' is none of no, yes"):
        read_cases(path, (task,))
    path.write_text(head + "a,p,,test,0,no,one,0,1,yes\n")
    with pytest.raises(ManifestError, match="line 2, column 't_logit_0': 'one' is not a number"):
        read_cases(path, (task,))
