"""What outputs mean: probabilities, calls, numbers and cells of every kind of task."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, softmax

from wsi_ips.errors import ConfigError
from wsi_ips.tasks import (
    TaskSettings,
    called_class,
    predicted_number,
    prediction_cells,
    probabilities,
    split_outputs,
    split_targets,
)

BINARY = TaskSettings(name="b", classes=("n", "p"))
THREE = TaskSettings(name="m", kind="multiclass", classes=("x", "y", "z"))
LABELS = TaskSettings(name="l", kind="multilabel", classes=("u", "v"))
GRADES = TaskSettings(name="o", kind="ordinal", classes=("1", "2", "3"))
VALUE = TaskSettings(name="r", kind="regression", center=10.0, spread=2.0)
TIMES = TaskSettings(name="s", kind="survival", event_column="e", cuts=(12.0, 24.0), classes=("0-12", "12-24", "later"))
ALL = (BINARY, THREE, LABELS, GRADES, VALUE, TIMES)


def _call(task: TaskSettings, *logits: float) -> str:
    z = np.array(logits)
    return called_class(probabilities(z, task), z, task)


def test_outputs_and_targets_of_several_tasks_are_cut_in_their_order() -> None:
    """Sizes by kind: 1, 3, 2, 2, 1, 2 outputs and 1, 1, 2, 1, 1, 2 targets."""
    assert [t.n_outputs for t in ALL] == [1, 3, 2, 2, 1, 2]
    assert [t.n_targets for t in ALL] == [1, 1, 2, 1, 1, 2]
    z, y = np.arange(22.0).reshape(2, 11), np.arange(16.0).reshape(2, 8)
    assert [part[1, 0] for part in split_outputs(z, ALL)] == [11.0, 12.0, 15.0, 17.0, 19.0, 20.0]
    assert [part[0].tolist() for part in split_targets(y, ALL)] == [[0], [1], [2, 3], [4], [5], [6, 7]]


@pytest.mark.parametrize("task", [BINARY, THREE, GRADES, TIMES], ids=lambda t: t.kind)
def test_probabilities_of_exclusive_classes_sum_to_one(task: TaskSettings) -> None:
    """For any logits, ordinal ones out of order included; none is negative."""
    z = np.random.default_rng(0).normal(0, 3, (50, 4, task.n_outputs))
    probs = probabilities(z, task)
    assert probs.shape == (50, 4, len(task.classes))
    assert np.abs(probs.sum(axis=-1) - 1.0).max() < 1e-12
    assert probs.min() >= 0.0


def test_probabilities_have_known_values() -> None:
    """Sigmoid, softmax, differences of cumulative sigmoids, hazards times survival."""
    z = np.array([0.4, -0.7])
    above, hazard = expit(z), expit(z)
    assert probabilities(z[:1], BINARY) == pytest.approx([1 - expit(0.4), expit(0.4)])
    assert probabilities(np.array([1.0, 2.0, 0.5]), THREE) == pytest.approx(softmax([1.0, 2.0, 0.5]))
    assert probabilities(z, LABELS) == pytest.approx(expit(z))
    assert probabilities(z, GRADES) == pytest.approx([1 - above[0], above[0] - above[1], above[1]])
    left = 1 - hazard[0]
    assert probabilities(z, TIMES) == pytest.approx([hazard[0], left * hazard[1], left * (1 - hazard[1])])
    assert probabilities(z[:1], VALUE).shape == (0,)


def test_temperature_divides_logits() -> None:
    """Calibration makes a model less sure and changes no order."""
    assert probabilities(np.array([3.0]), BINARY.replace(temperature=2.0))[1] == pytest.approx(expit(1.5))


def test_numbers_grow_with_what_they_stand_for() -> None:
    """Value, probability, expected class, risk; classes without order have none."""
    assert predicted_number(np.array([[0.5]]), VALUE).tolist() == [11.0]
    assert predicted_number(np.array([0.4]), BINARY) == pytest.approx(expit(0.4))
    assert predicted_number(np.array([0.4, -0.7]), GRADES) == pytest.approx(expit(0.4) + expit(-0.7))
    s1 = 1 - expit(0.4)
    assert predicted_number(np.array([0.4, -0.7]), TIMES) == pytest.approx(-(s1 + s1 * (1 - expit(-0.7))))
    low, high = predicted_number(np.array([[-3.0, -3.0], [3.0, 3.0]]), TIMES)
    assert low < high
    assert np.isnan(predicted_number(np.zeros((2, 3)), THREE)).all()


def test_calls_follow_threshold_median_or_largest_probability() -> None:
    """The threshold itself is positive; ordinal and survival call the class that holds the median."""
    assert _call(BINARY, 0.0) == "p"
    assert _call(BINARY, -0.1) == "n"
    assert _call(BINARY.replace(threshold=0.9), 2.0) == "n"
    assert _call(THREE, 0.1, 0.3, 0.2) == "y"
    assert _call(GRADES, 2.0, 1.0) == "3"
    assert _call(GRADES, 2.0, -1.0) == "2"
    assert _call(TIMES, 1.0, 0.0) == "0-12"
    assert _call(TIMES, -5.0, -5.0) == "later"
    assert _call(VALUE, 0.25) == "10.5"


def test_a_multilabel_call_names_all_or_says_none() -> None:
    """An empty cell would read as unknown, so nothing found is said in words."""
    assert _call(LABELS, 1.0, 1.0) == "u;v"
    assert _call(LABELS, -1.0, 1.0) == "v"
    assert _call(LABELS, -1.0, -1.0) == "none"


def test_cells_of_one_task_are_plain_and_of_several_carry_its_name() -> None:
    """pred and prob_<class>, or <task> and <task>_prob_<class>; survival has a risk."""
    assert prediction_cells(np.array([0.0]), (BINARY,)) == {
        "pred": "p",
        "prob_n": "0.500000",
        "prob_p": "0.500000",
        "threshold": "0.5",
    }
    cells = prediction_cells(np.zeros(4), (BINARY, VALUE, TIMES))
    assert list(cells) == ["b", "b_prob_n", "b_prob_p", "b_threshold", "r", "s", "s_prob_0-12", "s_prob_12-24",
                           "s_prob_later", "s_risk"]  # fmt: skip
    assert cells["r"] == "10"
    assert cells["s_risk"] == "-0.750000"  # survival 0.5 and 0.25


def test_a_task_names_the_columns_it_reads() -> None:
    """The name by default; survival reads a second one, once it is named."""
    assert THREE.columns == ("m",)
    assert TaskSettings(name="t", column="Label").columns == ("Label",)
    assert TIMES.replace(column="months").columns == ("months", "e")
    assert TaskSettings(name="t", kind="survival").columns == ("t",)


def test_a_task_is_resolved_when_its_outputs_can_be_counted() -> None:
    """Classes, or survival's intervals; a regression needs neither."""
    assert [t.is_resolved for t in ALL] == [True] * 6
    assert not TaskSettings().is_resolved
    assert not TaskSettings(kind="survival", cuts=(1.0,)).is_resolved


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"classes": ("a", "b", "c")}, "is binary and has 3 classes"),
        ({"kind": "ordinal", "classes": ("a",)}, "is ordinal and has 1 classes"),
        ({"kind": "multiclass", "classes": ("a", "b", "a")}, "a class is named twice"),
        ({"kind": "survival", "cuts": (2.0, 1.0)}, "cuts must rise"),
        ({"kind": "survival", "cuts": (1.0,), "classes": ("a",)}, "1 cuts make 2 intervals, not 1"),
        ({"spread": 0.0}, "greater than 0"),
    ],
)
def test_tasks_that_cannot_be_are_refused(wrong: dict[str, object], text: str) -> None:
    """At once where they are made, and as a ConfigError where settings are changed."""
    with pytest.raises(ValidationError, match=text):
        TaskSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text):
        TaskSettings().replace(**wrong)
