"""The grid: every tile where arithmetic says, inside the scan, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.errors import MppError, NoTissueError, UnreadableSlideError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.reader import Level
from wsi_ips.tiles.focus import measure_focus
from wsi_ips.tiles.grid import TileGrid, fits_inside, plan_tiles, tiles_at
from wsi_ips.tiles.tissue import TissueMask, find_tissue


def _everywhere(slide: ArraySlide) -> TissueMask:
    bounds = slide.bounds
    return TissueMask(np.ones((1, 1), bool), bounds.x0, bounds.y0, bounds.width0, bounds.height0, 1.0)


def _blank(height: int, width: int, *downsamples: int, **options: object) -> ArraySlide:
    arrays = [np.full((height // d, width // d, 3), 255, np.uint8) for d in (1, *downsamples)]
    return ArraySlide(arrays, **options)  # type: ignore[arg-type]


def _plan(slide: ArraySlide, tile: TileSpec, **options: float) -> TileGrid:
    chosen = {"min_fraction": 0.0, "max_tiles": 100_000} | options
    return plan_tiles(slide, _everywhere(slide), tile, **chosen)  # type: ignore[arg-type]


def test_tiles_cover_the_scan_in_raster_order_each_once() -> None:
    """A 1000 x 700 slide holds 3 x 2 tiles of 300, row by row; the remainder at the right and bottom is not tiled."""
    grid = _plan(_blank(700, 1000, mpp=0.5), TileSpec(size_px=300, mpp=0.5))
    assert grid.coords.tolist() == [[0, 0], [300, 0], [600, 0], [0, 300], [300, 300], [600, 300]]
    assert grid.coords.dtype == np.int64
    assert (grid.extent0, grid.level, grid.read_px, grid.size_px) == ((300.0, 300.0), 0, (300, 300), 300)
    assert np.array_equal(grid.tissue, np.ones(6, np.float32))


@pytest.mark.parametrize("mpp", [0.2525, 0.2273, 0.4999, 0.121])
def test_places_are_rounded_once(mpp: float) -> None:
    """At any mpp tile i starts at round(corner + i * stride), so the last is as exact as the first, and ends inside."""
    bounds = Box0(17, 31, 9001, 6007)
    slide = _blank(6100, 9100, mpp=mpp, bounds=bounds)
    grid = _plan(slide, TileSpec(size_px=64, mpp=0.5, overlap_px=8))
    stride0 = 56 * 0.5 / mpp
    xs, ys = np.unique(grid.coords[:, 0]), np.unique(grid.coords[:, 1])
    assert np.array_equal(xs, np.rint(17 + np.arange(len(xs)) * stride0))
    assert np.array_equal(ys, np.rint(31 + np.arange(len(ys)) * stride0))
    assert len(grid.coords) == len(xs) * len(ys) == len(np.unique(grid.coords, axis=0))
    assert xs[-1] + grid.extent0[0] <= 17 + 9001 + 0.5
    assert len(xs) == int((9001 - grid.extent0[0]) / stride0) + 1
    assert len(ys) == int((6007 - grid.extent0[1]) / stride0) + 1


def test_places_are_level0_px_whatever_level_is_read() -> None:
    """P5: tiles read from a coarse level do not snap to its px: 17, 219, 421, .. are no multiples of 4."""
    slide = _blank(2000, 3000, 4, mpp=0.25, bounds=Box0(17, 31, 2900, 1900))
    grid = _plan(slide, TileSpec(size_px=50, mpp=1.01))
    assert grid.level == 1
    assert np.unique(grid.coords[:, 0]).tolist() == [17 + 202 * i for i in range(14)]
    assert np.unique(grid.coords[:, 1]).tolist() == [31 + 202 * i for i in range(9)]


def test_a_tile_that_just_fits_is_taken_and_one_px_less_loses_it() -> None:
    """The last column may touch the edge of the scan and not cross it."""
    tile = TileSpec(size_px=100, mpp=0.5)
    assert len(_plan(_blank(200, 300, mpp=0.5), tile).coords) == 6
    assert len(_plan(_blank(199, 300, mpp=0.5), tile).coords) == 3
    assert len(_plan(_blank(200, 299, mpp=0.5), tile).coords) == 4


def test_axes_may_have_their_own_resolution() -> None:
    """Width and height of a tile follow the µm per px of their axis."""
    slide = _blank(400, 600)
    slide.mpp = slide.mpp._replace(x=0.25, y=0.5)
    grid = _plan(slide, TileSpec(size_px=100, mpp=0.5))
    assert grid.extent0 == (200.0, 100.0)
    assert grid.read_px == (200, 100)
    assert len(grid.coords) == 3 * 4


@pytest.mark.parametrize(
    ("tile_mpp", "level"), [(0.25, 0), (0.9, 0), (0.995, 1), (1.0, 1), (1.5, 1), (4.0, 2), (30.0, 2)]
)
def test_tiles_are_read_from_the_coarsest_level_fine_enough(tile_mpp: float, level: int) -> None:
    """With levels of 0.25, 1 and 4 µm/px, data is never coarser than the tiles by more than one per cent."""
    grid = _plan(_blank(8000, 9600, 4, 16, mpp=0.25), TileSpec(size_px=50, mpp=tile_mpp))
    assert grid.level == level
    assert grid.read_px[0] == round(50 * tile_mpp / (0.25 * 4**level))


def test_fault_035_coarse_slides_are_refused() -> None:
    """Data coarser than 1.1 times the tiles' resolution is an error with both numbers; up to that it is used."""
    with pytest.raises(MppError, match=r"E_UPSAMPLE.*0\.551.*0\.5"):
        _plan(_blank(700, 1000, mpp=0.551), TileSpec(size_px=100, mpp=0.5))
    assert _plan(_blank(700, 1000, mpp=0.549), TileSpec(size_px=100, mpp=0.5)).read_px == (91, 91)


def test_tiles_need_their_share_of_tissue() -> None:
    """A tile is kept from exactly `min_fraction` on, and carries its fraction."""
    slide = _blank(400, 600, mpp=0.5)
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = mask[2:, 4:] = True
    tissue = TissueMask(mask, 0, 0, 100.0, 100.0, 1.0)
    options = {"min_focus": 0.0, "max_tiles": 100}
    grid = plan_tiles(slide, tissue, TileSpec(size_px=200, mpp=0.5), min_fraction=0.25, **options)  # type: ignore[arg-type]
    assert grid.coords.tolist() == [[0, 0], [400, 200]]
    assert grid.tissue.tolist() == [0.25, 1.0]
    with pytest.raises(NoTissueError, match="E_NO_TILES"):
        plan_tiles(
            slide, replace_mask(tissue, ~mask & mask), TileSpec(size_px=200, mpp=0.5), min_fraction=0.1, **options
        )  # type: ignore[arg-type]


def replace_mask(tissue: TissueMask, mask: np.ndarray) -> TissueMask:
    """The same frame with another mask."""
    return TissueMask(mask, tissue.x0, tissue.y0, tissue.downsample_x, tissue.downsample_y, 0.0)


def test_a_scan_smaller_than_a_tile_has_no_tiles() -> None:
    """The error says how large both are."""
    with pytest.raises(NoTissueError, match=r"E_NO_TILES.*90 x 700.*100 x 100"):
        _plan(_blank(700, 90, mpp=0.5), TileSpec(size_px=100, mpp=0.5))


class _Huge:
    """A slide of any size without pixels."""

    name, tile_corners, reader = "huge", None, "none"

    def __init__(self, width: int, height: int) -> None:
        self.levels = (Level(width, height, 1.0),)
        self.bounds = Box0(0, 0, width, height)
        self.mpp = ArraySlide(np.zeros((1, 1, 3), np.uint8), mpp=0.5).mpp


@pytest.mark.parametrize("min_fraction", [0.0, 0.1])
def test_fault_011_absurd_grids_are_refused_before_they_are_made(min_fraction: float) -> None:
    """A header that promises 10^12 tiles costs no memory and no time."""
    slide = _Huge(10**8, 10**8)
    with pytest.raises(UnreadableSlideError, match="E_ABSURD"):
        plan_tiles(
            slide, _everywhere(slide), TileSpec(size_px=100, mpp=0.5), min_fraction=min_fraction, max_tiles=10**6
        )  # type: ignore[arg-type]


def test_fault_011_more_tiles_than_allowed_are_refused() -> None:
    """The limit is on tiles kept, not on places looked at."""
    slide = _Huge(200_000, 100_000)
    mask = np.zeros((50, 100), bool)
    mask[10:20, 30:40] = True
    tissue = TissueMask(mask, 0, 0, 2000.0, 2000.0, 1.0)
    spec = TileSpec(size_px=200, mpp=0.5)
    assert len(plan_tiles(slide, tissue, spec, min_fraction=0.5, max_tiles=10_000).coords) == 10_000  # type: ignore[arg-type]
    with pytest.raises(UnreadableSlideError, match="more than 9999 tiles"):
        plan_tiles(slide, tissue, spec, min_fraction=0.5, max_tiles=9_999)  # type: ignore[arg-type]


def test_a_slide_that_names_its_tiles_keeps_them_in_order() -> None:
    """Explicit corners are taken as they are: any order, overlapping, white."""
    corners = np.array([[300, 20], [10, 10], [10, 12]])
    slide = _blank(400, 600, mpp=0.5, tile_corners=corners)
    grid = plan_tiles(
        slide, find_tissue(slide, TissueSettings()), TileSpec(size_px=50, mpp=0.5), min_fraction=0.5, max_tiles=3
    )
    assert np.array_equal(grid.coords, corners)
    assert grid.tissue.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UnreadableSlideError, match="E_ABSURD"):
        plan_tiles(slide, _everywhere(slide), TileSpec(size_px=50, mpp=0.5), min_fraction=0.5, max_tiles=2)


def test_blurred_tiles_are_dropped_on_request(stained: Callable[..., np.ndarray]) -> None:
    """With a least focus only sharp tiles stay; the score ranks by sharpness; a tile that cannot be read stays."""
    pixels = np.full((256, 768, 3), 230, np.uint8)
    rng = np.random.default_rng(0)
    pixels[:, :256] = np.kron(rng.integers(60, 220, (64, 64, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    slide = ArraySlide(pixels, mpp=0.5, fail_at=[Box0(700, 10, 1, 1)])
    coords = np.array([[0, 0], [256, 0], [512, 0]])
    focus = measure_focus(slide, coords, (256.0, 256.0))
    assert focus[0] > 100
    assert focus[1] == 0
    assert focus[2] == np.inf
    assert _plan(slide, TileSpec(size_px=256, mpp=0.5), min_focus=50.0).coords.tolist() == [[0, 0], [512, 0]]


def test_a_shifted_grid_begins_half_a_tile_further_and_ends_inside() -> None:
    """Every tile half a tile to the right and down; what no longer fits inside the scan goes."""
    slide = _blank(700, 1000, mpp=0.5)
    grid = _plan(slide, TileSpec(size_px=300, mpp=0.5), shift=0.5)
    assert grid.coords.tolist() == [[150, 150], [450, 150]]


def test_tiles_at_given_places_are_read_as_the_grid_s_own() -> None:
    """Same level, size and extent; those that end inside the scan are told from those that do not."""
    slide, tile = _blank(700, 1000, 2, mpp=0.25), TileSpec(size_px=150, mpp=0.5)
    grid, own = tiles_at(slide, tile, np.array([[10, 20], [700, 400], [701, 400], [-1, 0]])), _plan(slide, tile)
    assert (grid.extent0, grid.level, grid.read_px, grid.size_px) == (own.extent0, own.level, own.read_px, own.size_px)
    assert np.isnan(grid.tissue).all()
    assert fits_inside(slide, grid).tolist() == [True, True, True, False]
    assert fits_inside(slide, tiles_at(slide, tile, np.array([[702, 400]]))).tolist() == [False]
    assert fits_inside(slide, own).all()


def test_no_label_enters() -> None:
    """The grid depends on slide, tissue and settings alone."""
    names = list(inspect.signature(plan_tiles).parameters)
    assert names == ["slide", "tissue", "tile", "min_fraction", "min_focus", "max_tiles", "shift"]
