"""What the whole bag would rest on: exact leave-one-out over all N tiles, from features that are read in blocks.

The same question as in `evidence.py`, asked of a bag that does not fit in memory. A first pass over the features pools
the bag: for every head and query the tile with the largest logit is kept apart from the sum of all others, so no later
step needs a difference of sums that a single tile dominates. A second pass leaves each tile out: a tile other than the
largest holds at most half of the weight, so (p - w v) / (1 - w) is accurate; the largest one leaves just the others.
Memory: a block of features, and the N x P answers.

Shapes: N tiles, n of a block, T queries, H heads, D embedding of one member, Dk = D / H, P outputs of all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.ensemble import Classifier, EnsembleClassifier
from wsi_ips.model.evidence import DoubleHead

__all__ = ["bag_evidence"]

Blocks = Callable[[], Iterator[np.ndarray]]


@torch.no_grad()
def bag_evidence(classifier: Classifier, blocks: Blocks, n_tiles: int) -> np.ndarray:
    """Compute logit(all N tiles) - logit(all but tile i), attention renormalised, in float64 on the CPU.

    The label itself is not read from all tiles, so this is another quantity than the evidence of the selected.

    Args:
        classifier: whose head; an ensemble answers with the mean of its members.
        blocks: called several times; each time gives the features (n, D) float32 of all tiles, in order, in blocks
            (ensembles: (n, k D), the members side by side).
        n_tiles: N, rows of all blocks together; with one tile the rest is the query alone.

    Returns:
        (N, P) float32.

    Raises:
        ModelError: `E_NOT_FINITE`; blocks that hold another number of tiles.
    """
    members: list[IPSClassifier] = list(classifier.members) if isinstance(classifier, EnsembleClassifier) else [classifier]  # type: ignore[arg-type]
    heads = [member.double_head() for member in members]
    bags = [_Bag(head) for head in heads]
    n = 0
    for block in blocks():
        n += len(block)
        for bag, own in zip(bags, _split(block, len(bags)), strict=True):
            bag.add(own)
    if n != n_tiles:
        raise ModelError(f"whole-bag evidence: {n} rows of features for {n_tiles} tiles; classify the slide again")
    out, at = np.empty((n_tiles, classifier.n_outputs), np.float32), 0
    for block in blocks():
        found = [bag.evidence(part, at) for bag, part in zip(bags, _split(block, len(bags)), strict=True)]
        out[at : at + len(block)] = torch.stack(found).mean(0).float().numpy()
        at += len(block)
    if not np.isfinite(out).all():
        row = int(np.argmin(np.isfinite(out).all(axis=1)))
        raise ModelError(f"row {row}: its evidence in the whole bag is not finite", "E_NOT_FINITE")
    return out


def _split(block: np.ndarray, k: int) -> list[Tensor]:
    return list(torch.from_numpy(np.asarray(block, np.float64)).chunk(k, dim=1))


class _Bag:
    """One member's bag, pooled as it comes; mutable."""

    def __init__(self, head: DoubleHead) -> None:
        self._pool, self._tasks = head
        a = self._pool
        t, h, d = a.n_queries, a.n_heads, a.dim // a.n_heads
        self._n = 0
        self._top_row = torch.full((t, h), -1)  # the tile with the largest logit so far
        self._top = torch.full((t, h), -torch.inf, dtype=torch.float64)
        self._top_value = torch.zeros(t, h, d, dtype=torch.float64)
        self._rest = torch.full((t, h), -torch.inf, dtype=torch.float64)  # log of the sum over all others
        self._rest_mean = torch.zeros(t, h, d, dtype=torch.float64)
        self._whole: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, features: Tensor) -> None:
        """Take the next tiles (n, D) float64."""
        logits, values = self._look(features)
        best, row = logits.max(dim=0)  # (T, H)
        others = logits.scatter(0, row[None], -torch.inf)
        log_sum = others.logsumexp(0)
        weights = (others - log_sum.clamp_min(torch.finfo(log_sum.dtype).min)).exp()
        self._join(log_sum, torch.einsum("nth,nhd->thd", weights, values))
        heads = torch.arange(logits.shape[2]).expand_as(row)
        value = values[row, heads]  # (T, H, Dk)
        wins = best > self._top
        # the loser of the two joins the others
        self._join(torch.where(wins, self._top, best), torch.where(wins[..., None], self._top_value, value))
        self._top = torch.where(wins, best, self._top)
        self._top_value = torch.where(wins[..., None], value, self._top_value)
        self._top_row = torch.where(wins, self._n + row, self._top_row)
        self._n += len(features)

    def evidence(self, features: Tensor, start: int) -> Tensor:
        """Evidence (n, P) of the tiles (n, D) whose rows begin at `start`, after all have been added."""
        if self._whole is None:
            log_norm = torch.logaddexp(self._top, self._rest)
            share = (self._top - log_norm).exp()[..., None]
            pooled = share * self._top_value + (self._rest - log_norm).exp()[..., None] * self._rest_mean
            self._whole = log_norm, pooled, self._read(pooled[None])
        log_norm, pooled, outputs = self._whole
        logits, values = self._look(features)
        w = (logits - log_norm).exp()[..., None]  # (n, T, H, 1)
        is_top = (start + torch.arange(len(features)))[:, None, None] == self._top_row
        rest = (pooled - w * values[:, None]) / (1.0 - w.masked_fill(is_top[..., None], 0.0))
        rest = torch.where(is_top[..., None], self._rest_mean, rest)  # zero where there is no other tile
        return outputs - self._read(rest)

    def _join(self, log_sum: Tensor, mean: Tensor) -> None:
        """Add tiles pooled on their own to the others: (T, H) and (T, H, Dk); -inf adds nothing."""
        both = torch.logaddexp(self._rest, log_sum)
        floor = both.clamp_min(torch.finfo(both.dtype).min)  # nothing and nothing stay nothing, not NaN
        self._rest_mean = (self._rest - floor).exp()[..., None] * self._rest_mean + (log_sum - floor).exp()[..., None] * mean
        self._rest = both

    def _look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self._pool.head_logits(features), self._pool.values(features)  # (n, T, H), (n, H, Dk)

    def _read(self, pooled: Tensor) -> Tensor:
        z = self._pool.finish(pooled)  # (n, T, D)
        return torch.cat([task(z[:, t]) for t, task in enumerate(self._tasks)], dim=-1)
