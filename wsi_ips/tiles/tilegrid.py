"""What a grid of tiles is: the letter between those who plan, those who read and those who draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_ips.errors import Note

__all__ = ["TileGrid"]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a slide; an instance's number is its row here, everywhere."""

    coords: np.ndarray  # (N, 2) int64, level-0 px of top-left corners; wide slides in bands, each row by row
    tissue: np.ndarray  # (N,) float32, share of the tile that is tissue
    extent0: tuple[float, float]  # width and height of a tile, level-0 px, exact
    level: int  # the level tiles are read from
    read_px: tuple[int, int]  # width and height to read, px of that level
    size_px: int  # side of a finished tile (S), px
    shrink: int = 1  # 1, 2, 4 or 8: px of the level that the decoder makes one of; divides read_px
    notes: tuple[Note, ...] = ()
