"""Resolutions that the decoder itself shrinks to, and wide grids in bands: the same tissue at the same place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.report.thumbnail import read_thumbnail
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.reader import Slide, offered_shrinks, open_slide
from wsi_ips.synthetic import PyramidPlan, SlideRecipe, array_source, paint_slide, write_pyramid
from wsi_ips.tiles import grid as grid_module
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid
from wsi_ips.tiles.tissue import TissueMask, find_tissue


@pytest.fixture(scope="module")
def single_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Painted tissue with one dark square at level-0 px (1210, 806), JPEG, no coarser level."""
    pixels = paint_slide(SlideRecipe(4)).pixels[:2111, :3023].copy()
    pixels[806:886, 1210:1290] = (40, 20, 120)
    path = tmp_path_factory.mktemp("single") / "s.tif"
    write_pyramid(path, array_source(pixels), PyramidPlan(pixels.shape[1], pixels.shape[0], n_levels=1), mpp=0.25)
    return path


def _everywhere(slide: Slide) -> TissueMask:
    bounds = slide.bounds
    return TissueMask(np.ones((1, 1), bool), bounds.x0, bounds.y0, bounds.width0, bounds.height0, 1.0)


def _grid(slide: Slide, size_px: int, mpp: float) -> TileGrid:
    return plan_tiles(slide, _everywhere(slide), TileSpec(size_px=size_px, mpp=mpp), min_fraction=0.0, max_tiles=10_000)


@pytest.mark.parametrize(("mpp", "shrink"), [(0.25, 1), (0.49, 1), (0.4955, 2), (0.5, 2), (0.55, 2), (1.0, 4), (2.4, 8)])
def test_tiles_look_as_averaged_and_lie_where_they_should(single_level: Path, mpp: float, shrink: int) -> None:
    """The largest factor that keeps the resolution; corners on whole shrunk px; px within 2 of decoding and averaging.

    What is left after the decoder's factor is one resize, here too; averaging in one step differs by less than resamplers
    of other tools differ among each other (3.5).
    """
    with open_slide(single_level, 0.25) as slide:
        grid = _grid(slide, 100, mpp)
        assert grid.shrink == shrink
        assert (grid.coords % shrink == 0).all()
        assert grid.extent0 == pytest.approx((100 * mpp / 0.25,) * 2)
        wanted_places = np.rint(np.arange(int(grid.coords[:, 0].max() / grid.extent0[0]) + 2) * grid.extent0[0])
        assert max(np.abs(wanted_places - x).min() for x in grid.coords[:, 0]) <= shrink / 2
        errors, in_one = [], []
        side = grid.read_px[0] // shrink
        how = cv2.INTER_AREA if side >= 100 else cv2.INTER_LINEAR
        for chunk in stream_tiles(slide, grid, chunk_size=16):
            for (x0, y0), tile in zip(grid.coords[chunk.rows].tolist(), chunk.pixels, strict=True):
                whole = slide.read_region(x0, y0, 0, *grid.read_px).pixels
                shrunk = cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA)
                errors.append(np.abs(tile.astype(int) - cv2.resize(shrunk, (100, 100), interpolation=how)).mean())
                at_once = cv2.resize(whole, (100, 100), interpolation=cv2.INTER_AREA)
                in_one.append(np.abs(tile.astype(int) - at_once).mean())
        assert max(errors) <= 2.0
        assert np.mean(in_one) <= 3.5


@pytest.mark.parametrize("mpp", [0.5, 0.55, 1.0])
def test_a_planted_square_stays_at_its_place(single_level: Path, mpp: float) -> None:
    """Its centre of mass, over all tiles, within half a tile px."""
    weights, places = [], []
    with open_slide(single_level, 0.25) as slide:
        grid = _grid(slide, 100, mpp)
        scale = grid.extent0[0] / 100
        for chunk in stream_tiles(slide, grid, chunk_size=16):
            for (x0, y0), tile in zip(grid.coords[chunk.rows].tolist(), chunk.pixels, strict=True):
                y, x = np.nonzero((tile[..., 0] < 70) & (tile[..., 2].astype(int) - tile[..., 0] > 50))
                weights.append(len(x))
                places += [(x0 + (i + 0.5) * scale, y0 + (j + 0.5) * scale) for i, j in zip(x, y, strict=True)]
    assert abs(sum(weights) * scale * scale / 80**2 - 1) < 0.1
    assert np.abs(np.mean(places, axis=0) - (1250, 846)).max() <= scale / 2


def test_the_same_tiles_as_without_shrinking(single_level: Path) -> None:
    """No column or row is lost to rounding, with bounds that begin between shrunk px."""
    with open_slide(single_level, 0.25) as slide, open_slide(single_level, 0.25, reader="library") as plain:
        assert offered_shrinks(plain, 0) == (1,)
        for one in (slide, plain):
            one.bounds = one.bounds._replace(x0=11, width0=11 * 200 + 1, y0=7, height0=200 * 7)  # type: ignore[misc]
        shrunk, whole = _grid(slide, 100, 0.5), _grid(plain, 100, 0.5)
        assert (shrunk.shrink, whole.shrink) == (2, 1)
        assert len(shrunk.coords) == len(whole.coords) == 77
        assert np.abs(shrunk.coords - whole.coords).max() <= 2
        far0 = shrunk.coords + np.array(shrunk.read_px)
        assert (shrunk.coords >= (11, 7)).all()
        assert (far0 <= (11 + 2201 + 1, 7 + 1400 + 1)).all()


def test_tissue_and_thumbnail_of_a_slide_without_levels(single_level: Path) -> None:
    """Shrunk by the decoder or averaged from all px: the same tissue, the same picture."""
    with open_slide(single_level, 0.25) as slide, open_slide(single_level, 0.25, reader="library") as plain:
        settings = TissueSettings(view_mpp=2.0)
        fast, slow = find_tissue(slide, settings), find_tissue(plain, settings)
        corner = tuple(min(a, b) for a, b in zip(fast.mask.shape, slow.mask.shape, strict=True))
        a, b = (m.mask[: corner[0], : corner[1]] for m in (fast, slow))
        assert np.count_nonzero(a & b) / np.count_nonzero(a | b) > 0.99
        assert fast.tissue_mm2 == pytest.approx(slow.tissue_mm2, rel=0.01)
        assert abs(fast.downsample_x / slow.downsample_x - 1) < 0.01
        for downsample in (8.0, 11.3, 16.0):
            left, right = (read_thumbnail(s, downsample).pixels.astype(int) for s in (slide, plain))
            assert left.shape == right.shape
            assert np.abs(left - right).mean() <= 1.5


def test_wide_grids_come_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile once, and what two rows of a band cover is bounded, whatever the width."""
    slide = ArraySlide(np.full((220, 5000, 3), 255, np.uint8), mpp=0.5)
    whole = _grid(slide, 20, 0.5).coords
    monkeypatch.setattr(grid_module, "_BAND_PX", 600)
    banded = _grid(slide, 20, 0.5).coords
    assert sorted(map(tuple, banded.tolist())) == sorted(map(tuple, whole.tolist()))
    assert (np.diff(whole[:, 1]) >= 0).all()
    starts = np.flatnonzero(np.diff(banded[:, 1]) < 0) + 1
    assert len(starts) == 8
    for band in np.split(banded, starts):
        assert np.ptp(band[:, 0]) <= 600
        assert (np.lexsort((band[:, 0], band[:, 1])) == np.arange(len(band))).all()
