"""Embeddings that follow their encoder: what is told of rows that were not made anew, and of those that were."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.training.drift import follow_drift


@pytest.mark.parametrize("n", [12, 60])  # fewer and more rows than the embeddings are wide
def test_one_map_for_all_is_found(n: int) -> None:
    """200 rows in 5 of 40 dimensions, turned and shifted as one: the others land where the encoder puts them."""
    rng = np.random.default_rng(0)
    old = (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 40))).astype(np.float32)
    now = old + 0.3 * old @ rng.normal(size=(40, 40)) / 6.0 + 1.5
    rows = rng.permutation(200)[:n]
    found = follow_drift(old, rows, now[rows].astype(np.float32)).embeddings
    others = np.setdiff1d(np.arange(200), rows)
    assert np.abs(found[others] - now[others]).mean() < 0.05 * np.abs(old[others] - now[others]).mean()


@pytest.mark.parametrize(("n", "width"), [(9, 20), (40, 6)])
def test_a_row_made_anew_is_guessed_from_the_others(n: int, width: int) -> None:
    """As if it had been left out, so that it can audit the guess of rows that nobody has looked at."""
    rng = np.random.default_rng(1)
    old = rng.normal(size=(100, width)).astype(np.float32)
    now = (old @ (np.eye(width) + 0.2 * rng.normal(size=(width, width))) + 0.1 * rng.normal(size=old.shape)).astype(np.float32)
    rows = np.arange(n)
    left_out = follow_drift(old, rows, now[rows]).left_out
    alone = [follow_drift(old, np.delete(rows, i), now[np.delete(rows, i)]).embeddings[i] for i in range(n)]
    # the ridge and the centre are those of all n rows, so the two agree but for that
    assert np.abs(left_out - np.array(alone)).max() < 0.1 * np.abs(left_out - now[rows]).max()
    assert np.abs(left_out - now[rows]).mean() > 1e-3


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_rows_tell_nothing(n: int) -> None:
    """The old embeddings stay."""
    old = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)
    found = follow_drift(old, np.arange(n), old[:n] + 1.0)
    assert np.array_equal(found.embeddings, old)
    assert np.array_equal(found.left_out, old[:n])
