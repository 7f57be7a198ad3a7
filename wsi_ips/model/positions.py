"""Where a tile lies, as part of its features: a sinusoid of its row in the grid, one table for all images.

The row is one number for two directions, so it tells a place only where every image has the same grid: a table has a
fixed length N, and bags with more tiles, or tiles whose rows nobody knows, are refused.

Shapes: N tiles of the grid, n of a chunk, D width of the features.
Source: Vaswani et al., Attention is all you need, NeurIPS 2017.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ModelError

__all__ = ["Rows", "add_positions", "position_table"]

Rows = np.ndarray | Tensor | None  # (n,) int64, rows of the grid; None where they are not known


def position_table(n_tiles: int, dim: int) -> Tensor:
    """Make the table (N, D) float32: sines in even columns, cosines in odd ones, wavelengths from 2 pi to 20000 pi."""
    pairs = np.arange((dim + 1) // 2, dtype=np.float64)
    angles = np.arange(n_tiles, dtype=np.float64)[:, None] * np.exp(-np.log(10_000.0) * 2.0 * pairs / dim)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(n_tiles, -1)[:, :dim]
    return torch.from_numpy(waves.astype(np.float32))


def add_positions(features: Tensor, table: Tensor | None, rows: Rows) -> Tensor:
    """Add to features (n, D) their places; without a table they stay as they are.

    Raises:
        ModelError: rows that are not known or lie beyond the table.
    """
    if table is None:
        return features
    if rows is None:
        raise ModelError("this model adds a tile's place in the grid to its features (attention.positions), and here the "
                         "places of the tiles are not known")  # fmt: skip
    at = torch.as_tensor(rows, dtype=torch.int64, device=table.device)
    if len(at) and (int(at.max()) >= len(table) or int(at.min()) < 0):
        raise ModelError(f"row {int(at.max())} of the grid: this model knows the places of {len(table)} tiles "
                         "(attention.positions); images must be as large as those it was trained on")  # fmt: skip
    return features + table[at]
