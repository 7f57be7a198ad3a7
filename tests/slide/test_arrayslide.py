"""Promises of the slide in memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, TileReadError
from wsi_ips.geometry import Box0
from wsi_ips.slide.backends import ArraySlide
from wsi_ips.slide.reader import Slide


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, channels), dtype=np.uint8)


def test_it_is_a_slide() -> None:
    """An array slide can stand wherever a slide is asked for."""
    assert isinstance(ArraySlide(_noise(9, 13)), Slide)


def test_pixels_come_from_their_place_on_every_level() -> None:
    """A level-0 corner is the same place on every level."""
    level0 = _noise(90, 130)
    slide = ArraySlide([level0, level0[::2, ::2]])
    assert (slide.read_region(20, 10, 0, 30, 40).pixels == level0[10:50, 20:50]).all()
    assert (slide.read_region(20, 10, 1, 30, 20).pixels == level0[::2, ::2][5:25, 10:40]).all()


def test_outside_the_bounds_is_white_and_not_missing() -> None:
    """What was not scanned is white glass, whatever the array holds there."""
    level0 = _noise(90, 130)
    slide = ArraySlide([level0, level0[::2, ::2]], bounds=Box0(10, 4, 100, 60))
    region = slide.read_region(0, 0, 1, 70, 50)
    wanted = np.full((50, 70, 3), 255, np.uint8)
    wanted[2:32, 5:55] = level0[::2, ::2][2:32, 5:55]
    assert (region.pixels == wanted).all()
    assert region.n_missing == 0


def test_a_read_beyond_every_edge_is_white() -> None:
    """A rectangle that covers more than the slide comes back whole, white around."""
    level0 = _noise(9, 13)
    region = ArraySlide(level0).read_region(-3, -2, 0, 20, 14)
    wanted = np.full((14, 20, 3), 255, np.uint8)
    wanted[2:11, 3:16] = level0
    assert (region.pixels == wanted).all()
    assert (ArraySlide(level0).read_region(500, 500, 0, 4, 6).pixels == 255).all()


def test_missing_pixels_are_white_and_counted() -> None:
    """Holes are white, and each px of them is counted once."""
    missing = np.zeros((90, 130), bool)
    missing[10:20, 30:50] = True
    slide = ArraySlide(np.zeros((90, 130, 3), np.uint8), missing=missing)
    region = slide.read_region(40, 0, 0, 20, 90)
    assert region.n_missing == 100
    assert (region.pixels[10:20, :10] == 255).all()
    assert (region.pixels[:, 10:] == 0).all()


def test_many_channels_pass() -> None:
    """The number of channels is the array's own."""
    assert ArraySlide(_noise(9, 13, 5)).read_region(0, 0, 0, 4, 6).pixels.shape == (6, 4, 5)


def test_failing_places_fail_and_others_do_not() -> None:
    """`fail_at` breaks exactly the rectangles that touch it."""
    slide = ArraySlide(_noise(90, 130), fail_at=[Box0(50, 50, 10, 10)])
    slide.read_region(0, 0, 0, 50, 50)
    with pytest.raises(TileReadError, match=r"E_TILE.*\(45, 45\)"):
        slide.read_region(45, 45, 0, 10, 10)


def test_it_refuses_pickling_and_reading_when_closed() -> None:
    """It behaves as a file would."""
    slide = ArraySlide(_noise(9, 13))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(slide)
    slide.close()
    with pytest.raises(ConfigError, match="closed"):
        slide.read_region(0, 0, 0, 1, 1)


def test_only_uint8_images_are_taken() -> None:
    """A float array is an error, not a guess."""
    with pytest.raises(ConfigError, match="uint8"):
        ArraySlide(np.zeros((9, 13, 3)))
