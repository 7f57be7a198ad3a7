"""Rasters of tiles and their colours: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.geometry import Box0
from wsi_ips.report.heatmap import (
    attention_colouring,
    coverage,
    evidence_colouring,
    percentile_rank,
    raster_of_tiles,
    raster_size,
    scale_values,
    times_uniform,
)

_BOUNDS = Box0(37, 911, 1009, 613)


def _grid(bounds: Box0, side: int, step: int) -> np.ndarray:
    xs = np.arange(bounds.x0, bounds.x0 + bounds.width0 - side + 1, step)
    ys = np.arange(bounds.y0, bounds.y0 + bounds.height0 - side + 1, step)
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("downsample", [0.7, 1.0, 3.0, 7.3, 16.0, 61.0, 64.0, 100.0, 257.5])
@pytest.mark.parametrize("row", [0, 17, 83, 159])
def test_fault_113_the_peak_of_the_raster_lies_in_the_hot_tile_at_every_size(downsample: float, row: int) -> None:
    """Whatever the raster's px, the hottest px has its centre in the hot tile, or holds the tile's centre."""
    side = 61
    coords = _grid(_BOUNDS, side, side)
    values = np.ones(len(coords))
    values[row] = 30.0
    raster = raster_of_tiles(values, coords, (side, side), _BOUNDS, downsample)
    assert raster.shape == raster_size(_BOUNDS, downsample)
    peaks = np.argwhere(raster == np.nanmax(raster))
    x0, y0 = coords[row]
    for j, i in peaks:
        left, top = _BOUNDS.x0 + i * downsample, _BOUNDS.y0 + j * downsample
        centre = (left + downsample / 2, top + downsample / 2)
        centre_in_tile = x0 <= centre[0] <= x0 + side and y0 <= centre[1] <= y0 + side
        holds_centre = left <= x0 + side / 2 <= left + downsample and top <= y0 + side / 2 <= top + downsample
        assert centre_in_tile or holds_centre


def test_overlapping_tiles_are_averaged_exactly() -> None:
    """Where two tiles overlap stands their mean, elsewhere their own value, and NaN where there is none."""
    coords = np.array([[10, 20], [12, 20]])
    raster = raster_of_tiles(np.array([1.0, 4.0]), coords, (4.0, 2.0), Box0(10, 20, 8, 3), 1.0)
    nan = np.nan
    expected = [[1, 1, 2.5, 2.5, 4, 4, nan, nan]] * 2 + [[nan] * 8]
    np.testing.assert_array_equal(raster, np.array(expected, dtype=np.float32))


def test_a_px_under_two_tiles_takes_the_mean_by_area() -> None:
    """A px three quarters under a tile of 0 and one quarter under a tile of 8 is 2."""
    raster = raster_of_tiles(np.array([0.0, 8.0]), np.array([[0, 0], [3, 0]]), (3.0, 4.0), Box0(0, 0, 8, 4), 4.0)
    np.testing.assert_array_equal(raster, np.array([[2.0, 8.0]], dtype=np.float32))


def test_tiles_smaller_than_a_px_do_not_vanish() -> None:
    """Every tile's centre is drawn, even when the tile covers a hundredth of a px."""
    raster = raster_of_tiles(np.array([5.0]), np.array([[330, 150]]), (10.0, 10.0), Box0(0, 0, 700, 300), 100.0)
    assert np.argwhere(np.isfinite(raster)).tolist() == [[1, 3]]
    assert raster[1, 3] == 5.0


def test_tiles_of_a_broken_width_leave_no_seams() -> None:
    """Neighbours 100.4 level-0 px wide, placed on whole px, cover the raster without holes."""
    xs = np.round(np.arange(9) * 100.4).astype(int)
    coords = np.stack(np.meshgrid(xs, xs[:5]), axis=-1).reshape(-1, 2)
    raster = raster_of_tiles(np.ones(len(coords)), coords, (100.4, 100.4), Box0(0, 0, 903, 502), 1.0)
    assert np.isfinite(raster).all()
    np.testing.assert_allclose(raster, 1.0)


def test_no_tiles_give_an_empty_raster() -> None:
    """Without tiles the raster has its size and holds nothing."""
    raster = raster_of_tiles(np.zeros(0), np.zeros((0, 2), int), (10.0, 10.0), Box0(0, 0, 70, 30), 10.0)
    assert raster.shape == (3, 7)
    assert np.isnan(raster).all()


def test_coverage_adds_up_to_the_length_of_an_interval() -> None:
    """An interval inside the line spreads exactly its length over the px."""
    starts = np.array([0.0, 2.25, 7.9])
    np.testing.assert_allclose(coverage(starts, 3.7, 12).sum(axis=1), 3.7)
    assert coverage(np.array([2.25]), 1.5, 12).toarray()[0, 2:4].tolist() == [0.75, 0.75]


def test_a_quarter_of_a_million_tiles_average_to_their_mean() -> None:
    """A full large slide keeps its mean through the raster."""
    coords = _grid(Box0(0, 0, 112000, 112000), 224, 224)
    values = np.arange(len(coords)) % 7.0
    raster = raster_of_tiles(values, coords, (224.0, 224.0), Box0(0, 0, 112000, 112000), 70.0)
    assert raster.shape == (1600, 1600)
    assert float(np.mean(raster, dtype=np.float64)) == pytest.approx(float(values.mean()), rel=1e-6)


def test_uniform_attention_is_one_and_sits_a_third_up_the_scale() -> None:
    """Attention without preference is 1 on a scale that does not depend on the slide, and nearly clear."""
    values = times_uniform(np.full(1000, 0.001))
    np.testing.assert_allclose(values, 1.0)
    colouring = attention_colouring("uniform")
    assert colouring.position(np.array([0.001, 0.1, 1.0, 100.0, 5000.0])) == pytest.approx([0, 0, 1 / 3, 1, 1])
    assert colouring.rgba(np.array([1.0]))[0, 3] < 0.3 < 0.7 < colouring.rgba(np.array([100.0]))[0, 3]


def test_opacity_never_falls_as_attention_rises() -> None:
    """What the model looked at more is never drawn fainter, on either scale."""
    for scale, values in (("uniform", np.geomspace(1e-4, 1e6, 99)), ("percentile", np.linspace(0, 100, 99))):
        alpha = attention_colouring(scale).rgba(values)[:, 3]  # type: ignore[arg-type]
        assert (np.diff(alpha) >= 0).all()


def test_ranks_run_within_the_slide_and_ties_share() -> None:
    """Percentile rank is between 0 and 100, keeps order, and gives equal tiles the same place."""
    assert percentile_rank(np.array([0.2, 0.2, 0.6])).tolist() == pytest.approx([1 / 3, 1 / 3, 5 / 6])
    assert scale_values(np.full(5, 0.2), "percentile").tolist() == [50.0] * 5


def test_no_tile_has_no_colour() -> None:
    """NaN is fully transparent."""
    assert attention_colouring("uniform").rgba(np.array([np.nan]))[0, 3] == 0.0


def test_evidence_is_symmetric_and_zero_is_the_middle() -> None:
    """The two ends of the evidence scale are equally far from 0, whatever the evidence."""
    colouring = evidence_colouring(np.array([0.31, -0.02]), "tumor")
    assert (colouring.low, colouring.high) == (-0.5, 0.5)
    assert colouring.position(np.array([0.0]))[0] == 0.5
    assert colouring.rgba(np.array([0.3]))[0, 3] == pytest.approx(colouring.rgba(np.array([-0.3]))[0, 3])
    assert evidence_colouring(np.zeros(3), "tumor").high == 1.0
