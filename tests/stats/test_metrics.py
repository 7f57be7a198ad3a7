"""Figures with known answers, for every kind of task."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, log_loss, r2_score

from wsi_ips.config import TaskSettings
from wsi_ips.errors import ModelError
from wsi_ips.stats.metrics import (
    auroc,
    auroc_interval,
    called_classes,
    primary_metric,
    primary_score,
    quadratic_weighted_kappa,
    task_auroc,
    task_metrics,
    tile_auroc,
)
from wsi_ips.tasks import called_class, probabilities

BINARY = TaskSettings(classes=("no", "yes"))
MULTI = TaskSettings(kind="multiclass", classes=("a", "b", "c"))
LABELS = TaskSettings(kind="multilabel", classes=("a", "b", "c"))
ORDINAL = TaskSettings(kind="ordinal", classes=("0", "1", "2", "3"))
NUMBER = TaskSettings(kind="regression", center=10.0, spread=2.0)
SURVIVAL = TaskSettings(kind="survival", cuts=(1.0, 2.0), classes=("a", "b", "c"), event_column="e")
ALL = (BINARY, MULTI, LABELS, ORDINAL, NUMBER, SURVIVAL)


def _random_cases(task: TaskSettings, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    z = rng.normal(0.0, 1.5, (n, task.n_outputs))
    if task.kind == "survival":
        return z, np.stack([rng.exponential(1.5, n), rng.integers(0, 2, n)], axis=1)
    if task.kind == "regression":
        return z, 10.0 + 2.0 * (z + rng.normal(0.0, 1.0, (n, 1)))
    n_values = 2 if task.kind == "multilabel" else len(task.classes)
    return z, rng.integers(0, n_values, (n, task.n_targets)).astype(float)


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
    assert task_auroc(np.eye(3) * 5.0, np.array([0, 1, 2]), MULTI) == 1.0
    assert task_auroc(-np.eye(3) * 5.0, np.array([0, 1, 2]), MULTI) == 0.0


def test_tiles_barely_touched_by_lesion_are_left_out() -> None:
    """Positive from a quarter; between nothing and a quarter neither."""
    lesion = np.array([0.0, 0.0, 0.1, 0.25, 1.0])
    assert tile_auroc(np.array([1, 2, 9, 3, 4.0]), lesion) == 1.0
    assert tile_auroc(np.array([3.5, 2, 0, 3, 4.0]), lesion) == 0.75


def test_binary_metrics_of_five_cases() -> None:
    """Hits 2 of 3, passes 1 of 2, each metric from those counts."""
    prob = np.array([0.95, 0.65, 0.15, 0.75, 0.05])
    truth = np.array([1, 1, 1, 0, 0])
    found = task_metrics(np.log(prob / (1 - prob))[:, None], truth[:, None], BINARY)
    expected = {
        "auroc": 4 / 6,
        "auprc": (1 + 2 / 3 + 3 / 4) / 3,
        "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
        "accuracy": 3 / 5,
        "sensitivity": 2 / 3,
        "specificity": 1 / 2,
        "f1": 4 / 6,
        "brier": (0.05**2 + 0.35**2 + 0.85**2 + 0.75**2 + 0.05**2) / 5,
        "log_loss": -sum(math.log(p) for p in (0.95, 0.65, 0.15, 0.25, 0.95)) / 5,
        # confidences 0.95 twice and 0.65 hit, 0.85 and 0.75 missed
        "ece": (2 * 0.05 + 0.35 + 0.85 + 0.75) / 5,
    }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)


def test_the_threshold_and_the_temperature_of_the_task_are_used() -> None:
    """Calls follow the threshold, probabilities the temperature, ranks neither."""
    z, y = _random_cases(BINARY)
    plain = task_metrics(z, y, BINARY)
    keen = task_metrics(z, y, BINARY.replace(threshold=1e-9))
    mild = task_metrics(z, y, BINARY.replace(temperature=1000.0))
    assert (keen["sensitivity"], keen["specificity"]) == (1.0, 0.0)
    assert plain["auroc"] == keen["auroc"] == mild["auroc"]
    assert mild["log_loss"] == pytest.approx(math.log(2.0), abs=1e-3)
    assert mild["accuracy"] == plain["accuracy"]
    assert abs(plain["log_loss"] - math.log(2.0)) > 0.1


def test_multiclass_metrics_agree_with_scikit_learn() -> None:
    """Independent implementations give the same numbers."""
    z, y = _random_cases(MULTI)
    truth, called = y[:, 0], z.argmax(axis=1)
    found = task_metrics(z, y, MULTI)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, called))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss(truth, probabilities(z, MULTI)))
    assert found["accuracy"] == np.mean(truth == called)
    each = [found[f"auroc_{c}"] for c in "abc"]
    assert each == [auroc(truth == k, probabilities(z, MULTI)[:, k]) for k in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert len(set(each)) == 3


def test_an_unknown_label_leaves_its_case_out_of_that_label_only() -> None:
    """Label a: three known cases in order; b: one value only, so no AUROC; c: in the wrong order."""
    z = np.array([[1.0, 0, 4], [2, 0, 3], [3, 0, 2], [0, 0, 1]])
    nan = np.nan
    y = np.array([[0, 1, 0], [1, 1, 0], [1, nan, 1], [nan, 1, 1]])
    found = task_metrics(z, y, LABELS)
    assert (found["auroc_a"], found["auroc_c"]) == (1.0, 0.0)
    assert math.isnan(found["auroc_b"])
    assert found["auroc"] == 0.5
    assert found["auprc"] == pytest.approx((1.0 + (1 / 3 + 2 / 4) / 2) / 2)
    assert task_metrics(np.vstack([z, z[:1]]), np.vstack([y, [[nan] * 3]]), LABELS) == pytest.approx(found, nan_ok=True)


def test_kappa_agrees_with_scikit_learn() -> None:
    """Quadratic weights over all classes of the task, also those that nobody has; chance agreement is 0."""
    rng = np.random.default_rng(8)
    truth = rng.choice([0, 1, 3], 60)
    called = np.clip(truth + rng.integers(-1, 2, 60), 0, 3)
    expected = cohen_kappa_score(truth, called, weights="quadratic", labels=[0, 1, 2, 3])
    assert quadratic_weighted_kappa(truth, called, 4) == pytest.approx(expected)
    assert 0.3 < expected < 0.95
    assert quadratic_weighted_kappa(truth, truth, 4) == 1.0
    assert quadratic_weighted_kappa(np.array([0, 0, 3, 3]), np.array([0, 3, 0, 3]), 4) == 0.0
    assert math.isnan(quadratic_weighted_kappa(np.zeros(5), np.zeros(5), 4))


def test_ordinal_metrics_of_four_cases() -> None:
    """Calls 0, 1, 3, 3 against 0, 1, 2, 3: one class off once."""
    z = np.array([[-3.0, -5, -7], [3, -3, -5], [7, 5, 3], [7, 6, 4]])
    found = task_metrics(z, np.arange(4.0)[:, None], ORDINAL)
    assert list(found) == ["qwk", "mae", "accuracy", "auroc"]
    assert found["mae"] == 0.25
    assert found["accuracy"] == 0.75
    assert found["auroc"] == 1.0
    assert found["qwk"] == pytest.approx(cohen_kappa_score([0, 1, 2, 3], [0, 1, 3, 3], weights="quadratic"))
    # the middle pair turned around: cuts 0 and 2 lose nothing, cut 1 one pair of four
    turned = task_metrics(z, np.array([[0.0], [2], [1], [3]]), ORDINAL)
    assert turned["auroc"] == pytest.approx((1 + 0.75 + 1) / 3)


def test_regression_metrics_are_in_the_unit_of_the_column() -> None:
    """Predictions 8, 10, 14 against 9, 10, 12."""
    z, y = np.array([[-1.0], [0], [2]]), np.array([[9.0], [10], [12]])
    found = task_metrics(z, y, NUMBER)
    assert list(found) == ["r2", "mae", "rmse", "pearson", "spearman"]
    assert found["mae"] == 1.0
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(r2_score(y, [8, 10, 14]))
    assert found["pearson"] == pytest.approx(1.0)  # the predictions lie on a line over the truth
    assert found["spearman"] == pytest.approx(1.0)
    z, y = np.round(_random_cases(NUMBER)[0], 1), np.round(_random_cases(NUMBER)[1])
    assert task_metrics(z, y, NUMBER)["spearman"] == pytest.approx(spearmanr(z[:, 0], y[:, 0]).statistic)
    flat = task_metrics(np.zeros((3, 1)), np.array([[9.0], [10], [12]]), NUMBER)
    assert math.isnan(flat["pearson"])
    assert flat["r2"] < 0.0


def test_survival_is_judged_by_the_order_of_risks() -> None:
    """The higher the hazards the earlier the event: 1; the other way round: 0."""
    z = np.array([[2.0, 2], [0, 0], [-2, -2]])
    y = np.array([[0.5, 1.0], [1.5, 1.0], [2.5, 0.0]])
    assert task_metrics(z, y, SURVIVAL) == {"c_index": 1.0}
    assert task_metrics(-z, y, SURVIVAL) == {"c_index": 0.0}


@pytest.mark.parametrize("task", ALL, ids=lambda t: t.kind)
def test_the_primary_metric_comes_first_and_is_the_primary_score(task: TaskSettings) -> None:
    """What a model is chosen by is what the table says first; rows without a target change nothing."""
    z, y = _random_cases(task)
    found = task_metrics(z, y, task)
    assert next(iter(found)) == primary_metric(task)
    assert primary_score(z, y, task) == next(iter(found.values()))
    assert 0.0 < abs(primary_score(z, y, task)) < 1.0
    more = np.vstack([z, z[:4]]), np.vstack([y, np.full((4, task.n_targets), np.nan)])
    assert task_metrics(*more, task) == found


@pytest.mark.parametrize("task", ALL, ids=lambda t: t.kind)
@pytest.mark.filterwarnings("error")
def test_nothing_to_count_is_no_number(task: TaskSettings) -> None:
    """Without a known case every metric is NaN, without a warning, and none is 0."""
    z, y = _random_cases(task, 3)
    found = task_metrics(z, np.full_like(y, np.nan), task)
    assert all(math.isnan(v) for v in found.values())
    assert list(found) == list(task_metrics(*_random_cases(task), task))
    assert math.isnan(primary_score(z, np.full_like(y, np.nan), task))


@pytest.mark.parametrize("task", [BINARY, BINARY.replace(threshold=0.3), MULTI, ORDINAL, SURVIVAL], ids=str)
def test_calls_in_tables_and_in_metrics_are_the_same(task: TaskSettings) -> None:
    """One rule of calling, written for one slide and for many."""
    z, _ = _random_cases(task)
    probs = probabilities(z, task)
    names = [task.classes[k] for k in called_classes(probs, task)]
    assert names == [called_class(p, o, task) for p, o in zip(probs, z, strict=True)]
    assert len(set(names)) > 1


def test_targets_that_do_not_fit_are_refused() -> None:
    """Two tasks' targets for one, or a class that the task does not have."""
    with pytest.raises(ModelError, match="needs 3 outputs and 1 targets"):
        task_metrics(np.zeros((4, 3)), np.zeros((4, 2)), MULTI)
    with pytest.raises(ModelError, match="target 3 of row 1 is no class number below 3"):
        primary_score(np.zeros((2, 3)), np.array([[0.0], [3.0]]), MULTI)
