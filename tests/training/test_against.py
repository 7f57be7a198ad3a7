"""Two models on the same cases: the same slide beside the same slide, each by its own scale, patients not slides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsi_ips.tasks import TaskSettings
from wsi_ips.training.against import compare_cases
from wsi_ips.training.cases import CaseTable

BINARY = TaskSettings(name="tumor", classes=("normal", "tumor"))


def _cases(z: Any, y: Any, task: TaskSettings = BINARY, patients: tuple[str, ...] = ()) -> CaseTable:
    ids = tuple(f"s{i:02d}" for i in range(len(z)))
    n, outputs, targets = len(z), np.asarray(z, float)[:, None], np.asarray(y, float)[:, None]
    return CaseTable(ids, patients or ids, ("",) * n, ("test",) * n, outputs, targets, (task,))


def test_slides_are_matched_by_name_not_by_row() -> None:
    """A model against itself with its rows in reverse, one slide missing: no difference, and p is 1."""
    rng = np.random.default_rng(0)
    y = np.arange(30) % 2
    table = _cases(y + rng.normal(size=30), y)
    for found in compare_cases(table, table.rows(np.arange(28, -1, -1)), n_resamples=50):
        c = found.found
        assert (c.n, c.difference, c.low, c.high, c.p) == (29, 0.0, 0.0, 0.0, 1.0)


def test_each_model_is_read_by_its_own_scale() -> None:
    """Two regressions that say the same numbers in other units are equally good: R2 1 and 1."""
    y = np.linspace(0.0, 50.0, 20)
    tasks = [TaskSettings(name="count", kind="regression", center=c, spread=s) for c, s in ((0.0, 1.0), (10.0, 4.0))]
    one, other = (_cases((y - t.center) / t.spread, y, t) for t in tasks)
    (found,) = compare_cases(one, other, n_resamples=50)
    assert (found.found.a, found.found.b) == pytest.approx((1.0, 1.0))


def test_delongs_test_needs_one_slide_a_patient() -> None:
    """It takes cases as independent: with two slides of a patient only resampling is left."""
    rng = np.random.default_rng(1)
    y = np.arange(30) % 2
    alone = [_cases(y + rng.normal(size=30), y) for _ in range(2)]
    pairs = [_cases(t.outputs[:, 0], y, patients=tuple(f"p{i // 2}" for i in range(30))) for t in alone]
    assert [c.test for c in compare_cases(*alone, n_resamples=50)] == ["DeLong", "patients resampled"]
    assert [c.test for c in compare_cases(*pairs, n_resamples=50)] == ["patients resampled"]
