"""The self-test finds every planted square, and would find that one is not in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_ips.engine import selftest
from wsi_ips.engine.selftest_files import check_files
from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide

N_FILES = 8


@pytest.mark.parametrize("case", selftest.CASES, ids=lambda c: c.name)
def test_fault_113_every_file_has_the_squares_in_place(case: selftest.Case) -> None:
    """P5: odd sizes, bounds, broken downsamples, overlap, px that are not square: every format, another's reader."""
    findings = selftest.selftest_slide(selftest._twin_of_case(case), overlap_px=case.overlap_px)
    assert len({f.file for f in findings}) == N_FILES
    assert all(f.is_ok for f in findings), [f for f in findings if not f.is_ok]


@pytest.mark.slow
def test_a_square_beside_its_place_is_found_out() -> None:
    """Held against squares that are a tile further right, or one px for polygons, no file passes."""
    case = selftest.CASES[4]
    twin = selftest._twin_of_case(case)
    settings = selftest._settings(twin, 0)
    squares = selftest._squares(twin, settings.tile)
    with selftest.twin_of(twin, squares) as planted:
        p = selftest._label(planted, settings, squares)
        files = selftest.slide_files(planted, p, {"slide_id": "selftest", "status": "ok"},
                                     selftest.DrawOptions(("png", "tif", "geojson", "asap", "ome", "qupath")))  # fmt: skip
    assert all(f.is_ok for f in check_files(p, files, squares))
    for shift, fail in ((settings.tile.size_px, N_FILES), (2, 3)):  # GeoJSON twice and XML are exact to a px
        moved = [Box0(s.x0 + shift, s.y0, s.width0, s.height0) for s in squares]
        assert sum(not f.is_ok for f in check_files(p, files, moved)) >= fail


def test_the_geometry_of_any_slide_can_be_tested(tmp_path: Path) -> None:
    """A small offset scan, read for its header alone; the files can be kept."""
    slide = ArraySlide(np.zeros((1011, 1537, 3), np.uint8), mpp=0.25, bounds=Box0(101, 53, 1401, 903), name="small")
    findings = selftest.selftest_slide(slide, keep=tmp_path)
    assert all(f.is_ok for f in findings), findings
    assert (tmp_path / "small" / "selftest.attention.geojson.gz").exists()


def test_a_slide_too_small_for_squares_is_said() -> None:
    """Fewer than eight tiles along a side: a sentence with the slide's name."""
    with pytest.raises(ConfigError, match="tiny: 90 px along one side"):
        selftest.selftest_slide(ArraySlide(np.zeros((90, 400, 3), np.uint8), name="tiny"))
