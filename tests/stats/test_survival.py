"""Concordance against counting every pair, and intervals of time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_ips.stats import survival
from wsi_ips.stats.ranking import auroc
from wsi_ips.stats.survival import concordance, cuts_passed


def _by_counting(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    right = pairs = 0.0
    for i in range(len(time)):
        for j in range(i):
            first, last = (i, j) if (time[i], -event[i]) < (time[j], -event[j]) else (j, i)
            same_time = time[first] == time[last]
            if not event[first] or (same_time and event[last]):
                continue
            pairs += 1
            right += 1.0 if risk[first] > risk[last] else 0.5 if risk[first] == risk[last] else 0.0
    return right / pairs


def test_concordance_counts_every_comparable_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied times, tied risks and the unseen, as two plain loops count them; also when done in blocks."""
    rng = np.random.default_rng(0)
    time, event = rng.integers(1, 12, 70).astype(float), rng.integers(0, 2, 70)
    risk = np.round(-time / 6 + rng.normal(0.0, 1.0, 70), 1)
    expected = _by_counting(time, event, risk)
    assert 0.55 < expected < 0.95
    assert concordance(time, event, risk) == expected
    monkeypatch.setattr(survival, "_BLOCK", 200)
    assert concordance(time, event, risk) == expected


def test_who_was_lost_early_is_compared_with_nobody_later() -> None:
    """Lost at 1, event at 2, lost at 2 and at 3: two pairs, both led by the event."""
    time, event = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 1, 0, 0])
    assert concordance(time, event, np.array([9.0, 5.0, 1.0, 7.0])) == 0.5
    assert concordance(time, event, np.array([9.0, 5.0, 5.0, 1.0])) == 0.75


def test_without_censoring_and_with_two_times_concordance_is_auroc() -> None:
    """Early against late is a question of two classes."""
    rng = np.random.default_rng(1)
    is_early = rng.random(50) < 0.4
    risk = np.round(is_early + rng.normal(0.0, 1.0, 50), 1)
    assert concordance(np.where(is_early, 1.0, 2.0), np.ones(50), risk) == auroc(is_early, risk)


def test_without_a_comparable_pair_there_is_no_concordance() -> None:
    """No event, or no case."""
    assert math.isnan(concordance(np.array([1.0, 2.0]), np.array([0, 0]), np.array([1.0, 2.0])))
    assert math.isnan(concordance(np.empty(0), np.empty(0), np.empty(0)))


def test_a_time_at_a_cut_begins_the_next_interval() -> None:
    """Intervals hold their lower bound, as the loss counts them."""
    assert cuts_passed(np.array([0.0, 11.9, 12.0, 24.0, 99.0]), (12.0, 24.0)).tolist() == [0, 0, 1, 2, 2]
