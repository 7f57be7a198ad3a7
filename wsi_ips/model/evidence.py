"""What the label rests on: exact leave-one-out of every selected tile, in float64 on the CPU.

Leaving tile i out of a softmax turns the pooled value p into (p - w_i v_i) / (1 - w_i). That is accurate while w_i is
at most a half; a tile that holds more (there is at most one a head and query) is left out by a softmax of the others.
So all m answers cost about as much as one. A context, the pooled unselected tiles, takes part like one more tile that
always stays.

Shapes: m selected tiles, T queries, H heads, D embedding, Dk = D / H, P outputs of all tasks.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsi_ips.errors import ModelError
from wsi_ips.model.attention import CrossAttention
from wsi_ips.results import Pooled

__all__ = ["DoubleHead", "LeaveOneOut", "ReadOut", "double_head", "label_subsets", "leave_one_out", "rounded_read_out"]

_BLOCK = 2048  # tiles finished at a time: bounds the (block, T, 4 D) hidden layer
_SUBSETS = 256  # subsets pooled at a time
_LEAST = 1e-200  # of a sum of exponentials below 1: less is summed again from its own largest term


class LeaveOneOut(NamedTuple):
    """Logits with all tiles and with each one missing."""

    outputs: Tensor  # (P,) float64, from all tiles
    without: Tensor  # (m, P) float64, row i from all but tile i


@torch.no_grad()
def leave_one_out(
    attention: CrossAttention, heads: nn.ModuleList, features: Tensor, context: Pooled | None = None
) -> LeaveOneOut:
    """Compute a bag's logits, and again without each of its tiles.

    Args:
        attention: pools the bag; not changed.
        heads: one linear head a query; not changed.
        features: (m, D); with m = 1 and no context the rest is the query alone.
        context: what is pooled besides the tiles and never left out.
    """
    bag = _Bag(double_head(attention, heads), features, context)
    rest = _pooled_without_each(bag.logits, bag.weights, bag.values, bag.pooled)[: len(features)]  # (m, T, H, Dk)
    without = [bag.read(part) for part in rest.split(_BLOCK)]
    outputs = bag.outputs
    return LeaveOneOut(outputs, torch.cat(without) if without else outputs.new_zeros(0, len(outputs)))


@torch.no_grad()
def label_subsets(head: DoubleHead, features: Tensor, kept: Tensor, context: Pooled | None = None) -> Tensor:
    """Compute a bag's logits again from some of its tiles at a time.

    Args:
        head: from `double_head`.
        features: (m, D).
        kept: (n, m) bool, the tiles of each subset; without any (and without context) the query speaks alone.
        context: what is pooled besides the tiles and always stays.

    Returns:
        (n, P) float64.
    """
    bag = _Bag(head, features, context)
    stays = kept.new_ones(len(kept), len(bag.logits) - kept.shape[1])  # the context
    parts = [bag.read(bag.pool(some)) for some in torch.cat([kept, stays], 1).split(_SUBSETS)]
    return torch.cat(parts) if parts else bag.outputs.new_zeros(0, len(bag.outputs))


class ReadOut(NamedTuple):
    """A slide's label and what it rests on."""

    outputs: np.ndarray  # (P,) float32, logits of all tasks
    evidence: np.ndarray  # (m, P) float32, logit(selection) - logit(selection without the tile)


class DoubleHead(NamedTuple):
    """Attention and task heads in float64 on the CPU."""

    attention: CrossAttention
    tasks: nn.ModuleList

    @torch.no_grad()
    def label(self, features: Tensor, context: Pooled | None = None) -> Tensor:
        """Compute a bag's logits (P,) float64 alone: the very bits of `leave_one_out(...).outputs`."""
        return _Bag(self, features, context).outputs


def double_head(attention: CrossAttention, heads: nn.ModuleList) -> DoubleHead:
    """Copy a head, to label several bags with."""
    return DoubleHead(copy.deepcopy(attention).to("cpu", torch.float64).eval(),
                      copy.deepcopy(heads).to("cpu", torch.float64).eval())  # fmt: skip


def rounded_read_out(found: LeaveOneOut) -> ReadOut:
    """Round logits to the label and its evidence.

    Raises:
        ModelError: `E_NOT_FINITE`.
    """
    outputs, evidence = found.outputs.float(), (found.outputs - found.without).float()  # rounding may overflow
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError(f"the label's logits are not finite: {found.outputs.tolist()}", "E_NOT_FINITE")
    if not bool(torch.isfinite(evidence).all()):
        rank = int((~torch.isfinite(evidence)).any(1).nonzero()[0])
        raise ModelError(f"the evidence of the selected tile of rank {rank + 1} is not finite", "E_NOT_FINITE")
    return ReadOut(outputs.numpy(), evidence.numpy())


class _Bag:
    """A bag pooled in float64 on the CPU."""

    def __init__(self, head: DoubleHead, features: Tensor, context: Pooled | None) -> None:
        self._pool, self._tasks = head
        x = features.detach().to("cpu", torch.float64)
        self.logits = self._pool.head_logits(x)  # (m, T, H)
        self.values = self._pool.values(x)[:, None].expand(-1, self._pool.n_queries, -1, -1)  # (m, T, H, Dk)
        if context is not None:
            self.logits = torch.cat([self.logits, torch.from_numpy(context.log_norm)[None]])
            self.values = torch.cat([self.values, torch.from_numpy(context.mean)[None]])
        self.weights = self.logits.softmax(dim=0)
        self.pooled = torch.einsum("mth,mthd->thd", self.weights, self.values)

    @property
    def outputs(self) -> Tensor:
        """Logits (P,)."""
        return self.read(self.pooled[None])[0]

    def pool(self, kept: Tensor) -> Tensor:
        """Pool subsets (n, members) bool: (n, T, H, Dk)."""
        share = (self.logits - self.logits.amax(0)).exp()  # (members, T, H), 1 for the largest
        member = kept.to(share)
        total = torch.einsum("nm,mth->nth", member, share)
        pooled = torch.einsum("nm,mthd->nthd", member, share[..., None] * self.values)
        pooled /= total.clamp_min(_LEAST)[..., None]
        for n, t, h in ((total < _LEAST) & kept.any(1)[:, None, None]).nonzero().tolist():
            pooled[n, t, h] = self.logits[kept[n], t, h].softmax(0) @ self.values[kept[n], t, h]
        return pooled

    def read(self, pooled: Tensor) -> Tensor:
        """Logits (n, P) from pooled values (n, T, H, Dk)."""
        z = self._pool.finish(pooled)  # (n, T, D)
        return torch.cat([task(z[:, t]) for t, task in enumerate(self._tasks)], dim=-1)


def _pooled_without_each(logits: Tensor, weights: Tensor, values: Tensor, pooled: Tensor) -> Tensor:
    """Pooled values (m, T, H, Dk) of the bag without member i, attention renormalised."""
    m = len(logits)
    if m <= 1:
        return pooled.new_zeros(m, *pooled.shape)  # nothing left to pool: the query speaks alone
    w = weights[..., None]  # (m, T, H, 1)
    heavy = weights > 0.5
    rest = (pooled - w * values) / (1.0 - w.masked_fill(heavy[..., None], 0.0))
    for i, t, h in heavy.nonzero().tolist():
        others = torch.arange(m) != i
        rest[i, t, h] = logits[others, t, h].softmax(dim=0) @ values[others, t, h]
    return rest

