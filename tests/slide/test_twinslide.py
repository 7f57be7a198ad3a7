"""A computed slide: levels agree with each other, squares are where they were put, tissue is found."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.protocol import Level, Slide
from wsi_ips.slide.twinslide import SQUARE_RGB, TISSUE_RGB, Disc0, TwinSlide, discs_around, twin_of
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import find_tissue

_MPP = Mpp(0.5, 0.5, "array")
_WIDTH, _HEIGHT = 1537, 1011
_SQUARES = (Box0(401, 303, 61, 61), Box0(1107, 640, 128, 35))


def _levels(*downsamples: float, width: int = _WIDTH, height: int = _HEIGHT) -> list[Level]:
    return [Level(int(width / d), int(height / d), d) for d in downsamples]


def _whole(slide: Slide, level: int) -> np.ndarray:
    return slide.read_region(0, 0, level, slide.levels[level].width, slide.levels[level].height).pixels


def _averaged(pixels: np.ndarray, level: Level) -> np.ndarray:
    """Average level 0 over the px of a level, by the area that each of its px has in them."""

    def shares(n_px: int, n0: int) -> np.ndarray:
        edges = np.arange(n_px + 1) * level.downsample
        low, high = np.arange(n0), np.arange(1, n0 + 1)
        return np.clip(np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low), 0.0, None)

    down, across = shares(level.height, pixels.shape[0]), shares(level.width, pixels.shape[1])
    return np.einsum("ij,jkc,lk->ilc", down, pixels.astype(np.float64), across, optimize=True) / level.downsample**2


@pytest.mark.parametrize("downsample", [2.0, 4.0, 4.0016, 7.3, 16.0])
def test_a_level_is_the_average_of_level_0(downsample: float) -> None:
    """Whatever the downsample, a px of a level is the mean of the level-0 px it covers, to the rounding of both.

    Where a level's px begins within a level-0 px that the rim of a disc runs through, level 0 does not know which part
    of that px is tissue: there the two may differ by one level-0 px.
    """
    twin = TwinSlide(_levels(1.0, downsample), mpp=_MPP, squares=_SQUARES)
    expected = _averaged(_whole(twin, 0), twin.levels[1])
    found = _whole(twin, 1)
    assert found.shape == expected.shape
    apart = np.abs(found - expected).max(axis=2)
    y, x = (np.indices(apart.shape) + 0.5) * downsample
    to_rim = np.min([np.abs(np.hypot(x - d.x0, y - d.y0) - d.radius0) for d in twin.discs], axis=0)
    assert apart[to_rim > 1.5 * downsample].max() <= 1.001  # half a grey value for either rounding
    cut_px = 0.0 if float(downsample).is_integer() else (255 - min(TISSUE_RGB)) / downsample**2
    assert apart.max() <= 1.001 + cut_px
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 10  # white, pink, blue and their mixtures


@pytest.mark.parametrize("downsample", [1.0, 3.0, 4.0016, 16.0])
def test_a_square_lies_where_it_was_put_at_every_level(downsample: float) -> None:
    """The blue in a level has the square's area and its centre, to a hundredth of a px of the level."""
    square = Box0(701, 353, 73, 51)
    twin = TwinSlide(_levels(1.0, downsample), mpp=_MPP, squares=[square], discs=[Disc0(740.0, 380.0, 300.0)])
    red = _whole(twin, 1).astype(np.float64)[..., 0]
    inside = np.zeros(red.shape, bool)  # away from the tissue's rim, where pink mixes with white
    rows, columns = (slice(int(a / downsample), int(b / downsample)) for a, b in ((260, 500), (620, 860)))
    inside[rows, columns] = True
    share = np.where(inside, (TISSUE_RGB[0] - red) / (TISSUE_RGB[0] - SQUARE_RGB[0]), 0.0)
    y, x = np.indices(red.shape) + 0.5
    assert share.sum() * downsample**2 == pytest.approx(square.width0 * square.height0, rel=0.02)
    assert (share * x).sum() / share.sum() * downsample == pytest.approx(square.x0 + 36.5, abs=0.02 * downsample)
    assert (share * y).sum() / share.sum() * downsample == pytest.approx(square.y0 + 25.5, abs=0.02 * downsample)


def test_a_region_is_a_part_of_the_whole() -> None:
    """Any rectangle of any level holds the px that the whole level holds there, white beyond."""
    twin = TwinSlide(_levels(1.0, 4.0016), mpp=_MPP, squares=_SQUARES)
    for level, (left, top, width, height) in [(0, (377, 251, 301, 97)), (1, (90, -7, 351, 88))]:
        d = twin.levels[level].downsample
        region = twin.read_region(round(left * d), round(top * d), level, width, height)
        whole = np.pad(_whole(twin, level), ((50, 500), (50, 500), (0, 0)), constant_values=255)
        np.testing.assert_array_equal(region.pixels, whole[top + 50 : top + 50 + height, left + 50 : left + 50 + width])
        assert region.n_missing == 0


def test_outside_the_bounds_is_white_and_not_missing() -> None:
    """A scan with an offset shows nothing beside it, as an array slide with the same bounds."""
    bounds = Box0(403, 251, 777, 501)
    twin = TwinSlide(_levels(1.0, 3.3), mpp=_MPP, discs=[Disc0(403.0, 251.0, 222.0)], bounds=bounds)
    array = ArraySlide(_whole(TwinSlide(_levels(1.0), mpp=_MPP, discs=twin.discs), 0), bounds=bounds)
    found, expected = twin.read_region(390, 240, 0, 500, 401), array.read_region(390, 240, 0, 500, 401)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.n_missing == 0
    assert tuple(found.pixels[10, 12]) == (255, 255, 255)
    assert tuple(found.pixels[11, 13]) == TISSUE_RGB
    assert twin.read_region(0, 0, 1, 50, 40).pixels.min() == 255


def test_a_huge_slide_runs_through_tissue_grid_and_stream() -> None:
    """20 gigapixels cost nothing: the mask covers the disc, and the tiles under the square are dark."""
    square = Box0(120_064, 44_800, 448, 448)
    levels = _levels(1.0, 4.0003, 16.0051, width=200_000, height=100_000)
    twin = TwinSlide(levels, mpp=Mpp(0.25, 0.25, "array"), squares=[square], discs=[Disc0(120_288.0, 45_024.0, 4000.0)])
    assert isinstance(twin, Slide)
    mask = find_tissue(twin, TissueSettings())
    assert mask.tissue_mm2 == pytest.approx(np.pi, rel=0.02)  # radius 1 mm
    middle = np.array([[square.x0, square.y0], [square.x0 - 2000, square.y0 + 1000], [10_000, 10_000]])
    np.testing.assert_array_equal(mask.fraction(middle, (448.0, 448.0)), [1.0, 1.0, 0.0])
    grid = plan_tiles(twin, mask, TileSpec(size_px=224, mpp=0.5), min_fraction=0.5, max_tiles=250_000)
    centres = grid.coords + 224
    near = np.flatnonzero(np.abs(centres - (square.x0 + 224, square.y0 + 224)).max(axis=1) < 400)
    chunks = list(stream_tiles(twin, grid, rows=near, chunk_size=4))
    blue = np.concatenate([255.0 - c.pixels[..., 0] for c in chunks]).mean(axis=(1, 2))
    gap = np.clip(448 - np.abs(grid.coords[near] - (square.x0, square.y0)), 0, None).prod(axis=1) / 448**2
    np.testing.assert_allclose(blue, 255 - TISSUE_RGB[0] + gap * (TISSUE_RGB[0] - SQUARE_RGB[0]), atol=1.5)
    assert gap.sum() == pytest.approx(1.0)  # every part of the square lies in one tile


def test_a_twin_has_the_geometry_of_its_slide() -> None:
    """Levels, bounds and µm per px are the other slide's; tissue stands around the squares."""
    arrays = [np.full((h, w, 3), 240, np.uint8) for w, h in ((1537, 1011), (384, 252))]
    slide = ArraySlide(arrays, mpp=0.37, bounds=Box0(31, 17, 1400, 900))
    twin = twin_of(slide, _SQUARES)
    assert (twin.levels, twin.bounds, twin.mpp) == (slide.levels, slide.bounds, slide.mpp)
    assert twin.levels[1].downsample != round(twin.levels[1].downsample)
    for square in _SQUARES:
        around = twin.read_region(square.x0 - 9, square.y0 - 9, 0, 20, 20).pixels
        assert tuple(around[0, 0]) == TISSUE_RGB
        assert tuple(around[9, 9]) == SQUARE_RGB
        assert tuple(around[8, 9]) == TISSUE_RGB


def test_discs_that_meet_become_one() -> None:
    """Tissue around neighbours is one disc that holds theirs, and discs never overlap."""
    squares = [Box0(100 + 70 * i, 90 + 11 * i, 40, 40) for i in range(5)] + [Box0(5000, 3000, 40, 30)]
    discs = discs_around(squares)
    assert len(discs) == 2
    for s in squares:
        assert any(np.hypot(s.x0 + 20 - d.x0, s.y0 + s.height0 / 2 - d.y0) + 100 <= d.radius0 + 1e-6 for d in discs)
    TwinSlide(_levels(1.0, width=6001, height=4003), mpp=_MPP, squares=squares)


def test_shapes_that_overlap_are_refused() -> None:
    """Overlapping shapes have no exact average, so they are no slide; neither is nothing."""
    with pytest.raises(ConfigError, match=r"squares .* overlap"):
        TwinSlide(_levels(1.0), mpp=_MPP, squares=[Box0(10, 10, 20, 20), Box0(29, 29, 20, 20)])
    with pytest.raises(ConfigError, match=r"discs .* overlap"):
        TwinSlide(_levels(1.0), mpp=_MPP, discs=[Disc0(50, 50, 20), Disc0(80, 50, 11)])
    with pytest.raises(ConfigError, match="level"):
        TwinSlide([], mpp=_MPP)


def test_a_closed_twin_refuses_reads_and_an_open_one_pickling() -> None:
    """It keeps the manners of an open slide."""
    with TwinSlide(_levels(1.0), mpp=_MPP) as twin, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(twin)
    with pytest.raises(ConfigError, match="closed"):
        twin.read_region(0, 0, 0, 5, 4)
