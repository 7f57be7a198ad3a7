"""Cross-attention with one learned query a task: logits, weights, pooled embedding.

A tile's logit depends on that tile alone; only the softmax depends on the company. Everything here runs in the type
of the module's own weights (float32) with autocast switched off, because ranks are made from these numbers.

Shapes: B slides, m tiles, T queries, H heads, D embedding, Dk = D / H.
Source: Bergner et al., Iterative Patch Selection for High-Resolution Image Recognition, ICLR 2023 (arXiv 2210.13007).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsi_ips.errors import ModelError

__all__ = ["CrossAttention", "Part", "relative_entropy"]


class Part(NamedTuple):
    """Some tiles of a bag pooled on their own; in a softmax it stands for them as if it were one tile."""

    log_norm: Tensor  # (T, H), log of the sum of exponentials of their logits
    mean: Tensor  # (T, H, Dk), their values weighted by their own softmax


class CrossAttention(nn.Module):
    """Pools a bag of tiles into one embedding a query.

    Args:
        dim: D.
        n_queries: T, one a task.
        n_heads: H, must divide D.
        dropout: on the residual branches, in training only.

    Raises:
        ModelError: H does not divide D.
    """

    def __init__(self, dim: int, n_queries: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % n_heads:
            raise ModelError(
                f"attention: {n_heads} heads do not divide the width {dim}; set attention.n_heads or attention.dim"
            )
        self.dim, self.n_queries, self.n_heads = dim, n_queries, n_heads
        bound = 1.0 / math.sqrt(dim // n_heads)
        self.query = nn.Parameter(torch.empty(n_queries, dim).uniform_(-bound, bound))
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.norm_pooled = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm_out = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def head_logits(self, features: Tensor) -> Tensor:
        """Give every tile its attention logits: (..., n, D) -> (..., n, T, H), before any softmax."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.query.dtype)
            t, h, d = self.n_queries, self.n_heads, self.dim // self.n_heads
            query = self.to_query(self.query).view(t, h, d) / math.sqrt(d)
            key = self.to_key.weight.view(h, d, self.dim)
            # (q Wk) x instead of q (Wk x): T H products of length D a tile rather than D of them
            probe = torch.einsum("thd,hde->the", query, key).reshape(t * h, self.dim)
            return (features @ probe.T).unflatten(-1, (t, h))  # (..., n, T, H)

    def values(self, features: Tensor) -> Tensor:
        """What each tile contributes, (..., D) -> (..., H, Dk)."""
        return self.to_value(features.to(self.query.dtype)).unflatten(-1, (self.n_heads, -1))

    def pool_part(self, features: Tensor) -> Part:
        """Pool tiles on their own: (n, D) to one part."""
        logits = self.head_logits(features)  # (n, T, H)
        return Part(logits.logsumexp(0), torch.einsum("nth,nhd->thd", logits.softmax(0), self.values(features)))

    def finish(self, pooled: Tensor) -> Tensor:
        """From pooled values (..., T, H, Dk) to the queries' embeddings (..., T, D)."""
        z = self.norm_pooled(self.query + self.dropout(self.to_out(pooled.flatten(-2))))
        return self.norm_out(z + self.dropout(self.mlp(z)))


def relative_entropy(logits: Tensor) -> Tensor:
    """Give the entropy (T,) of the mean-over-heads attention of (m, T, H) logits, divided by log m; 1 for m up to 1."""
    m = len(logits)
    if m <= 1:
        return logits.new_ones(logits.shape[1])
    weights = logits.softmax(0).mean(2)  # (m, T)
    # a weight that vanished adds nothing, and its logarithm must not make the gradient infinite
    return -(weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(0) / math.log(m)
