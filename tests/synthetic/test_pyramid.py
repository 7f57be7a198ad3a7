"""The files written for tests and benchmarks are what they say they are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from wsi_ips.errors import ConfigError
from wsi_ips.synthetic import PaletteSource, PyramidPlan, StripSource, array_source, write_pyramid


def _gradient(width: int, height: int) -> np.ndarray:
    """A smooth picture (H, W, 3) whose colour tells the place: red grows to the right, green downwards."""
    x, y = np.linspace(20, 230, width), np.linspace(20, 230, height)
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None], 128.0), axis=-1).astype(np.uint8)


def _read(slide: openslide.OpenSlide, x0: int, y0: int, level: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(slide.read_region((x0, y0), level, size).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def odd_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1021 x 777 px, three levels, 0.25 µm/px."""
    path = tmp_path_factory.mktemp("pyramid") / "odd.tif"
    write_pyramid(path, array_source(_gradient(1021, 777)), PyramidPlan(1021, 777, n_levels=3), mpp=0.25)
    return path


def test_openslide_sees_the_levels_and_the_resolution(odd_slide: Path) -> None:
    """OpenSlide opens the file as generic-tiff with every level and the mpp it was written with."""
    with openslide.OpenSlide(odd_slide) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1021, 777), (510, 388), (255, 194))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_shows_the_picture(odd_slide: Path, level: int) -> None:
    """Each level is the picture at its size, down to the last row and column."""
    with openslide.OpenSlide(odd_slide) as slide:
        size = slide.level_dimensions[level]
        found = _read(slide, 0, 0, level, size)
    wanted = cv2.resize(_gradient(1021, 777), size, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(found - wanted).max() <= 8
    assert np.abs(found - wanted).mean() < 2.0


def test_levels_are_marked_as_reduced_images(odd_slide: Path) -> None:
    """Levels are top-level directories; all but the first carry subfile type 1."""
    with tifffile.TiffFile(odd_slide) as tiff:
        assert tiff.is_bigtiff
        assert [int(page.subfiletype) for page in tiff.pages] == [0, 1, 1]
        assert all(page.tile == (256, 256) for page in tiff.pages)


def test_the_same_pixels_give_the_same_bytes(odd_slide: Path, tmp_path: Path) -> None:
    """Writing twice gives the same file, byte for byte."""
    again = tmp_path / "again.tif"
    write_pyramid(again, array_source(_gradient(1021, 777)), PyramidPlan(1021, 777, n_levels=3), mpp=0.25)
    assert again.read_bytes() == odd_slide.read_bytes()


def test_resolution_can_be_left_out(tmp_path: Path) -> None:
    """A slide without mpp can be made, for the errors it must cause."""
    path = tmp_path / "unknown.tif"
    write_pyramid(path, array_source(_gradient(300, 200)), PyramidPlan(300, 200, n_levels=1), write_mpp=False)
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_without_a_quality_every_pixel_is_kept(tmp_path: Path) -> None:
    """Noise comes back to the last bit at level 0, and its exact averages at level 1, past the edge of a file tile."""
    pixels = np.random.default_rng(8).integers(0, 256, (330, 514, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "exact.tif", array_source(pixels), PyramidPlan(514, 330, n_levels=2, quality=None))
    with openslide.OpenSlide(tmp_path / "exact.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert np.array_equal(_read(slide, 0, 0, 0, (514, 330)), pixels)
        coarse = _read(slide, 0, 0, 1, (257, 165))
    assert np.array_equal(coarse, cv2.resize(pixels, (257, 165), interpolation=cv2.INTER_AREA))


def test_palette_places_each_tile(tmp_path: Path) -> None:
    """A palette file shows tile index[row, column] at that place, and its average at the coarser levels."""
    rng = np.random.default_rng(3)
    colours = rng.integers(30, 220, (5, 3))
    tiles = np.broadcast_to(colours[:, None, None, :], (5, 64, 64, 3)).astype(np.uint8)
    plan = PyramidPlan(64 * 11 - 9, 64 * 7 - 20, tile_px=64, step=4, n_levels=2)
    index = rng.integers(0, 5, (7, 11))
    write_pyramid(tmp_path / "palette.tif", PaletteSource(tiles, index), plan, mpp=0.5)
    with openslide.OpenSlide(tmp_path / "palette.tif") as slide:
        fine = _read(slide, 0, 0, 0, plan.size(0))[32::64, 32::64]  # (7, 11, 3) centres
        coarse = _read(slide, 0, 0, 1, plan.size(1))[8:104:16, 8:168:16]  # (6, 10, 3)
    assert np.abs(fine - colours[index][: fine.shape[0], : fine.shape[1]]).max() <= 4
    assert np.abs(coarse - colours[index[:6, :10]]).max() <= 12


def test_palette_must_fit_the_plan(tmp_path: Path) -> None:
    """An index of the wrong shape (here transposed) is refused, and leaves no file behind."""
    tiles = np.zeros((1, 64, 64, 3), np.uint8)
    plan = PyramidPlan(640, 320, tile_px=64, n_levels=1)
    with pytest.raises(ConfigError, match="5 rows x 10 columns"):
        write_pyramid(tmp_path / "x.tif", PaletteSource(tiles, np.zeros((10, 5), int)), plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plan", [PyramidPlan(640, 320, tile_px=100), PyramidPlan(300, 5, n_levels=4)])
def test_impossible_plans_are_refused(tmp_path: Path, plan: PyramidPlan) -> None:
    """File tiles JPEG cannot hold, or a level without pixels, are errors."""
    with pytest.raises(ConfigError, match="pyramid"):
        write_pyramid(tmp_path / "x.tif", array_source(_gradient(plan.width, plan.height)), plan)


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """A slide eight times as tall takes about as much memory to write."""

    def peak(height: int) -> int:
        source = StripSource(lambda y0, rows: np.full((rows, 1500, 3), y0 % 200, np.uint8))
        tracemalloc.start()
        write_pyramid(tmp_path / "tall.tif", source, PyramidPlan(1500, height, n_levels=3))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1024)
    assert peak(16384) < 1.25 * peak(2048)
