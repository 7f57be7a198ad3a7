"""Areas under curves, against pair counting and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from wsi_ips.errors import ModelError
from wsi_ips.stats.ranking import auroc, average_precision, weighted_auroc


def _tied_scores(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    truth = rng.random(n) < 0.3
    return truth, np.round(truth + rng.normal(0.0, 1.0, n), 1)


def test_areas_agree_with_scikit_learn_on_tied_scores() -> None:
    """An independent implementation gives the same numbers."""
    truth, score = _tied_scores(301)
    assert len(np.unique(score)) < 100
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert average_precision(truth, score) == pytest.approx(average_precision_score(truth, score), abs=1e-12)


def test_average_precision_of_a_hand_example() -> None:
    """Positives at ranks 1 and 3 of four: (1 + 2/3) / 2; all tied: the share of positives."""
    assert average_precision(np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(5 / 6)
    assert average_precision(np.array([1, 0, 1, 0]), np.zeros(4)) == 0.5
    assert math.isnan(average_precision(np.zeros(3), np.arange(3.0)))


def test_a_weighted_cohort_is_the_cohort_with_rows_repeated() -> None:
    """A case of weight 3 counts as three cases, of weight 0 as none; a cohort without a class has no AUROC."""
    truth, score = _tied_scores(40)
    weights = np.random.default_rng(1).integers(0, 4, (5, 40))
    weights[4] = weights[4] * truth
    found = weighted_auroc(truth, score, weights)
    expected = [auroc(np.repeat(truth, w), np.repeat(score, w)) for w in weights]
    assert np.array_equal(found, expected, equal_nan=True)
    assert math.isnan(found[4])
    assert not np.isnan(found[:4]).any()


def test_a_score_that_is_no_number_is_refused_by_its_place() -> None:
    """A NaN has no rank, so it must not get one."""
    with pytest.raises(ModelError, match="score 1 of 3 is NaN"):
        auroc(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.3]))
