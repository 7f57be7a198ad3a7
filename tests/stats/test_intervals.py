"""Intervals by resampling patients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_ips.stats.intervals import auroc_interval, bounds, patient_bootstrap, resampled_rows, resampled_weights
from wsi_ips.stats.metrics import Interval as ReexportedInterval
from wsi_ips.stats.ranking import auroc


def test_the_fast_auroc_interval_is_the_bootstrap_of_auroc() -> None:
    """One sort for all resamples gives the very numbers of a thousand separate AUROCs."""
    rng = np.random.default_rng(0)
    truth = rng.random(90) < 0.4
    score = np.round(truth + rng.normal(0.0, 1.5, 90), 1)
    patients = [f"p{i}" for i in rng.integers(0, 30, 90)]
    fast = auroc_interval(truth, score, patients, n_resamples=200, seed=3)
    slow = patient_bootstrap(lambda rows: auroc(truth[rows], score[rows]), patients, n_resamples=200, seed=3)
    assert fast == slow
    assert fast.low < fast.value < fast.high
    assert isinstance(fast, ReexportedInterval)


def test_a_patient_comes_with_all_slides_or_none() -> None:
    """Every resample holds as many patients as the cohort, each with all of its rows, as often as it was drawn."""
    patients = ["b", "a", "b", "c", "b", "a"]
    owner = np.array([1, 0, 1, 2, 1, 0])
    all_weights = np.concatenate(list(resampled_weights(patients, 50, 7)))
    for rows, weights in zip(resampled_rows(patients, 50, 7), all_weights, strict=True):
        assert np.array_equal(np.bincount(rows, minlength=6), weights)
        per_patient = [set(weights[owner == i]) for i in range(3)]
        assert all(len(w) == 1 for w in per_patient)
        assert sum(w.pop() for w in per_patient) == 3
    assert len(np.unique(all_weights, axis=0)) > 5


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    """2 x 1.96 standard errors of the mean, and another seed moves it little."""
    values = np.random.default_rng(2).normal(5.0, 2.0, 400)
    patients = [str(i) for i in range(400)]
    found = patient_bootstrap(lambda rows: float(values[rows].mean()), patients)
    expected = 2 * 1.96 * values.std() / math.sqrt(400)
    assert found.value == values.mean()
    assert found.n == 400
    assert found.high - found.low == pytest.approx(expected, rel=0.1)
    assert patient_bootstrap(lambda rows: float(values[rows].mean()), patients) == found


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 cohorts with three slides a patient, nearly 95 % have the true mean in their interval."""
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(40), 3).astype(str)
    weights = np.concatenate(list(resampled_weights(list(patients), 300, 1)))
    hits = 0
    for _ in range(200):
        values = np.repeat(rng.normal(0.0, 1.0, 40), 3) + rng.normal(0.0, 0.3, 120)
        low, high = bounds(weights @ values / weights.sum(axis=1))
        hits += bool(low <= 0.0 <= high)
    # over 2000 cohorts: 0.93, so 200 scatter by 0.018; resampling slides instead gives 0.73
    assert 0.88 <= hits / 200 <= 0.985


def test_resamples_without_a_value_are_left_out() -> None:
    """NaN draws do not poison the interval; when all are NaN there is none, and no case gives nothing."""
    some = patient_bootstrap(lambda rows: 2.0 if 0 in rows else math.nan, ["a", "b", "c"], n_resamples=50)
    assert some == (2.0, 2.0, 2.0, 3)
    none = patient_bootstrap(lambda rows: math.nan, ["a", "b"], n_resamples=10)
    assert all(math.isnan(v) for v in none[:3])
    assert patient_bootstrap(lambda rows: 1.0, [])[3] == 0
    alone = auroc_interval(np.array([1, 1]), np.array([0.2, 0.3]), ["a", "b"], n_resamples=20)
    assert all(math.isnan(v) for v in alone[:3])
