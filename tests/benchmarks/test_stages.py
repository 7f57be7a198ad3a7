"""What the stages of a pass cost: opening, tissue, grid; and a tile on its way behind the decoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bench_slides import tissue_palette
from table import compare, machine, spread

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.engine.colour import ColourStatistics
from wsi_ips.model.arithmetic import normalised
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic import PaletteSource, PyramidPlan, write_pyramid
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.tissue import find_tissue


def write_large(path: Path, n_levels: int) -> None:
    """40,000 x 39,993 px, tissue over 40 % of it."""
    index = np.zeros((157, 157), np.int64)
    index[30:120, 20:130] = np.random.default_rng(0).integers(1, 49, (90, 110))
    write_pyramid(path, PaletteSource(tissue_palette(48), index), PyramidPlan(40_000, 39_993, step=4, n_levels=n_levels), mpp=0.5)


@pytest.mark.benchmark
@pytest.mark.parametrize("n_levels", [3, 1])
def test_opening_and_planning(tmp_path: Path, n_levels: int) -> None:
    """Seconds by the clock of a slide of 40,000 px with levels, and without any."""
    path = tmp_path / "large.tif"
    write_large(path, n_levels)
    rows: dict[str, list[float]] = {"open": [], "mask": [], "grid": []}
    for _ in range(5):
        times = [time.perf_counter()]
        with open_slide(path) as slide:
            times.append(time.perf_counter())
            tissue = find_tissue(slide, TissueSettings())
            times.append(time.perf_counter())
            grid = plan_tiles(slide, tissue, TileSpec(), min_fraction=0.1, max_tiles=10**6)
            times.append(time.perf_counter())
        for name, seconds in zip(rows, np.diff(times), strict=True):
            rows[name].append(float(seconds))
    print(f"\n{machine()}\n\n40,000 x 39,993 px, {n_levels} level(s), {len(grid.coords)} tiles; seconds, median [least-largest] of 5")
    print("\n".join(f"{name} {spread(values)}" for name, values in rows.items()))


@pytest.mark.benchmark
def test_behind_the_decoder() -> None:
    """ms a tile of 224 px, in batches of 64, one core; the pattern's steps beside ours."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (64, 224, 224, 3), np.uint8)
    large = rng.integers(0, 256, (64, 448, 448, 3), np.uint8)
    out = np.empty_like(tiles)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    statistics = ColourStatistics()
    ways: dict[str, Callable[[], object]] = {
        "to float tensor and normalised, tile by tile": lambda: torch.stack(
            [(torch.from_numpy(t).permute(2, 0, 1).float().div(255) - mean[0]) / std[0] for t in tiles]
        ),
        "a whole batch normalised, channels-last": lambda: normalised(torch.from_numpy(tiles), mean, std),
        "resize 448 to 224, area": lambda: [cv2.resize(t, (224, 224), dst=o, interpolation=cv2.INTER_AREA) for t, o in zip(large, out, strict=True)],
        "colour statistics": lambda: statistics.add(tiles),
        "copy of a batch": lambda: tiles.copy(),
    }
    print(f"\n{machine()}\n\n{compare(ways, 64, rounds=7).markdown()}")
