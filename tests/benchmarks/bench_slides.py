"""Slides of any number of tiles, written in seconds: tissue tiles of a painted slide, repeated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from wsi_ips.synthetic import PaletteSource, PyramidPlan, SlideRecipe, paint_slide, write_pyramid


def tissue_palette(n: int = 48) -> np.ndarray:
    """(n + 1, 256, 256, 3) uint8: one tile of glass, then n of tissue."""
    pixels = paint_slide(SlideRecipe(5, has_lesion=True)).pixels
    rng = np.random.default_rng(0)
    tiles = [np.full((256, 256, 3), 243, np.uint8)]
    while len(tiles) <= n:
        y, x = rng.integers(0, pixels.shape[0] - 256), rng.integers(0, pixels.shape[1] - 256)
        tile = pixels[y : y + 256, x : x + 256]
        if (tile.mean(axis=2) < 215).mean() > 0.9:
            tiles.append(tile)
    return np.stack(tiles)


def write_tiled_slide(path: Path, n_tiles: int, tile_px: int, palette: np.ndarray, mpp: float = 0.5) -> None:
    """Write a slide that holds about n_tiles tissue tiles of tile_px level-0 px, wider than high, with a glass border."""
    area = n_tiles * tile_px * tile_px
    columns = max(3, round(math.sqrt(area * 1.4) / 256)) + 2
    rows = max(3, round(area / ((columns - 2) * 256 * 256))) + 2
    index = np.zeros((rows, columns), np.int64)
    index[1:-1, 1:-1] = np.random.default_rng(1).integers(1, len(palette), (rows - 2, columns - 2))
    plan = PyramidPlan(columns * 256, rows * 256, step=4, n_levels=3)
    write_pyramid(path, PaletteSource(palette, index), plan, mpp=mpp)
