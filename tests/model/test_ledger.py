"""The ledger: exact whole-bag softmax, exact top M, shards that merge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from wsi_ips.errors import ModelError
from wsi_ips.model import ledger as ledger_room
from wsi_ips.model.ledger import (
    attention_from_logits,
    ips_loop,
    log_normalisers,
    merge_ledgers,
    scores_from_logits,
    top_rows,
)


def make_logits(n: int, queries: int, heads: int, seed: int) -> np.ndarray:
    """Logits (n, T, H) float32 whose heads differ in sharpness, where the paper's loop goes wrong."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, queries, heads)) * np.linspace(0.2, 5.0, heads)).astype(np.float32)


def _naive_top(scores: np.ndarray, m: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:m]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(1, 8), st.integers(0, 999), st.floats(-300, 300))
def test_scores_and_attention_equal_the_softmax_of_the_whole_bag(
    n: int, queries: int, heads: int, seed: int, shift: float
) -> None:
    """Scores are the mean over queries and heads, attention the mean over heads, of each head's full softmax."""
    logits = make_logits(n, queries, heads, seed) + np.float32(shift)
    full = softmax(logits.astype(np.float64), axis=0)
    assert np.allclose(scores_from_logits(logits), full.mean((1, 2)), rtol=1e-9, atol=1e-12)
    attention = attention_from_logits(logits)
    assert np.allclose(attention, full.mean(2), rtol=1e-9, atol=1e-12)
    assert np.allclose(attention.sum(0), 1.0, atol=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in blocks gives the numbers of one block."""
    logits = make_logits(1000, 2, 3, 0)
    whole = scores_from_logits(logits), log_normalisers(logits)
    monkeypatch.setattr(ledger_room, "_BLOCK", 37)
    assert np.allclose(scores_from_logits(logits), whole[0], rtol=1e-12, atol=0)
    assert np.allclose(log_normalisers(logits), whole[1], rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70))
def test_fault_106_top_rows_are_exact_with_ties_to_the_lower_row(values: list[int], m: int) -> None:
    """Few distinct scores, so ties everywhere: the answer is the sort by (-score, row)."""
    scores = np.array(values) / 7
    assert top_rows(scores, m).tolist() == _naive_top(scores, m)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fault_105_scores_that_are_not_finite_are_named(bad: float) -> None:
    """A NaN never wins a place: it is an error with its row."""
    with pytest.raises(ModelError, match="row 2") as caught:
        top_rows(np.array([0.1, 0.2, bad, 0.3]), 2)
    assert caught.value.code == "E_NOT_FINITE"


def test_unseen_tiles_weigh_nothing() -> None:
    """A row of -inf has attention 0 and the others sum to 1."""
    logits = make_logits(6, 2, 3, 1)
    logits[4] = -np.inf
    attention = attention_from_logits(logits)
    assert attention[4].tolist() == [0.0, 0.0]
    assert np.allclose(np.delete(attention, 4, 0), attention_from_logits(np.delete(logits, 4, 0)), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 80), st.integers(1, 6), st.integers(0, 999))
def test_shards_merge_to_the_same_ledger(n: int, n_shards: int, seed: int) -> None:
    """Any split of the rows over shards, in any order, merges to the ledger of one pass."""
    logits = make_logits(n, 2, 3, seed)
    rng = np.random.default_rng(seed)
    shards = [(rows, logits[rows]) for rows in np.array_split(rng.permutation(n), n_shards)]
    assert np.array_equal(merge_ledgers(shards, n), logits)


def test_shards_that_overlap_or_leave_gaps_are_refused() -> None:
    """Every row exactly once, or an error that names a row."""
    logits = make_logits(4, 1, 2, 0)
    with pytest.raises(ModelError, match="row 3 is given 0 times"):
        merge_ledgers([(np.arange(3), logits[:3])], 4)
    with pytest.raises(ModelError, match="row 1 is given 2 times"):
        merge_ledgers([(np.arange(4), logits), (np.array([1]), logits[:1])], 4)
    with pytest.raises(ModelError, match="outside"):
        merge_ledgers([(np.arange(1, 5), logits)], 4)
    with pytest.raises(ModelError, match="differ"):
        merge_ledgers([(np.arange(2), logits[:2]), (np.arange(2, 4), logits[2:, :, :1])], 4)


def _naive_loop(logits: np.ndarray, m: int, chunk: int) -> set[int]:
    """The paper's loop in plain words."""
    memory = list(range(min(m, len(logits))))
    position = len(memory)
    while position < len(logits):
        candidates = sorted(memory + list(range(position, min(position + chunk, len(logits)))))
        position += chunk
        scores = softmax(logits[candidates].astype(np.float64), axis=0).mean((1, 2))
        memory = [candidates[i] for i in _naive_top(scores, m)]
    return set(memory)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 12), st.integers(1, 20), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99)
)
def test_the_loop_is_the_papers(n: int, m: int, chunk: int, queries: int, heads: int, seed: int) -> None:
    """For any number of heads the loop keeps what the written-out loop keeps."""
    logits = make_logits(n, queries, heads, seed)
    assert set(ips_loop(logits, m, chunk).tolist()) == _naive_loop(logits, m, chunk)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 20), st.integers(0, 999))
def test_with_one_head_the_loop_is_exact(n: int, m: int, chunk: int, seed: int) -> None:
    """One head and one query: a softmax keeps the order, so the loop finds the top M of the whole bag."""
    logits = make_logits(n, 1, 1, seed)
    assert set(ips_loop(logits, m, chunk)) == set(top_rows(scores_from_logits(logits), m))


def test_with_several_heads_the_loop_depends_on_the_chunk() -> None:
    """Why the ledger exists: one sharp head among flat ones is swamped when few tiles share a softmax."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(20_000, 1, 8)) * np.array([5.0] + [0.2] * 7)).astype(np.float32)
    exact = set(top_rows(scores_from_logits(logits), 100))
    overlap = [len(exact & set(ips_loop(logits, 100, chunk))) for chunk in (100, 5000)]
    assert overlap[0] < 95
    assert overlap[0] != overlap[1]
