"""The published loop in plain torch, written from its description: nothing of the package but the numbers in its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Selected(NamedTuple):
    """What the loop ends with: rows of the tiles in memory, and predictions of each task."""

    rows: Tensor
    predictions: list[Tensor]


class PlainIPS:
    """Weights (float64) as one would write them down; `encode`: (n, S, S, C) tiles to (n, D)."""

    def __init__(self, weights: dict[str, Tensor], n_heads: int, encode: Callable[[Tensor], Tensor], positions: Tensor | None) -> None:
        self.w, self.h, self.encode, self.positions = weights, n_heads, encode, positions

    def attention(self, x: Tensor) -> Tensor:
        """Softmax weights (H, T, n) of tiles (n, D)."""
        q = (self.w["query"] @ self.w["to_query.weight"].T).unflatten(1, (self.h, -1)).transpose(0, 1)
        k = (x @ self.w["to_key.weight"].T).unflatten(1, (self.h, -1)).transpose(0, 1)
        return torch.softmax(q @ k.transpose(1, 2) / q.shape[2] ** 0.5, dim=2)

    def memories(self, tiles: Tensor, m: int, i: int, order: Tensor) -> Iterator[Tensor]:
        """Rows in memory after each chunk of I; at once all of them where M is enough."""
        if m >= len(tiles):
            yield torch.arange(len(tiles))
            return
        memory, embedded = order[:m], self.encode(tiles[order[:m]])
        for start in range(m, len(tiles), i):
            chunk = order[start : start + i]
            rows, both = torch.cat([memory, chunk]), torch.cat([embedded, self.encode(tiles[chunk])])
            placed = both if self.positions is None else both + self.positions[rows]
            best = self.attention(placed).mean((0, 1)).topk(m).indices  # mean over heads and tasks
            memory, embedded = rows[best], both[best]
            yield memory

    def predict(self, tiles: Tensor, rows: Tensor, tasks: list[str]) -> list[Tensor]:
        """Probabilities of each task ("softmax" or "sigmoid") from the tiles in memory."""
        x = self.encode(tiles[rows])
        x = x if self.positions is None else x + self.positions[rows]
        v = (x @ self.w["to_value.weight"].T).unflatten(1, (self.h, -1)).transpose(0, 1)
        z = (self.attention(x) @ v).transpose(0, 1).flatten(1) @ self.w["to_out.weight"].T + self.w["query"]
        z = self._norm(z, "norm_pooled")
        hidden = torch.relu(z @ self.w["mlp.0.weight"].T + self.w["mlp.0.bias"])
        z = self._norm(z + hidden @ self.w["mlp.2.weight"].T + self.w["mlp.2.bias"], "norm_out")
        outputs = [self.w[f"heads.{t}.weight"] @ z[t] + self.w[f"heads.{t}.bias"] for t in range(len(tasks))]
        return [o.softmax(0) if kind == "softmax" else o.sigmoid() for o, kind in zip(outputs, tasks, strict=True)]

    def _norm(self, z: Tensor, name: str) -> Tensor:
        centred = z - z.mean(1, keepdim=True)
        return centred / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
