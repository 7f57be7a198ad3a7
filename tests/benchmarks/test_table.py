"""The helpers of the benchmarks: what they measure, and that the baseline reads what the file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from baseline import encode_pattern, pattern_encoder, pattern_loader, read_tiles_pattern
from bench_slides import KINDS, tissue_palette, write_kind
from table import Measured, compare, machine, spread


def test_alternatives_run_in_turn() -> None:
    """Every round runs each alternative once, in order, after one round that is not measured."""
    order: list[str] = []
    found = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(seconds) for seconds in found.wall.values()] == [2, 2]


def test_ratios_are_taken_within_a_round() -> None:
    """A slow minute costs both alternatives alike."""
    found = Measured({"a": [2.0, 20.0], "b": [1.0, 5.0]}, {"a": [2.0, 20.0], "b": [2.0, 20.0]}, 10)
    assert found.ratios("b") == [2.0, 4.0]
    assert "| b | 300 [100-500] | 1100 [200-2000] | 6 [2-10] | 3 [2-4] | 1 [1-1] |" in found.markdown()
    assert spread([0.01234]) == "0.0123 [0.0123-0.0123]"
    assert "cores" in machine()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_opens_and_looks_as_painted(tmp_path: Path, kind: str) -> None:
    """OpenSlide reads every kind at every level; a tile is the palette's, to the loss of its compression."""
    write_kind(tmp_path / "slide.tif", kind, 16, n_palette=3)
    side = 240 if kind == "240" else 256
    palette = tissue_palette(3, side).astype(np.float64)
    with openslide.OpenSlide(tmp_path / "slide.tif") as slide:
        assert slide.level_count == 3
        assert slide.properties["openslide.vendor"] == ("aperio" if kind in ("rgb", "jp2k") else "generic-tiff")
        tile = np.asarray(slide.read_region((side, 2 * side), 0, (side, side)).convert("RGB"), np.float64)
        assert min(np.abs(palette[1:] - tile).mean(axis=(1, 2, 3))) < 4.0
        coarse = np.asarray(slide.read_region((side, side), 1, (side // 4, side // 4)).convert("RGB"), np.float64)
        assert min(np.abs(palette[1:].mean(axis=(1, 2)) - coarse.mean(axis=(0, 1))).max(axis=1)) < 4.0


def test_the_baseline_reads_and_encodes(tmp_path: Path) -> None:
    """Loader and loop give the same normalised tiles, resized where asked, and the encoder one vector a tile."""
    write_kind(tmp_path / "slide.tif", "420", 16, n_palette=3)
    coords = np.array([[256, 256], [512, 300], [400, 600]])
    tiles = list(read_tiles_pattern(tmp_path / "slide.tif", coords, 0, 256, 64))
    (batch,) = pattern_loader(tmp_path / "slide.tif", coords, 0, 256, 64)
    assert batch.shape == (3, 3, 64, 64)
    assert all(bool((a == b).all()) for a, b in zip(tiles, batch, strict=True))
    assert encode_pattern(pattern_encoder("resnet18"), [batch]).shape == (3, 512)
