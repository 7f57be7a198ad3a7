"""The head written out head by head, as the paper has it: what the package's own computations are held against."""

from __future__ import annotations

import math

import torch

from wsi_ips.model.attention import CrossAttention
from wsi_ips.model.classifier import IPSClassifier


def plain_weights(a: CrossAttention, bag: torch.Tensor) -> torch.Tensor:
    """Attention of one bag, (m, D) -> (m, T, H)."""
    d = a.dim // a.n_heads
    rows = []
    for query in a.query:
        q = (a.to_query.weight @ query).reshape(a.n_heads, d)
        k = (bag @ a.to_key.weight.T).reshape(len(bag), a.n_heads, d)
        rows.append(torch.stack([torch.softmax(k[:, h] @ q[h] / math.sqrt(d), 0) for h in range(a.n_heads)], 1))
    return torch.stack(rows, 1)


def plain_pool(a: CrossAttention, bag: torch.Tensor) -> torch.Tensor:
    """Embeddings of the queries for one bag, (m, D) -> (T, D)."""
    d = a.dim // a.n_heads
    weights, out = plain_weights(a, bag), []
    for t, query in enumerate(a.query):
        values = [bag @ a.to_value.weight[h * d : (h + 1) * d].T for h in range(a.n_heads)]
        pooled = torch.cat([weights[:, t, h] @ values[h] for h in range(a.n_heads)])
        z = a.norm_pooled(query + a.to_out.weight @ pooled)
        out.append(a.norm_out(z + a.mlp(z)))
    return torch.stack(out)


def plain_outputs(classifier: IPSClassifier, bag: torch.Tensor) -> torch.Tensor:
    """Logits of all tasks for one bag, (m, D) -> (P,)."""
    z = plain_pool(classifier.attention, bag)
    return torch.cat([head(z[t]) for t, head in enumerate(classifier.heads)])
