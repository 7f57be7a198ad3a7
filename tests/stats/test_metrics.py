"""Figures with known answers."""

from __future__ import annotations

import math

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.stats.metrics import auroc, auroc_interval, task_auroc, tile_auroc


def test_auroc_counts_pairs() -> None:
    """The share of positive-negative pairs in the right order, ties half."""
    assert auroc(np.array([0, 1, 0, 1]), np.array([0.2, 0.2, 0.1, 0.9])) == 0.875
    assert math.isnan(auroc(np.array([1, 1]), np.array([0.1, 0.2])))


def test_the_interval_widens_when_slides_share_patients() -> None:
    """Copies of a case are not new cases."""
    rng = np.random.default_rng(0)
    truth = np.arange(40) % 2
    score = truth + rng.normal(0, 1.2, 40)
    alone = auroc_interval(truth, score, [str(i) for i in range(40)])
    copied = auroc_interval(np.tile(truth, 4), np.tile(score, 4), [str(i) for i in range(40)] * 4)
    naive = auroc_interval(np.tile(truth, 4), np.tile(score, 4), [str(i) for i in range(160)])
    assert alone.value == copied.value == naive.value
    assert naive.high - naive.low < 0.7 * (copied.high - copied.low)
    assert abs((copied.high - copied.low) - (alone.high - alone.low)) < 0.05
    assert alone.low < alone.value < alone.high


def test_multiclass_auroc_is_the_mean_of_one_against_the_rest() -> None:
    """A perfect ranking of every class gives 1."""
    task = TaskSettings(kind="multiclass", classes=("a", "b", "c"))
    assert task_auroc(np.eye(3) * 5.0, np.array([0, 1, 2]), task) == 1.0
    assert task_auroc(-np.eye(3) * 5.0, np.array([0, 1, 2]), task) == 0.0


def test_tiles_barely_touched_by_lesion_are_left_out() -> None:
    """Positive from a quarter; between nothing and a quarter neither."""
    lesion = np.array([0.0, 0.0, 0.1, 0.25, 1.0])
    assert tile_auroc(np.array([1, 2, 9, 3, 4.0]), lesion) == 1.0
    assert tile_auroc(np.array([3.5, 2, 0, 3, 4.0]), lesion) == 0.75
