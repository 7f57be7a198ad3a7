"""A small slide and a cache, for the tests of what passes keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.synthetic import PyramidPlan, array_source, write_pyramid


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 1100 x 700 px at 1 µm/px: stain in squares of 64 px of their own colours, so that tiles differ."""
    rng = np.random.default_rng(3)
    pixels = np.full((700, 1100, 3), 243, np.uint8)
    colours = rng.integers((150, 60, 130), (220, 140, 200), (9, 15, 3)).astype(np.uint8)
    pixels[50:626, 70:1030] = colours.repeat(64, 0).repeat(64, 1)
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, array_source(pixels), PyramidPlan(1100, 700), mpp=1.0)
    return path


@pytest.fixture
def slide(slide_file: Path) -> Iterator[Slide]:
    with open_slide(slide_file) as opened:
        yield opened


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")
