"""Faults at chosen places: what they do, how often, and that every other read is the wrapped slide's own."""

from __future__ import annotations

import multiprocessing as mp
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import TileReadError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.faultyslide import Fault, FaultySlide
from wsi_ips.slide.reader import Slide, TileSlide, open_slide


def _plain(seed: int = 0) -> ArraySlide:
    levels = np.random.default_rng(seed).integers(0, 255, (90, 130, 3)).astype(np.uint8)
    return ArraySlide([levels, levels[::2, ::2]], mpp=0.5, name="a")


def test_it_is_a_slide_like_the_wrapped_one() -> None:
    """Without faults nothing differs; it closes with the other and does not travel."""
    plain, slide = _plain(), FaultySlide(_plain(), [])
    assert isinstance(slide, Slide)
    assert isinstance(slide, TileSlide)
    for name in ("name", "reader", "levels", "mpp", "bounds", "properties", "notes", "path", "n_channels"):
        assert getattr(slide, name) == getattr(plain, name)
    assert np.array_equal(slide.read_region(11, 7, 0, 40, 30).pixels, plain.read_region(11, 7, 0, 40, 30).pixels)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(slide)
    with slide:
        pass
    with pytest.raises(Exception, match="closed"):
        slide.read_region(0, 0, 0, 1, 1)


def test_an_error_comes_where_and_as_often_as_asked() -> None:
    """Twice at one px of level 0, never beside it, nor on another level."""
    slide = FaultySlide(_plain(), [Fault("error", Box0(50, 40, 1, 1), level=0, times=2)])
    for _ in range(2):
        with pytest.raises(TileReadError, match=r"E_TILE.*\(40, 40\), level 0"):
            slide.read_region(40, 40, 0, 20, 20)
        slide.read_region(40, 40, 0, 10, 20)
        slide.read_region(40, 40, 1, 20, 20)
    assert np.array_equal(slide.read_region(40, 40, 0, 20, 20).pixels, _plain().read_region(40, 40, 0, 20, 20).pixels)
    assert slide.n_met == 2


def test_a_stall_is_late_and_right() -> None:
    """The read takes so long, then gives the px."""
    slide, started = FaultySlide(_plain(), [Fault("stall", seconds=0.05)]), time.monotonic()
    out = np.empty((20, 30, 3), np.uint8)
    assert slide.read_into(out, 5, 6, 0) == 0
    assert time.monotonic() - started >= 0.05
    assert np.array_equal(out, _plain().read_region(5, 6, 0, 30, 20).pixels)


def test_a_hole_is_white_and_counted_on_every_level() -> None:
    """What alpha 0 is to a file: white px inside the scan, and their number; the wrapped slide keeps its px."""
    plain = _plain()
    slide = FaultySlide(plain, [Fault("missing", Box0(20, 10, 8, 6))])
    region, wanted = slide.read_region(16, 8, 0, 40, 30), _plain().read_region(16, 8, 0, 40, 30).pixels
    wanted[2:8, 4:12] = 255
    assert (region.n_missing, np.array_equal(region.pixels, wanted)) == (48, True)
    assert slide.read_region(16, 8, 1, 20, 15).n_missing == 12
    assert np.array_equal(plain.read_region(16, 8, 0, 40, 30).pixels, _plain().read_region(16, 8, 0, 40, 30).pixels)


def test_the_decoder_still_shrinks(tmp_path: Path, make_tiff: Callable[..., Path]) -> None:
    """A wrapped file keeps what its decoder offers, and holes are counted in px of the level."""
    path = make_tiff(compression="jpeg", photometric="ycbcr", subsampling=(2, 2))
    with FaultySlide(open_slide(path), [Fault("missing", Box0(0, 0, 64, 64))]) as slide:
        assert slide.shrinks(0) == (1, 2, 4, 8)
        out = np.empty((64, 64, 3), np.uint8)
        assert slide.read_into(out, 0, 0, 0, 2) == 64 * 64
        assert (out[:32, :32] == 255).all()
        assert not (out[32:, 32:] == 255).all()


def _read_once(token: Path) -> None:
    FaultySlide(_plain(), [Fault("die", token=token)]).read_region(0, 0, 0, 9, 9)


def test_a_process_dies_once(tmp_path: Path) -> None:
    """SIGKILL at the read; who comes after finds the token, and reads."""
    ends = []
    for _ in range(2):
        process = mp.get_context("fork").Process(target=_read_once, args=(tmp_path / "died",))
        process.start()
        process.join(20)
        ends.append(process.exitcode)
    assert ends == [-signal.SIGKILL, 0]
