"""The ledger: every tile's attention logits, and what follows from them exactly.

With fixed weights a tile's logit depends on that tile alone; only the softmax depends on the company. So N x T x H
numbers, kept while the slide streams by, give the softmax of every head over the whole bag, the exact top M for any
number of heads, any order and chunking, and a merge of shards by putting rows together.

Shapes: N tiles, T queries, H heads, M memory size. Logits are float32; sums and scores float64, computed in blocks
so that nothing but the ledger itself grows with N. A row of -inf is a tile that was not seen: its weight is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from wsi_ips.errors import ModelError

__all__ = [
    "attention_from_logits",
    "check_finite_rows",
    "ips_loop",
    "log_normalisers",
    "merge_ledgers",
    "scores_from_logits",
    "top_rows",
]

_BLOCK = 8192  # rows worked on at a time


def log_normalisers(logits: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials over all N tiles: (N, T, H) -> (T, H) float64; -inf when no tile was seen."""
    if not len(logits):
        return np.full(logits.shape[1:], -np.inf)
    top = logits.max(axis=0).astype(np.float64)
    safe = np.where(np.isfinite(top), top, 0.0)
    total = np.zeros(logits.shape[1:])
    for rows in _blocks(len(logits)):
        total += np.exp(logits[rows] - safe).sum(axis=0)
    with np.errstate(divide="ignore"):
        return safe + np.log(total)


def attention_from_logits(logits: np.ndarray) -> np.ndarray:
    """Softmax over all N tiles, mean over heads: (N, T, H) -> (N, T) float64; each column sums to 1."""
    return _mean_softmax(logits, log_normalisers(logits), axis=2)


def scores_from_logits(logits: np.ndarray, log_norm: np.ndarray | None = None) -> np.ndarray:
    """Score of every tile: mean over queries and heads of its softmax weights, (N, T, H) -> (N,) float64.

    Args:
        logits: all tiles, or some of them when `log_norm` is given.
        log_norm: (T, H), normalisers of the whole bag; None takes those of `logits`.
    """
    return _mean_softmax(logits, log_normalisers(logits) if log_norm is None else log_norm, axis=(1, 2))


def top_rows(scores: np.ndarray, memory_size: int) -> np.ndarray:
    """Find the rows of the best scores: (N,) -> (min(M, N),) int64, best first, ties to the lower row.

    Raises:
        ModelError: `E_NOT_FINITE`, naming the first row whose score is not finite.

    >>> top_rows(np.array([0.2, 0.5, 0.2, 0.1]), 2).tolist()
    [1, 0]
    """
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ModelError(
            f"row {bad[0]}: the attention score is {scores[bad[0]]}; {len(bad)} of {len(scores)}", "E_NOT_FINITE"
        )
    n, m = len(scores), min(memory_size, len(scores))
    rows = np.arange(n)
    if 0 < m < n:
        cut = np.partition(scores, n - m)[n - m]  # the M-th best score
        above = np.flatnonzero(scores > cut)
        rows = np.concatenate([above, np.flatnonzero(scores == cut)[: m - len(above)]])
    return rows[np.lexsort((rows, -scores[rows]))][:m].astype(np.int64)


def check_finite_rows(logits: np.ndarray, rows: np.ndarray) -> None:
    """Refuse logits (n, T, H) that hold NaN or infinity.

    Raises:
        ModelError: `E_NOT_FINITE`, naming the first such tile by its row in the grid.
    """
    bad = ~np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise ModelError(
            f"row {int(rows[first])}: attention logits are not finite: {logits[first].ravel()[:8].tolist()}",
            "E_NOT_FINITE",
        )


def merge_ledgers(shards: Iterable[tuple[np.ndarray, np.ndarray]], n_tiles: int) -> np.ndarray:
    """Put shards together as one ledger.

    Args:
        shards: (rows (n,) int64, logits (n, T, H) float32) each; in any order.
        n_tiles: N.

    Returns:
        (N, T, H) float32.

    Raises:
        ModelError: a row that is absent, given twice or outside the grid, or shards of different models.
    """
    parts = list(shards)
    if len({logits.shape[1:] for _, logits in parts}) != 1:
        raise ModelError(f"shards: queries and heads differ: {sorted({logits.shape[1:] for _, logits in parts})}")
    rows = np.concatenate([rows for rows, _ in parts])
    outside = rows[(rows < 0) | (rows >= n_tiles)]
    if len(outside):
        raise ModelError(f"shards: row {outside[0]} lies outside the grid of {n_tiles} tiles")
    times = np.bincount(rows, minlength=n_tiles)
    if (times != 1).any():
        row = int(np.argmax(times != 1))
        raise ModelError(
            f"shards: row {row} is given {times[row]} times; {int((times != 1).sum())} such rows of {n_tiles}"
        )
    merged = np.empty((n_tiles, *parts[0][1].shape[1:]), np.float32)
    for where, logits in parts:
        merged[where] = logits
    return merged


def ips_loop(logits: np.ndarray, memory_size: int, chunk_size: int) -> np.ndarray:
    """Select as the paper's loop does: softmax over memory + chunk only.

    With one head and query the choice is the exact top M; with more it depends on chunk size and order.

    Args:
        logits: (N, T, H), in the order of streaming.
        memory_size: M; the first M tiles fill the memory.
        chunk_size: I, tiles compared with the memory at a time.

    Returns:
        (min(M, N),) int64 rows, in the order of the last comparison.

    Source: Bergner et al., ICLR 2023.
    """
    memory = np.arange(min(memory_size, len(logits)), dtype=np.int64)
    for start in range(len(memory), len(logits), chunk_size):
        memory = ips_step(logits, memory, np.arange(start, min(start + chunk_size, len(logits)), dtype=np.int64))
    return memory


def ips_step(logits: np.ndarray, memory: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Compare a chunk of rows with the memory and keep as many as the memory held, ties to the lower row."""
    candidates = np.sort(np.concatenate([memory, chunk]))
    return candidates[top_rows(scores_from_logits(logits[candidates]), len(memory))]


def _mean_softmax(logits: np.ndarray, log_norm: np.ndarray, axis: int | tuple[int, int]) -> np.ndarray:
    parts = [np.exp(logits[rows] - log_norm).mean(axis=axis) for rows in _blocks(len(logits))]
    return np.concatenate(parts) if parts else np.exp(logits - log_norm).mean(axis=axis)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))
