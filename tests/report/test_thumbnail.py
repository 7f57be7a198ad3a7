"""A slide in small lies where it should, whatever its levels, and is read in bounded pieces."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsi_ips.errors import TileReadError
from wsi_ips.geometry import Box0
from wsi_ips.report import thumbnail
from wsi_ips.report.thumbnail import read_square, read_thumbnail, to_rgb
from wsi_ips.slide.backends import ArraySlide
from wsi_ips.slide.protocol import Region


def _ramp(width: int, height: int) -> np.ndarray:
    """A slide whose red is x and whose green is y, in eighths of a px."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x // 8, y // 8, np.full_like(x, 77)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("downsample", [1.0, 2.5, 4.0, 5.7, 11.3, 16.0, 40.0])
@pytest.mark.parametrize("n_levels", [1, 3])
def test_the_picture_lies_px_for_px_over_the_bounds(downsample: float, n_levels: int) -> None:
    """Each px shows the mean colour of the level-0 px under it, for one level and for several, with bounds."""
    array = _ramp(1709, 1003)
    levels = [array] + [cv2.resize(array, (1709 // f, 1003 // f), interpolation=cv2.INTER_AREA) for f in (4, 16)]
    bounds = Box0(120, 216, 1400, 700)
    small = read_thumbnail(ArraySlide(levels[:n_levels], bounds=bounds), downsample)
    assert small.n_failed == 0
    height, width = small.pixels.shape[:2]
    x = bounds.x0 + (np.arange(width) + 0.5) * downsample
    y = bounds.y0 + (np.arange(height) + 0.5) * downsample
    inner = (slice(1, -2), slice(1, -2))  # the last px may hold some of the white beyond the bounds
    # a level's px are up to half a px of that level away from their place
    slack = 0.6 + (0 if n_levels == 1 else downsample / 2) / 8 + 0.5
    assert np.abs(small.pixels[..., 0] - (x[None, :] - 4) / 8)[inner].max() <= slack
    assert np.abs(small.pixels[..., 1] - (y[:, None] - 4) / 8)[inner].max() <= slack


def test_blocks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide without a pyramid, read in blocks, gives the same picture as in one piece."""
    slide = ArraySlide(np.random.default_rng(0).integers(0, 256, (613, 907, 3)).astype(np.uint8))
    whole = read_thumbnail(slide, 7.3).pixels
    monkeypatch.setattr(thumbnail, "_BLOCK_PX", 100)
    np.testing.assert_array_equal(read_thumbnail(slide, 7.3).pixels, whole)


def test_no_read_is_larger_than_a_block() -> None:
    """However large a slide without a pyramid, one read stays below the block's size."""

    class Watched(ArraySlide):
        largest = 0

        def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int):  # type: ignore[no-untyped-def]
            self.largest = max(self.largest, width_px * height_px)
            return super().read_region(x0, y0, level, width_px, height_px)

    slide = Watched(np.zeros((700, 10007, 3), np.uint8))
    read_thumbnail(slide, 12.0)
    assert 0 < slide.largest <= 4096 * 708


def test_a_region_that_cannot_be_read_is_grey_and_counted() -> None:
    """A failed read is shown as such: never white, never the neighbour's pixels, and counted."""
    slide = ArraySlide(np.full((300, 9000, 3), 250, np.uint8), fail_at=[Box0(8500, 100, 10, 10)])
    small = read_thumbnail(slide, 10.0)
    assert small.n_failed == 1
    assert small.pixels[15, 10].tolist() == [250, 250, 250]
    assert small.pixels[15, 880].tolist() == [176, 176, 184]


def test_fault_023_a_damaged_level_gives_way_to_a_finer_one() -> None:
    """The picture comes from the finest level that must do, and is whole where that is; else from the least damaged."""

    class Torn(ArraySlide):
        n_sound = 1

        def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
            if level >= self.n_sound:
                raise TileReadError("E_TILE", "torn")
            return super().read_region(x0, y0, level, width_px, height_px)

    array = _ramp(1709, 1003)
    levels = [array] + [cv2.resize(array, (1709 // f, 1003 // f), interpolation=cv2.INTER_AREA) for f in (4, 16)]
    sound = read_thumbnail(ArraySlide(levels), 16.0).pixels
    found = read_thumbnail(Torn(levels), 16.0)
    assert found.n_failed == 0
    assert np.abs(found.pixels.astype(int) - sound)[:-1, :-1].max() <= 3
    partly = read_thumbnail(Torn(levels, fail_at=[Box0(0, 0, 3, 3)]), 16.0)
    assert partly.n_failed == 1


def test_any_number_of_channels_can_be_shown() -> None:
    """One channel is grey; of many the first three are shown."""
    assert to_rgb(np.full((2, 3, 1), 9, np.uint8)).tolist() == [[[9, 9, 9]] * 3] * 2
    assert to_rgb(np.arange(10, dtype=np.uint8).reshape(1, 2, 5)).tolist() == [[[0, 1, 2], [5, 6, 7]]]


def test_a_tile_is_read_at_its_place_and_size() -> None:
    """A tile of 64 px over 128 level-0 px shows those level-0 px, halved."""
    array = np.zeros((500, 700, 3), np.uint8)
    array[200:328, 300:428] = 200
    tile = read_square(ArraySlide(array), 300, 200, (128.0, 128.0), 64)
    assert tile.shape == (64, 64, 3)
    assert (tile == 200).all()
