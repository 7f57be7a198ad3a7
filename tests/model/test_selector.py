"""Streaming selection: any order and chunking gives the top M of the whole bag, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from wsi_ips.errors import ModelError
from wsi_ips.model.ledger import ips_loop
from wsi_ips.model.selector import Selection, StreamingSelector


def _bag(n: int, queries: int, heads: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 3) that tell their row, and logits (n, T, H) with heads of unequal sharpness."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(n, queries, heads)) * np.linspace(0.2, 5.0, heads)).astype(np.float32)
    return np.stack([np.arange(n), np.arange(n) + 0.5, -np.arange(n)], 1).astype(np.float32), logits


def _stream(
    selector: StreamingSelector, bag: tuple[np.ndarray, np.ndarray], order: np.ndarray, chunk: int
) -> Selection:
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        selector.add(rows, bag[0][rows], bag[1][rows])
    return selector.finish()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 120), st.integers(1, 4), st.integers(1, 8), st.integers(1, 20),
    st.integers(1, 40), st.integers(0, 10), st.integers(0, 999),
)  # fmt: skip
def test_fault_063_the_selection_is_the_top_m_of_the_whole_bag(
    n: int, queries: int, heads: int, m: int, chunk: int, slack: int, seed: int
) -> None:
    """Any heads, queries, order, chunk size and slack: the rows of the best full-softmax scores, best first."""
    bag = _bag(n, queries, heads, seed)
    order = np.random.default_rng(seed + 1).permutation(n)
    found = _stream(StreamingSelector(n, m, slack), bag, order, chunk)
    full = softmax(bag[1].astype(np.float64), axis=0).mean((1, 2))
    assert found.rows.tolist() == sorted(range(n), key=lambda r: (-full[r], r))[:m]
    assert np.allclose(found.scores, full, rtol=1e-9, atol=1e-12)
    assert np.array_equal(found.logits, bag[1])
    known = np.delete(np.arange(len(found.rows)), found.missing)
    assert np.array_equal(found.features[known], bag[0][found.rows[known]])
    assert np.isnan(found.features[found.missing]).all()


def test_the_buffer_is_bounded() -> None:
    """However long the slide, at most M + slack features are held between chunks."""
    bag = _bag(3000, 1, 8, 0)
    selector = StreamingSelector(3000, 20, slack=5)
    for start in range(0, 3000, 50):
        rows = np.arange(start, start + 50)
        selector.add(rows, bag[0][rows], bag[1][rows])
        assert selector.n_held <= 25


def test_dropped_members_are_named() -> None:
    """Heads whose normalisers move late can bring back a tile that had left the buffer: it is listed, not lost."""
    logits = np.zeros((6, 1, 2), np.float32)
    logits[0, 0] = (3.0, 0.0)  # the best by head 1, which is sharp from the start
    logits[1, 0] = (2.9, 0.1)
    logits[2, 0] = (-9.0, 1.2)
    logits[3:, 0] = (6.0, -9.0)  # late tiles take head 1 for themselves
    bag = np.arange(6, dtype=np.float32)[:, None], logits
    full = softmax(logits.astype(np.float64), axis=0).mean((1, 2))
    wanted = sorted(range(6), key=lambda r: (-full[r], r))[:1]
    found = _stream(StreamingSelector(6, 1, slack=0), bag, np.arange(6), 1)
    assert found.rows.tolist() == wanted == [2]
    assert found.missing.tolist() == [0]
    assert np.isnan(found.features).all()


def test_fault_106_ties_go_to_the_lower_row() -> None:
    """64 equal tiles in random order: the selection is the first rows of the grid."""
    bag = np.zeros((64, 2), np.float32), np.zeros((64, 1, 4), np.float32)
    order = np.random.default_rng(0).permutation(64)
    assert _stream(StreamingSelector(64, 5, 5), bag, order, 7).rows.tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 100),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(1, 30),
    st.integers(1, 15),
    st.integers(0, 99),
)
def test_mode_ips_keeps_what_the_papers_loop_keeps(
    n: int, heads: int, m: int, chunk: int, added: int, seed: int
) -> None:
    """Whatever the size of the chunks added, memory + I tiles are compared as in the paper, with no second encode."""
    bag = _bag(n, 2, heads, seed)
    found = _stream(StreamingSelector(n, m, mode="ips", chunk_size=chunk), bag, np.arange(n), added)
    assert set(found.rows) == set(ips_loop(bag[1], m, chunk))
    assert not len(found.missing)
    assert np.array_equal(found.features, bag[0][found.rows])


def test_tiles_never_added_are_never_chosen() -> None:
    """Rows that could not be read stay out, with score 0, though fewer than M remain."""
    bag = _bag(5, 1, 2, 0)
    found = _stream(StreamingSelector(5, 9), bag, np.array([4, 0, 2]), 2)
    assert sorted(found.rows) == [0, 2, 4]
    assert found.scores[[1, 3]].tolist() == [0.0, 0.0]
    assert found.scores.sum() == pytest.approx(1.0)


def test_bad_chunks_are_refused() -> None:
    """NaN is an error with the tile's row; twice the same tile, or none at all, is an error too."""
    (features, logits) = _bag(5, 1, 2, 0)
    logits[3, 0, 1] = np.nan
    with pytest.raises(ModelError, match="row 3") as caught:
        StreamingSelector(5, 2).add(np.array([1, 3]), features[[1, 3]], logits[[1, 3]])
    assert caught.value.code == "E_NOT_FINITE"
    selector = StreamingSelector(5, 2)
    selector.add(np.array([1]), features[[1]], logits[[1]])
    with pytest.raises(ModelError, match="twice"):
        selector.add(np.array([1]), features[[1]], logits[[1]])
    with pytest.raises(ModelError, match="grid of 5"):
        selector.add(np.array([5]), features[[1]], logits[[1]])
    with pytest.raises(ModelError, match="no tile"):
        StreamingSelector(5, 2).finish()
