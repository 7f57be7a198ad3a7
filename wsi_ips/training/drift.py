"""What an encoder's last step did to the embeddings it was not asked for, guessed from those it was asked for.

An encoder that has moved a little moves the embeddings of all tiles in much the same way. The rows that are made anew
show how, a ridge regression of their change on their old values says it in one linear map, and the map is applied to all
others. It is a guess, so who is selected is decided by embeddings made anew alone; the guess only says for whom to ask.

Shapes: N tiles, n of them made anew, W encoder width.

Source: Hoerl and Kennard, Technometrics 12, 1970; left out one by one, Allen, Technometrics 16, 1974; the use for
embeddings that have drifted, Yu et al., Semantic drift compensation, CVPR 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Drifted", "follow_drift"]

_RIDGE = 0.01  # of the mean squared length of a row; between 0.01 and 1 recall hardly changes


class Drifted(NamedTuple):
    """Old embeddings after the encoder's step, as far as can be told."""

    embeddings: np.ndarray  # (N, W) float32
    left_out: np.ndarray  # (n, W) float32: the same for the rows made anew, each guessed from the others


def follow_drift(old: np.ndarray, rows: np.ndarray, fresh: np.ndarray) -> Drifted:
    """Guess all embeddings from how some have changed.

    Args:
        old: (N, W) last embeddings.
        rows: (n,) rows made anew, each once.
        fresh: (n, W) what they are now.
    """
    x, change = old[rows].astype(np.float64), fresh.astype(np.float64) - old[rows]
    if len(rows) < 3:  # nothing to tell a direction from
        return Drifted(old.astype(np.float32), old[rows].astype(np.float32))
    centre, shift = x.mean(axis=0), change.mean(axis=0)
    x, change = x - centre, change - shift
    n, width = x.shape
    ridge = _RIDGE * max(float(np.square(x).sum()) / n, 1e-12)
    if n <= width:
        gram = x @ x.T
        weights = x.T @ np.linalg.solve(gram + ridge * np.eye(n), np.concatenate([change, np.eye(n)], axis=1))
    else:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(width), x.T @ np.concatenate([change, np.eye(n)], axis=1))
    by_map, by_row = weights[:, :width], weights[:, width:]  # (W, W), (W, n)
    leverage = np.einsum("nw,wn->n", x, by_row) + 1.0 / n
    residual = (change - x @ by_map) / np.maximum(1.0 - leverage, 1e-6)[:, None]  # of each row from all others
    guess = old + shift + (old - centre) @ by_map
    return Drifted(guess.astype(np.float32), (fresh - residual).astype(np.float32))
