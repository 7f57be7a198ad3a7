"""Thresholds and what they cost, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_ips.stats.operating import apply_threshold, operating_points

TRUTH = np.array([0] * 20 + [1] * 20)
# negatives at 0.01 .. 0.20, but three at 0.5, 0.6, 0.97; positives at 0.61 .. 0.80, but two at 0.05, 0.4
PROB = np.concatenate([np.arange(1, 18) / 100, [0.5, 0.6, 0.97], [0.055, 0.4], np.arange(63, 81) / 100])


def test_a_threshold_is_counted_by_hand() -> None:
    """Two hits of three, one pass of two; a case at the threshold is called."""
    found = apply_threshold(np.array([0.9, 0.5, 0.1, 0.7, 0.2]), np.array([1, 1, 1, 0, 0]), 0.5, "mine")
    assert found == ("mine", 0.5, 2 / 3, 0.5, 2 / 3, 0.5)
    nothing = apply_threshold(np.array([0.1, 0.2]), np.array([1, 0]), 0.5)
    assert math.isnan(nothing.ppv)
    assert nothing[2:4] == (0.0, 1.0)


def test_the_chosen_points_are_the_best_that_keep_their_promise() -> None:
    """Each fixed rate is reached with the other rate as large as any threshold allows; Youden's sum is the largest."""
    points = {p.name: p for p in operating_points(PROB, TRUTH)}
    every = [apply_threshold(PROB, TRUTH, t) for t in (*np.unique(PROB), 2.0)]
    for name, point in points.items():
        if name == "youden":
            assert point.sensitivity + point.specificity == max(p.sensitivity + p.specificity for p in every)
            continue
        kept, asked = name.split()
        other = "specificity" if kept == "sensitivity" else "sensitivity"
        able = [p for p in every if getattr(p, kept) >= float(asked)]
        assert getattr(point, kept) >= float(asked)
        assert getattr(point, other) == max(getattr(p, other) for p in able)
        assert point == apply_threshold(PROB, TRUTH, point.threshold, name)
    assert list(points) == ["youden", "sensitivity 0.90", "sensitivity 0.95", "specificity 0.90", "specificity 0.95"]
    assert points["youden"].threshold == pytest.approx(0.615)  # halfway between 0.6 and 0.63
    assert points["sensitivity 0.90"][2:4] == (0.9, 0.95)
    assert points["sensitivity 0.95"][2:4] == (0.95, 0.85)


def test_of_equal_youden_points_the_most_sensitive_is_taken() -> None:
    """Positive, negative, positive, negative from above: 0.5 + 1 and 1 + 0.5 tie."""
    points = operating_points(np.array([0.8, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0]))
    assert points[0][2:4] == (1.0, 0.5)
    assert points[0].threshold == pytest.approx(0.3)


def test_calling_nobody_and_calling_everybody_are_thresholds_too() -> None:
    """A wrong order reaches its specificity by calling nobody, its sensitivity by calling all."""
    points = {p.name: p for p in operating_points(np.array([1.0, 0.7, 0.3, 0.0]), np.array([0, 0, 1, 1]))}
    assert points["specificity 0.95"][2:4] == (0.0, 1.0)
    assert points["specificity 0.95"].threshold > 1.0
    assert points["sensitivity 0.95"][1:4] == (0.0, 1.0, 0.0)


def test_rounding_a_threshold_changes_no_call() -> None:
    """Six digits in a file are enough, even for probabilities of more."""
    rng = np.random.default_rng(0)
    prob, truth = rng.random(60), rng.random(60) < 0.5
    for point in operating_points(prob, truth):
        assert apply_threshold(prob, truth, float(f"{point.threshold:.6g}"))[2:] == point[2:]


def test_neighbours_without_a_number_between_are_still_told_apart() -> None:
    """Halfway between adjacent floats is one of them; the right one is taken."""
    low = 0.3
    high = np.nextafter(low, 1.0)
    point = operating_points(np.array([low, high]), np.array([0, 1]))[0]
    assert point[2:4] == (1.0, 1.0)
    point = operating_points(np.array([high, np.nextafter(high, 1.0)]), np.array([0, 1]))[0]
    assert point[2:4] == (1.0, 1.0)


def test_one_class_alone_has_no_operating_points() -> None:
    """Nothing to trade."""
    assert operating_points(np.array([0.2, 0.4]), np.array([1, 1])) == []
