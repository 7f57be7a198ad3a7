"""Keep the tiles that matter while a slide streams by.

The ledger takes every tile's logits; a bounded buffer keeps the features of the best so far, judged by the softmax
over all tiles seen up to now. After the pass the exact top M comes from the ledger; the few of its members whose
features had left the buffer are named, to be read and encoded again. In mode `ips` the buffer is the paper's memory.

Shapes: N tiles of the grid, n of a chunk, M memory size, m = min(M, tiles seen), D embedding, T queries, H heads.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from wsi_ips.errors import ModelError
from wsi_ips.model.ledger import check_finite_rows, ips_loop, ips_step, log_normalisers, scores_from_logits, top_rows

__all__ = ["Selection", "StreamingSelector"]


class Selection(NamedTuple):
    """What is known after the pass."""

    rows: np.ndarray  # (m,) int64, best first by the score over the whole bag
    features: np.ndarray  # (m, D) float32; rows named in `missing` are NaN until encoded again
    missing: np.ndarray  # (k,) int64, places among the m whose features had left the buffer
    logits: np.ndarray  # (N, T, H) float32, the ledger; -inf where a tile was never added
    scores: np.ndarray  # (N,) float64, 0 where a tile was never added


class StreamingSelector:
    """Takes chunks of one slide in any order; mutable, for one pass.

    Args:
        n_tiles: N, size of the grid.
        memory_size: M.
        slack: features kept beyond M; more means fewer tiles encoded twice. None keeps M more.
        mode: `exact` or the paper's `ips`.
        chunk_size: I, for mode `ips` only; chunks added may have other sizes.
        order: (N,) rows in the order in which the paper's loop meets them, whatever the order they are added in; mode `ips`
            then runs the loop over the ledger after the pass. None: it meets them as they are added.
    """

    def __init__(
        self, n_tiles: int, memory_size: int, slack: int | None = None,
        mode: Literal["exact", "ips"] = "exact", chunk_size: int = 64, order: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self._order = order if mode == "ips" else None
        self.n_tiles, self.memory_size, self.mode, self.chunk_size = n_tiles, memory_size, mode, chunk_size
        self.capacity = memory_size + (memory_size if slack is None else slack)
        self._logits = np.empty((0, 0, 0), np.float32)  # (N, T, H) from the first chunk on
        self._seen = np.zeros(n_tiles, bool)
        self._stays = np.zeros(n_tiles, bool)  # marks, while the buffer is sorted out
        self._log_norm = np.empty((0, 0))  # (T, H), over the tiles seen
        self._rows: list[np.ndarray] = []  # buffer in pieces: rows (k,) and
        self._features: list[np.ndarray] = []  # their features (k, D)
        self._memory = np.empty(0, np.int64)  # mode ips: the memory, then tiles that wait for a full chunk
        self._waiting = np.empty(0, np.int64)

    @property
    def memory(self) -> np.ndarray:
        """Mode `ips` without an order: rows in the paper's memory after the chunks added so far."""
        return self._memory

    @property
    def n_seen(self) -> int:
        """Tiles added so far."""
        return int(self._seen.sum())

    @property
    def n_held(self) -> int:
        """Features in the buffer; at most M + slack between chunks (mode `ips`: and a chunk)."""
        return sum(len(rows) for rows in self._rows)

    def add(self, rows: np.ndarray, features: np.ndarray, logits: np.ndarray) -> None:
        """Take a chunk: rows (n,), features (n, D) float32, logits (n, T, H) float32.

        Raises:
            ModelError: a row outside the grid or added before, logits of another shape, or `E_NOT_FINITE`.
        """
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            return
        self._write(rows, logits)
        chunk_norm = log_normalisers(logits)
        self._log_norm = np.logaddexp(self._log_norm, chunk_norm) if self._log_norm.size else chunk_norm
        self._rows.append(rows)
        self._features.append(np.array(features, np.float32))
        if self.mode == "ips" and self._order is None:
            self._advance_memory(rows)
            if self.n_held > self.capacity + self.chunk_size:
                self._keep(np.concatenate([self._memory, self._waiting]))
        elif self.n_held > self.capacity:
            held = np.sort(np.concatenate(self._rows))
            scores = scores_from_logits(self._logits[held], self._log_norm)
            # down to the middle of the slack, so that most chunks need no sorting out
            self._keep(held[top_rows(scores, (self.memory_size + self.capacity + 1) // 2)])

    def finish(self) -> Selection:
        """Choose from the whole bag; needs at least one tile.

        Raises:
            ModelError: no tile was added.
        """
        if not self.n_seen:
            raise ModelError("selection: no tile was added, so there is nothing to choose from")
        scores = scores_from_logits(self._logits)
        pool = self._pool()
        chosen = pool[top_rows(scores[pool], self.memory_size)]
        self._keep(chosen)
        place = {int(row): i for i, row in enumerate(self._rows[0])}
        where = np.array([place.get(int(row), -1) for row in chosen])
        features = np.full((len(chosen), self._features[0].shape[1]), np.nan, np.float32)
        features[where >= 0] = self._features[0][where[where >= 0]]
        return Selection(chosen, features, np.flatnonzero(where < 0), self._logits, scores)

    def _pool(self) -> np.ndarray:
        """Rows to choose from: all that were seen, or what the paper's loop ends with."""
        if self.mode == "exact":
            return np.flatnonzero(self._seen)
        if self._order is not None:
            met = self._order[self._seen[self._order]]
            return np.sort(met[ips_loop(self._logits[met], self.memory_size, self.chunk_size)])
        self._compare_waiting()
        return np.sort(self._memory)

    def _write(self, rows: np.ndarray, logits: np.ndarray) -> None:
        check_finite_rows(logits, rows)
        if not self._logits.size:
            self._logits = np.full((self.n_tiles, *logits.shape[1:]), -np.inf, np.float32)
        if logits.shape != (len(rows), *self._logits.shape[1:]):
            raise ModelError(f"selection: logits {logits.shape} for {len(rows)} rows of a ledger {self._logits.shape}")
        if rows.min() < 0 or rows.max() >= self.n_tiles:
            raise ModelError(f"selection: rows {rows.min()} to {rows.max()} in a grid of {self.n_tiles} tiles")
        is_rising = bool((rows[1:] > rows[:-1]).all())  # as streams are; spares the search for doubles
        if self._seen[rows].any() or not (is_rising or len(np.unique(rows)) == len(rows)):
            raise ModelError(f"selection: a tile was added twice, among rows {rows.min()} to {rows.max()}")
        self._logits[rows] = logits
        self._seen[rows] = True

    def _keep(self, rows: np.ndarray) -> None:
        """Let go of all features but those of these rows; the buffer becomes one piece."""
        self._stays[rows] = True
        stays = [self._stays[part] for part in self._rows]
        self._stays[rows] = False
        self._rows = [np.concatenate([part[s] for part, s in zip(self._rows, stays, strict=True)])]
        self._features = [np.concatenate([part[s] for part, s in zip(self._features, stays, strict=True)])]

    def _advance_memory(self, rows: np.ndarray) -> None:
        free = self.memory_size - len(self._memory)
        self._memory = np.concatenate([self._memory, rows[:free]])
        self._waiting = np.concatenate([self._waiting, rows[free:]])
        while len(self._waiting) >= self.chunk_size:
            self._compare_waiting()

    def _compare_waiting(self) -> None:
        chunk, self._waiting = self._waiting[: self.chunk_size], self._waiting[self.chunk_size :]
        if len(chunk):
            self._memory = ips_step(self._logits, self._memory, chunk)
