"""Two models on the same cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_ips.errors import ModelError
from wsi_ips.stats.compare import delong, paired_bootstrap
from wsi_ips.stats.ranking import auroc


def _models(n: int, gain: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and two scores that share half of their noise; a sees the truth `gain` more clearly."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3 == 0
    shared = rng.normal(0.0, 0.7, n)
    a, b = (truth * (1.0 + g) + shared + rng.normal(0.0, 0.7, n) for g in (gain, 0.0))
    return truth, a, b


def test_delong_of_a_hand_example() -> None:
    """Three positives, two negatives: placement values by hand, their variances, the normal p."""
    truth = np.array([1, 1, 1, 0, 0])
    a = np.array([5.0, 4.0, 2.0, 3.0, 1.0])  # beats: 2, 2, 1 of 2 negatives; negatives lie below 2, 3 of 3 positives
    b = np.array([5.0, 1.0, 2.0, 4.0, 3.0])  # beats: 2, 0, 0; negatives lie below 1, 1
    found = delong(truth, a, b)
    assert found.a == pytest.approx(5 / 6)
    assert found.b == pytest.approx(2 / 6)
    assert found.difference == pytest.approx(0.5)
    # differences: positives 0, 1, 1/2 with variance 1/4; negatives 1/3, 2/3 with variance 1/18
    spread = math.sqrt(0.25 / 3 + (1 / 18) / 2)
    assert found.p == pytest.approx(math.erfc(0.5 / spread / math.sqrt(2)))
    assert found.low == pytest.approx(0.5 - 1.959964 * spread, abs=1e-6)
    assert found.high == 1.0  # an AUROC cannot differ by more
    assert found.n == 5
    assert delong(truth, b, a).low == -1.0


def test_delong_and_the_paired_bootstrap_agree() -> None:
    """Independent cases: the same difference, and intervals and p of the same size."""
    truth, a, b = _models(400, 0.25)
    by_formula = delong(truth, a, b)
    by_chance = paired_bootstrap(lambda s, rows: auroc(truth[rows], s[rows]), a, b, [str(i) for i in range(400)])
    assert by_formula.difference == pytest.approx(by_chance.difference)
    assert by_formula.difference == pytest.approx(auroc(truth, a) - auroc(truth, b))
    assert by_formula.low == pytest.approx(by_chance.low, abs=0.006)
    assert by_formula.high == pytest.approx(by_chance.high, abs=0.006)
    assert by_formula.p == pytest.approx(by_chance.p, abs=0.03)
    assert 0.05 < by_formula.p < 0.5


def test_models_of_equal_worth_are_told_apart_as_seldom_as_promised() -> None:
    """Under no difference p is below 0.05 in about 5 % of 400 cohorts, and below 0.5 in about half."""
    p = np.array([delong(*_models(120, 0.0, seed)).p for seed in range(400)])
    assert 0.02 <= np.mean(p < 0.05) <= 0.085
    assert 0.42 <= np.mean(p < 0.5) <= 0.58


def test_the_order_of_the_models_turns_the_sign() -> None:
    """Swapped models: the difference and its interval mirrored, p the same; any rising change of a score does nothing."""
    truth, a, b = _models(90, 0.5)
    one, other = delong(truth, a, b), delong(truth, b, a)
    assert (one.difference, one.low, one.high) == (-other.difference, -other.high, -other.low)
    assert one.p == other.p
    assert delong(truth, np.exp(a), b**3) == one


def test_no_spread_is_no_proof() -> None:
    """The same order: p = 1. Perfect against perfectly wrong, or one case of a class: the data cannot tell."""
    truth = np.array([0, 0, 0, 1, 1, 1])
    score = np.array([0.1, 0.4, 0.3, 0.2, 0.8, 0.9])
    assert delong(truth, score, 2.0 * score + 1.0)[2:] == (0.0, 0.0, 0.0, 1.0, 6)
    extreme = delong(truth, truth * 1.0, -truth * 1.0)
    assert extreme.difference == 1.0
    assert math.isnan(extreme.p)
    assert math.isnan(extreme.low)
    assert math.isnan(delong(np.array([0, 0, 1]), np.arange(3.0), -np.arange(3.0)).p)


def test_the_paired_bootstrap_resamples_patients_and_pairs() -> None:
    """Copies of slides add nothing; equal models give p = 1 exactly; a sure difference the smallest p there is."""
    truth, a, b = _models(60, 0.6, seed=3)
    patients = [str(i) for i in range(60)]

    def share_right(score: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean((score[rows] > 0.5) == np.tile(truth, len(score) // 60)[rows]))

    alone = paired_bootstrap(share_right, a, b, patients, n_resamples=300)
    copied = paired_bootstrap(share_right, np.tile(a, 3), np.tile(b, 3), patients * 3, n_resamples=300)
    assert copied[:6] == pytest.approx(alone[:6])
    assert copied.n == 180
    assert paired_bootstrap(share_right, a, a, patients, n_resamples=50)[2:6] == (0.0, 0.0, 0.0, 1.0)
    sure = paired_bootstrap(share_right, truth * 1.0, 1.0 - truth, patients, n_resamples=99)
    assert sure.p == 0.02
    assert sure.difference == sure.low == sure.high == 1.0


def test_scores_of_other_cases_are_refused() -> None:
    """Both models must have judged the same cases."""
    with pytest.raises(ModelError, match="4 cases, 4 scores of a and 3 of b"):
        delong(np.array([0, 0, 1, 1]), np.arange(4.0), np.arange(3.0))
    nothing = paired_bootstrap(lambda s, rows: math.nan, np.zeros(2), np.zeros(2), ["a", "b"], n_resamples=5)
    assert math.isnan(nothing.p)
