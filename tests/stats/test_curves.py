"""Curves through points known by hand, and bands that hold them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from wsi_ips.stats.curves import Band, pr_band, roc_band
from wsi_ips.stats.ranking import auroc, average_precision

TRUTH = np.array([1, 0, 1, 0, 0])
SCORE = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
ALONE = [str(i) for i in range(5)]


def _cohort(n: int = 160) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    truth = np.arange(n) % 2
    return truth, truth + rng.normal(0.0, 1.0, n), [str(i) for i in range(n)]


def test_the_roc_curve_of_five_cases() -> None:
    """Half the positives at once, all after a third of the negatives; where it jumps the upper end counts."""
    band = roc_band(TRUTH, SCORE, ALONE, n_points=7, n_resamples=50)
    assert np.allclose(band.x, np.arange(7) / 6)
    assert np.allclose(band.y, [0.5, 0.5, 1, 1, 1, 1, 1], atol=1e-9)


def test_tied_scores_make_a_slope() -> None:
    """A score that tells nothing gives the diagonal."""
    band = roc_band(TRUTH, np.zeros(5), ALONE, n_points=5, n_resamples=20)
    assert np.allclose(band.y, band.x, atol=1e-9)
    assert np.allclose(band.low, band.x, atol=1e-9)


def test_the_precision_recall_curve_of_five_cases() -> None:
    """Precision 1 up to half the recall, then 2/3: steps, no slopes between."""
    band = pr_band(TRUTH, SCORE, ALONE, n_points=5, n_resamples=50)
    assert np.allclose(band.y, [1, 1, 1, 2 / 3, 2 / 3])


def test_a_jump_at_a_grid_point_is_met_exactly() -> None:
    """5 x (1 / 6) is less than 5 / 6 in floating point, and 35 x 0.01 more than 7 / 20: both are the same place."""
    after_five = roc_band(np.array([0] * 5 + [1, 0]), -np.arange(7.0), list("abcdefg"), n_points=7, n_resamples=0)
    assert np.allclose(after_five.y, [0, 0, 0, 0, 0, 1, 1], atol=1e-9)
    seven_first = np.array([1] * 7 + [0] * 30 + [1] * 13)
    steps = pr_band(seven_first, -np.arange(50.0), [str(i) for i in range(50)], n_resamples=0)
    assert steps.y[35] == 1.0
    assert steps.y[36] == 8 / 38


def test_the_areas_under_the_curves_are_the_metrics() -> None:
    """A fine grid's mean is AUROC and average precision; the ROC runs through scikit-learn's points."""
    truth, score, patients = _cohort()
    roc = roc_band(truth, score, patients, n_points=20001, n_resamples=0)
    pr = pr_band(truth, score, patients, n_points=20001, n_resamples=0)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auroc(truth, score), abs=1e-3)
    assert np.trapezoid(pr.y, pr.x) == pytest.approx(average_precision(truth, score), abs=1e-3)
    false_share, sensitivity, _ = roc_curve(truth, score, drop_intermediate=False)
    tops = [sensitivity[false_share == f].max() for f in np.unique(false_share)]
    coarse = roc_band(truth, score, patients, n_points=81, n_resamples=0)  # 80 negatives: every point on the grid
    assert np.allclose(coarse.y, tops, atol=1e-9)
    assert np.isnan(roc.low).all()


@pytest.mark.parametrize("draw", [roc_band, pr_band])
@pytest.mark.filterwarnings("error")
def test_the_band_holds_the_curve_and_widens_when_slides_share_patients(draw: Callable[..., Band]) -> None:
    """Between low and high nearly everywhere; four slides of one patient tell less than four patients."""
    truth, score, patients = _cohort()
    band = draw(truth, score, patients, n_resamples=300)
    inner = slice(1, -1)
    assert np.mean((band.low <= band.y) & (band.y <= band.high)) > 0.95
    assert (band.high - band.low)[inner].mean() > 0.03
    copies = draw(np.tile(truth, 4), np.tile(score, 4), patients * 4, n_resamples=300)
    naive = draw(np.tile(truth, 4), np.tile(score, 4), [str(i) for i in range(640)], n_resamples=300)
    assert np.allclose(copies.y, band.y, atol=1e-9)
    assert (naive.high - naive.low)[inner].mean() < 0.7 * (copies.high - copies.low)[inner].mean()


def test_without_both_classes_there_is_no_roc_curve() -> None:
    """NaN throughout, for the band as for the curve."""
    band = roc_band(np.ones(3), np.arange(3.0), ["a", "b", "c"], n_resamples=10)
    assert all(np.isnan(part).all() for part in band[1:])
