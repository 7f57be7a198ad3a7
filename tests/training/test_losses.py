"""Losses with known values, unknown targets, and sums over parts of a step."""

from __future__ import annotations

from math import exp, log, log1p, nan

import numpy as np
import pytest
import torch

from wsi_ips.tasks import TaskSettings, probabilities
from wsi_ips.training.losses import (
    MixedTargets,
    balanced_weights,
    combine,
    known,
    slide_loss,
    slide_losses,
)

BINARY = TaskSettings(name="b", classes=("n", "p"))
THREE = TaskSettings(name="m", kind="multiclass", classes=("x", "y", "z"), weight=2.0)
LABELS = TaskSettings(name="l", kind="multilabel", classes=("u", "v"))
GRADES = TaskSettings(name="o", kind="ordinal", classes=("1", "2", "3"))
VALUE = TaskSettings(name="r", kind="regression", center=10.0, spread=2.0)
TIMES = TaskSettings(name="s", kind="survival", event_column="e", cuts=(1.0, 2.0), classes=("a", "b", "c"))
ALL = (BINARY, THREE, LABELS, GRADES, VALUE, TIMES)  # P = 1 + 3 + 2 + 2 + 1 + 2 = 11, Q = 1 + 1 + 2 + 1 + 1 + 2 = 8


def _bce(z: float, y: float) -> float:
    return log1p(exp(-z)) if y else log1p(exp(z))


def _one(task: TaskSettings, logits: list[float], target: list[float], weights: list[float] | None = None) -> float:
    z, y = (torch.tensor([v], dtype=torch.float64) for v in (logits, target))
    return float(slide_losses(z, y, (task,), None if weights is None else [weights]))


def _batch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n), rng.integers(0, 2, n), rng.integers(0, 2, n),
                  rng.integers(0, 3, n), rng.normal(10, 2, n), rng.uniform(0, 3, n), rng.integers(0, 2, n)], axis=1)  # fmt: skip
    y = y.astype(np.float64)
    for task_columns in ([0], [1], [2], [4], [5], [6, 7]):
        y[np.ix_(rng.random(n) < 0.3, task_columns)] = nan
    return torch.from_numpy(rng.normal(size=(n, 11))), torch.from_numpy(y)


def test_binary_and_multiclass_are_cross_entropies() -> None:
    """-log of the probability of what was the case."""
    assert _one(BINARY, [0.3], [1.0]) == pytest.approx(_bce(0.3, 1.0))
    assert _one(THREE, [1.0, 2.0, 0.5], [2.0]) == pytest.approx(log(exp(1.0) + exp(2.0) + exp(0.5)) - 0.5)


def test_multilabel_is_the_mean_over_known_labels() -> None:
    """An unknown label has no part, not even in the mean."""
    assert _one(LABELS, [0.3, -1.0], [1.0, 0.0]) == pytest.approx((_bce(0.3, 1.0) + _bce(-1.0, 0.0)) / 2)
    assert _one(LABELS, [0.3, -1.0], [nan, 0.0]) == pytest.approx(_bce(-1.0, 0.0))


def test_ordinal_asks_of_every_cut_whether_the_class_lies_above() -> None:
    """Class 1 of 0, 1, 2 lies above the first cut and not above the second."""
    assert _one(GRADES, [0.4, -0.7], [1.0]) == pytest.approx((_bce(0.4, 1.0) + _bce(-0.7, 0.0)) / 2)


def test_regression_is_the_squared_error_in_units_of_the_spread() -> None:
    """Value 14 with center 10 and spread 2 stands at 2."""
    assert _one(VALUE, [0.5], [14.0]) == pytest.approx((2.0 - 0.5) ** 2)


@pytest.mark.parametrize(
    ("time", "event", "terms"),
    [
        (0.5, 1.0, [(0, 1)]),  # seen in the first interval: -log h_0
        (1.5, 1.0, [(0, 0), (1, 1)]),  # survived the first, seen in the second
        (1.0, 1.0, [(0, 0), (1, 1)]),  # a time on a cut belongs above it
        (2.0, 1.0, [(0, 0), (1, 0)]),  # later than the last cut: survived all, seen or not
        (9.0, 0.0, [(0, 0), (1, 0)]),
        (0.9, 0.0, []),  # left within the first: nothing was survived whole
        (1.9, 0.0, [(0, 0)]),
    ],
)
def test_survival_is_the_likelihood_of_hazards(time: float, event: float, terms: list[tuple[int, int]]) -> None:
    """-log h of the interval of the event, -log (1 - h) of every interval survived whole."""
    z = [0.7, -0.4]
    assert _one(TIMES, z, [time, event]) == pytest.approx(sum(_bce(z[j], y) for j, y in terms))


@pytest.mark.parametrize("time", [0.2, 1.4, 5.0])
def test_survivals_loss_of_an_event_is_minus_the_log_of_its_probability(time: float) -> None:
    """The loss and the probabilities that users see speak of one model."""
    z = np.array([0.7, -0.4])
    k = int(np.searchsorted(TIMES.cuts, time, side="right"))
    assert _one(TIMES, z.tolist(), [time, 1.0]) == pytest.approx(-log(probabilities(z, TIMES)[k]))


def test_unknown_targets_cost_nothing_and_leave_gradients_finite() -> None:
    """A row of unknowns: loss 0, gradient 0, no NaN anywhere."""
    z, y = _batch(6)
    y[2] = nan
    z.requires_grad_()
    losses = slide_losses(z, y, ALL)
    assert torch.equal(losses[2], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(losses == 0.0, known(y, ALL) == 0.0)
    combine(losses, known(y, ALL).sum(0), ALL).backward()
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())
    assert float(z.grad[2].abs().sum()) == 0.0
    assert float(slide_loss(z.detach(), torch.full_like(y, nan), ALL)) == 0.0


def test_parts_of_a_step_sum_to_the_whole() -> None:
    """Loss and gradient of three processes with 1, 4 and 0 slides add up to those of one process with 5."""
    z, y = _batch(5)
    weights = balanced_weights(y.numpy(), ALL)
    totals = known(y, ALL).sum(0)
    whole = z.clone().requires_grad_()
    loss = slide_loss(whole, y, ALL, class_weights=weights)
    loss.backward()
    parts = z.clone().requires_grad_()
    cut = [slide_loss(parts[r], y[r], ALL, class_weights=weights, totals=totals) for r in ([0], [1, 2, 3, 4], [])]
    torch.stack(cut).sum().backward()
    assert float(torch.stack(cut).detach().sum()) == pytest.approx(float(loss.detach()), rel=1e-14)
    assert torch.allclose(parts.grad, whole.grad, rtol=1e-13, atol=0.0)  # type: ignore[arg-type]


def test_tasks_count_by_their_weight_and_only_where_known() -> None:
    """Two tasks of weight 1 and 2; one without any target drops out of the mean."""
    z = torch.tensor([[0.3, 1.0, 2.0, 0.5]], dtype=torch.float64)
    one, two = _one(BINARY, [0.3], [1.0]), _one(THREE, [1.0, 2.0, 0.5], [2.0])
    assert float(slide_loss(z, torch.tensor([[1.0, 2.0]]), (BINARY, THREE))) == pytest.approx((one + 2 * two) / 3)
    assert float(slide_loss(z, torch.tensor([[1.0, nan]]), (BINARY, THREE))) == pytest.approx(one)


def test_balanced_weights_are_inverse_frequencies_with_mean_one() -> None:
    """3 negatives and 1 positive: 4 / (2 x 3) and 4 / (2 x 1); unknowns are not counted; values have none."""
    y = np.array([[0, 0, 1.0], [0, nan, 2.0], [0, 1, 3.0], [1, 1, 4.0], [nan, 1, 5.0]])
    tasks = (BINARY, TaskSettings(name="l", kind="multilabel", classes=("u",)), VALUE)
    binary, labels, value = balanced_weights(y, tasks)
    assert binary == pytest.approx((4 / 6, 4 / 2))
    assert labels == pytest.approx((4 / 2, 4 / 6))
    assert value == ()
    losses = slide_losses(torch.zeros(5, 3), torch.from_numpy(y), tasks, (binary, labels, value))
    assert float(losses[:, 0].sum() / 4) == pytest.approx(log(2.0), rel=1e-6)
    assert _one(BINARY, [0.3], [1.0], [0.5, 3.0]) == pytest.approx(3.0 * _bce(0.3, 1.0))
    assert _one(GRADES, [0.3, 0.1], [2.0], [1.0, 1.0, 5.0]) == pytest.approx(5 * _one(GRADES, [0.3, 0.1], [2.0]))


def test_a_mixed_slide_is_held_against_both_by_share() -> None:
    """lam loss(own) + (1 - lam) loss(other); the normaliser knows which part is known."""
    z, y = torch.tensor([[0.8], [0.8]], dtype=torch.float64), torch.tensor([[1.0], [1.0]])
    mixed = MixedTargets(y, torch.tensor([[0.0], [nan]]), torch.tensor([0.7, 0.75]))
    losses = slide_losses(z, mixed, (BINARY,))
    assert losses[:, 0].tolist() == pytest.approx(
        [0.7 * _bce(0.8, 1) + 0.3 * _bce(0.8, 0), 0.75 * _bce(0.8, 1)], rel=1e-6
    )
    assert known(mixed, (BINARY,))[:, 0].tolist() == pytest.approx([1.0, 0.75], rel=1e-6)
    expected = float(losses.sum()) / 1.75
    assert float(slide_loss(z, mixed, (BINARY,))) == pytest.approx(expected, rel=1e-6)
    alone = MixedTargets(y[:1], torch.tensor([[nan]]), torch.tensor([0.2]))
    assert float(slide_loss(z[:1], alone, (BINARY,))) == pytest.approx(_bce(0.8, 1), rel=1e-6)


def test_float32_logits_give_float32_losses_for_float64_targets() -> None:
    """Targets of a cohort fit a model's outputs as they are."""
    z, y = _batch(4)
    losses = slide_losses(z.float(), y, ALL)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), slide_losses(z, y, ALL), atol=1e-5)


def test_weights_of_a_label_are_those_of_its_absence_and_presence() -> None:
    """(absent, present) for each label in turn: a rare label that is there counts by the second of its pair."""
    found = _one(LABELS, [0.3, -1.0], [1.0, 0.0], [0.5, 3.0, 0.25, 7.0])
    assert found == pytest.approx((3.0 * _bce(0.3, 1.0) + 0.25 * _bce(-1.0, 0.0)) / 2)
