"""Temperatures that were planted are found again; calibration errors are those of hand-made tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_ips.errors import ModelError
from wsi_ips.stats.calibration import TEMPERATURES, brier, expected_calibration_error, fit_temperature, reliability
from wsi_ips.stats.likelihood import negative_log_likelihood
from wsi_ips.tasks import TaskSettings, probabilities

N = 6000
BINARY = TaskSettings(classes=("no", "yes"))
TASKS = {
    "binary": BINARY,
    "multiclass": TaskSettings(kind="multiclass", classes=("a", "b", "c")),
    "multilabel": TaskSettings(kind="multilabel", classes=("a", "b", "c")),
    "ordinal": TaskSettings(kind="ordinal", classes=("0", "1", "2", "3")),
    "survival": TaskSettings(kind="survival", cuts=(1.0, 2.0, 3.0), classes=("0", "1", "2", "3"), event_column="e"),
}


def _truthful(task: TaskSettings, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets drawn from the very probabilities they stand for."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0.0, 1.5, (n, task.n_outputs))
    if task.kind == "ordinal":
        z = -np.sort(-z, axis=1)
    probs = probabilities(z, task)
    if task.kind == "multilabel":
        y = (rng.random(probs.shape) < probs).astype(float)
        y[rng.random(probs.shape) < 0.2] = np.nan
        return z, y
    y = (rng.random((n, 1)) > np.cumsum(probs, axis=1)[:, :-1]).sum(axis=1).astype(float)
    if task.kind != "survival":
        return z, y[:, None]
    event_time, last_seen = y + rng.random(n), rng.uniform(0.0, 6.0, n)
    return z, np.stack([np.minimum(event_time, last_seen), (event_time <= last_seen).astype(float)], axis=1)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("planted", [3.0, 0.5])
def test_a_planted_temperature_is_found(kind: str, planted: float) -> None:
    """Logits that are three times (or half) as sure as the truth need a temperature of 3 (or 0.5)."""
    z, y = _truthful(TASKS[kind])
    assert fit_temperature(planted * z, y, TASKS[kind]) == pytest.approx(planted, rel=0.08)


def test_the_temperature_of_the_task_itself_is_not_used() -> None:
    """A second fit starts from the logits again."""
    z, y = _truthful(BINARY, 500)
    again = BINARY.model_copy(update={"temperature": 7.0})
    assert fit_temperature(z, y, again) == fit_temperature(z, y, BINARY)


def test_few_cases_that_are_all_right_do_not_make_certainty() -> None:
    """All right: ten cases sharpen a little, a thousand far more, none to 0. Sure and random: flattened, not without end."""

    def right(n: int) -> float:
        truth = np.arange(float(n)) % 2
        return fit_temperature((truth * 2 - 1)[:, None], truth[:, None], BINARY)

    assert 0.3 < right(10) < 0.9
    assert TEMPERATURES[0] <= right(1000) < right(100) < right(10)
    sure_and_random = np.tile([100.0, 100.0, -100.0, -100.0], 5)
    assert 5.0 < fit_temperature(sure_and_random[:, None], (np.arange(20.0) % 2)[:, None], BINARY) <= TEMPERATURES[1]


def test_where_the_data_cannot_tell_the_temperature_is_one() -> None:
    """Regression, no known row, one class only, no event."""
    z = np.array([[2.0], [3.0]])
    assert fit_temperature(z, z, TaskSettings(kind="regression")) == 1.0
    assert fit_temperature(z, np.full((2, 1), np.nan), BINARY) == 1.0
    assert fit_temperature(z, np.ones((2, 1)), BINARY) == 1.0
    assert fit_temperature(np.ones((2, 3)), np.array([[1.5, 0.0], [9.0, 0.0]]), TASKS["survival"]) == 1.0


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_the_likelihood_is_that_of_the_true_class(kind: str) -> None:
    """Minus the logarithm of the probability the task gives the truth, at its temperature."""
    task = TASKS[kind].model_copy(update={"temperature": 1.7})
    z, y = _truthful(task, 50)
    probs = probabilities(z, task)[np.arange(50), y[:, 0].astype(int)]
    assert np.allclose(negative_log_likelihood(z, y, task), -np.log(probs), atol=1e-9)


def test_cumulative_logits_out_of_order_are_read_as_the_probabilities_read_them() -> None:
    """P(y > 1) cannot exceed P(y > 0): it is taken down to it."""
    z = np.array([[0.0, 2.0, -1.0]])
    for k in (0, 2, 3):
        found = negative_log_likelihood(z, np.array([[float(k)]]), TASKS["ordinal"])[0]
        assert found == pytest.approx(-math.log(probabilities(z, TASKS["ordinal"])[0, k]))


def test_a_confident_mistake_costs_its_true_price() -> None:
    """A logit of 800 on the wrong side costs 800 nats, where its probability is already 0."""
    assert negative_log_likelihood(np.array([[800.0]]), np.array([[0.0]]), BINARY)[0] == 800.0
    task = TASKS["ordinal"]
    crossed = negative_log_likelihood(np.array([[1.0, 1.0, 1.0]]), np.array([[1.0]]), task)[0]
    assert math.isfinite(crossed)
    assert crossed > 25.0


def test_the_survival_likelihood_counts_what_was_seen() -> None:
    """Hazards 1/2: an event in interval 1 is (1/2)(1/2), one in "later" (1/2)^3, someone lost in interval 2 (1/2)^2."""
    y = np.array([[1.5, 1.0], [7.0, 1.0], [2.5, 0.0], [0.5, 0.0], [1.0, 1.0]])
    found = negative_log_likelihood(np.zeros((5, 3)), y, TASKS["survival"])
    assert np.allclose(found / math.log(2.0), [2, 3, 2, 0, 2])  # the last: a time at a cut begins the next interval
    probs = probabilities(np.array([[0.3, -1.0, 0.2]]), TASKS["survival"])[0]
    for k in range(4):
        one = negative_log_likelihood(np.array([[0.3, -1.0, 0.2]]), np.array([[k + 0.5, 1.0]]), TASKS["survival"])
        assert one[0] == pytest.approx(-math.log(probs[k]))


def test_unknown_labels_do_not_count() -> None:
    """Multilabel: the mean over the labels that are known."""
    found = negative_log_likelihood(np.zeros((1, 3)), np.array([[1.0, np.nan, 0.0]]), TASKS["multilabel"])
    assert found[0] == pytest.approx(math.log(2.0))


def test_the_calibration_error_of_a_hand_made_table() -> None:
    """Ten calls at 0.95 with nine hits and ten at 0.65 with four: (0.05 + 0.25) / 2."""
    sure = np.repeat([0.95, 0.65], 10)
    probs = np.stack([sure, 1.0 - sure], axis=1)
    classes = np.concatenate([[1], np.zeros(9), np.ones(6), np.zeros(4)]).astype(int)
    assert expected_calibration_error(probs, classes) == pytest.approx(0.15)
    # the other class called: the same confidence, the other outcome
    assert expected_calibration_error(probs[:, ::-1], 1 - classes) == pytest.approx(0.15)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0
    assert math.isnan(expected_calibration_error(np.empty((0, 2)), np.empty(0)))


def test_truthful_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    """The error is small at the true temperature, large at a third of it, and small again once fitted."""
    z, y = _truthful(TASKS["multiclass"])
    task, classes = TASKS["multiclass"], y[:, 0].astype(int)
    fitted = task.model_copy(update={"temperature": fit_temperature(3.0 * z, y, task)})
    truthful, sharp = (expected_calibration_error(probabilities(s * z, task), classes) for s in (1.0, 3.0))
    assert truthful < 0.03 < 0.1 < sharp
    assert expected_calibration_error(probabilities(3.0 * z, fitted), classes) < 0.03


def test_every_case_lies_in_one_bin() -> None:
    """A bound belongs to the bin above, 1 to the last; empty bins say nothing."""
    bins = reliability(np.array([0.0, 0.5, 0.5, 1.0]), np.array([0, 1, 0, 1]), n_bins=4)
    assert [b.n for b in bins] == [1, 0, 2, 1]
    assert [(b.low, b.high) for b in bins] == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert bins[2][3:] == (0.5, 0.5)
    tenths = reliability(np.array([0.3, 0.6, 0.7]), np.ones(3))
    assert [k for k, b in enumerate(tenths) if b.n] == [3, 6, 7]
    assert math.isnan(bins[1].accuracy)
    assert math.isnan(bins[1].confidence)


def test_brier_is_the_mean_squared_distance() -> None:
    """(0.1² + 0.4²) / 2."""
    assert brier(np.array([0.9, 0.4]), np.array([1, 0])) == pytest.approx(0.085)


def test_what_does_not_fit_the_task_is_named() -> None:
    """Wrong shapes, outputs that are not finite, classes that do not exist."""
    with pytest.raises(ModelError, match=r"needs 1 outputs and 1 targets.*\(2, 3\)"):
        fit_temperature(np.zeros((2, 3)), np.zeros((2, 1)), BINARY)
    with pytest.raises(ModelError, match="row 1 are not finite"):
        fit_temperature(np.array([[0.0], [np.inf]]), np.array([[0.0], [1.0]]), BINARY)
    with pytest.raises(ModelError, match=r"target -1 of row 0 .* write NaN"):
        fit_temperature(np.zeros((2, 1)), np.array([[-1.0], [1.0]]), BINARY)
