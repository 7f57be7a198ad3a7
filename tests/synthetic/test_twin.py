"""A computed slide as a file: OpenSlide reads what was computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.protocol import Level
from wsi_ips.slide.reader import open_slide
from wsi_ips.slide.twinslide import TwinSlide
from wsi_ips.synthetic import write_twin


def test_a_written_twin_reads_back(tmp_path: Path) -> None:
    """Level 0 is the computed one px for px; coarser levels of a whole downsample agree to the rounding."""
    levels = [Level(1537 // d, 1011 // d, float(d)) for d in (1, 2, 4, 8)]
    twin = TwinSlide(levels, mpp=Mpp(0.37, 0.37, "array"), squares=[Box0(701, 353, 73, 51)])
    plan = write_twin(tmp_path / "twin.tif", twin)
    assert plan.n_levels == 4
    with open_slide(tmp_path / "twin.tif") as slide:
        assert slide.reader.startswith("direct")
        assert slide.mpp.x == pytest.approx(0.37)
        assert [(v.width, v.height) for v in slide.levels] == [(v.width, v.height) for v in twin.levels]
        for number, level in enumerate(twin.levels):
            found = slide.read_region(0, 0, number, level.width, level.height).pixels.astype(int)
            expected = twin.read_region(0, 0, number, level.width, level.height).pixels
            assert np.abs(found - expected).max() <= number  # every level of the file is rounded again


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Twenty gigapixels, and px that are not square, are no file."""
    huge = TwinSlide([Level(200_000, 100_000, 1.0)], mpp=Mpp(0.25, 0.25, "array"))
    with pytest.raises(ConfigError, match="200000 x 100000 px"):
        write_twin(tmp_path / "huge.tif", huge)
    oblong = TwinSlide([Level(100, 70, 1.0)], mpp=Mpp(0.25, 0.5, "array"))
    with pytest.raises(ConfigError, match="square"):
        write_twin(tmp_path / "oblong.tif", oblong, n_levels=1)
    assert not list(tmp_path.iterdir())
