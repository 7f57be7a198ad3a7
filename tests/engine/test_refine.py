"""Finer maps on demand: on the run's own scale, of the run's own slide, and where the planted object is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dark_model import SIDE, dark_bundle, tissue_slide

from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.engine.refine import RefineOptions, refine_slide
from wsi_ips.errors import ConfigError, ModelError
from wsi_ips.geometry import Box0
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.ledger import log_normalisers
from wsi_ips.refined import TileCams, fine_bytes, read_fine
from wsi_ips.report.fine import cam_caption, fine_map, refined_files
from wsi_ips.report.heatmap import raster_of_tiles
from wsi_ips.report.maps import map_raster
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.arrayslide import ArraySlide


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return dark_bundle()


def _predict(slide: ArraySlide, bundle: Bundle) -> SlidePrediction:
    return predict_slide(slide, bundle, PredictJob("s"))


def test_an_object_on_the_corner_of_four_tiles_is_found_by_the_tile_around_it(bundle: Bundle) -> None:
    """The coarse map shows four tiles alike; the highest fine tile has the object in its middle."""
    slide = tissue_slide((5 * SIDE - 10, 3 * SIDE - 10, 20))
    p = _predict(slide, bundle)
    four = np.sort(p.attention[:, 0])[-5:] * p.n_tiles
    assert four[0] < 1.0 < four[1] < four[4] < 1.6
    found = refine_slide(slide, bundle, p, RefineOptions(n_regions=4))
    best = int(np.argmax(found.attention[:, 0]))
    assert found.coords[best].tolist() == [5 * SIDE - SIDE // 2, 3 * SIDE - SIDE // 2]
    assert found.attention[best, 0] > 2 * p.attention.max()


def test_the_fine_map_peaks_at_an_object_smaller_than_a_tile(bundle: Bundle) -> None:
    """Overlap-averaged, the peak lies within a few px of the object; the coarse tile's middle is far off."""
    x, y, side = 4 * SIDE + 40, 2 * SIDE + 36, 16
    slide = tissue_slide((x, y, side))
    p = _predict(slide, bundle)
    found = refine_slide(slide, bundle, p, RefineOptions(stride=0.125, n_regions=1))
    assert _peak(found.attention[:, 0], found.coords, p) == pytest.approx((x + side / 2, y + side / 2), abs=6.0)
    assert np.abs(np.subtract(_peak(p.attention[:, 0], p.coords, p), (x + side / 2, y + side / 2))).max() > 10.0


def _peak(values: np.ndarray, coords: np.ndarray, p: SlidePrediction) -> tuple[float, float]:
    raster = np.nan_to_num(raster_of_tiles(values, coords, p.extent0, p.bounds, 1.0))
    ys, xs = np.nonzero(raster >= 0.98 * raster.max())
    return float(xs.mean() + 0.5), float(ys.mean() + 0.5)


def test_fine_weights_stand_on_the_scale_of_the_whole_bag(bundle: Bundle) -> None:
    """Each weight is exp(logit - log normaliser of the run); the run's own tiles keep the ledger's numbers to the bit."""
    slide = tissue_slide((300, 200, 30), (90, 400, 12))
    p = _predict(slide, bundle)
    found = refine_slide(slide, bundle, p, RefineOptions(stride=0.5, n_regions=5))
    own = found.run_row >= 0
    assert np.array_equal(found.coords[own], p.coords[found.run_row[own]])
    assert np.array_equal(found.logits[own], p.logits[found.run_row[own]])
    assert np.array_equal(found.attention[own], p.attention[found.run_row[own]])
    weights = np.exp(found.logits - log_normalisers(p.logits)).mean(axis=2)
    assert np.allclose(found.attention, weights, rtol=1e-5)
    assert (found.n_tiles, found.largest_error) == (p.n_tiles, 0.0)
    assert len(np.unique(found.coords, axis=0)) == len(found.coords) == found.n_encoded - 16 + own.sum()


@pytest.mark.parametrize("bounds", [None, Box0(37, 53, 700, 410)])
def test_at_stride_one_nothing_is_added(bundle: Bundle, bounds: Box0 | None) -> None:
    """The fine grid is the run's, and so are all numbers."""
    slide = tissue_slide((300, 200, 30))
    slide = ArraySlide(slide.read_region(0, 0, 0, 12 * SIDE, 8 * SIDE).pixels, mpp=1.0, bounds=bounds)
    p = _predict(slide, bundle)
    found = refine_slide(slide, bundle, p, RefineOptions(stride=1.0, n_regions=p.n_tiles))
    assert np.array_equal(found.run_row, np.arange(p.n_tiles))
    assert np.array_equal(found.attention, p.attention)


def test_only_the_top_regions_are_looked_at_and_nothing_beyond_the_scan(bundle: Bundle) -> None:
    """Fine tiles lie within one tile of the top ones and inside the bounds: in a corner a quarter of them remain."""
    slide = tissue_slide((5, 5, 40))
    p = _predict(slide, bundle)
    found = refine_slide(slide, bundle, p, RefineOptions(stride=0.5, n_regions=1))
    assert found.coords.min() == 0
    assert found.coords.max() == SIDE
    assert len(found.coords) == 9


def test_another_model_another_slide_and_other_pixels_are_refused(bundle: Bundle) -> None:
    """Each by a sentence that names what differs and what to do."""
    slide = tissue_slide((300, 200, 30))
    p = _predict(slide, bundle)
    with pytest.raises(ModelError, match=r"classified by model dddddddddddd, --model is eeeeeeeeeeee; give the run's own"):
        refine_slide(slide, dark_bundle("e" * 64), p)
    with pytest.raises(ConfigError, match=r"has 832 x 512 px.*768 x 512 px.*give the same file"):
        refine_slide(tissue_slide((300, 200, 30), width=13 * SIDE), bundle, p)
    with pytest.raises(ModelError, match=r"the tile at level-0 px \(\d+, \d+\) now has attention logits.*classify it again"):
        refine_slide(tissue_slide((500, 300, 30)), bundle, p)
    with pytest.raises(ConfigError, match=r"--stride 0.1: expected 0.125 to 1"):
        refine_slide(slide, bundle, p, RefineOptions(stride=0.1))


def test_the_map_within_a_tile_finds_the_object(bundle: Bundle) -> None:
    """The strongest evidence of the top tile lies within a few px of a square that the coarse map cannot place in it."""
    x, y, side = 4 * SIDE + 38, 2 * SIDE + 14, 12
    slide = tissue_slide((x, y, side))
    p = _predict(slide, bundle)
    cams = refine_slide(slide, bundle, p).cams
    assert cams is not None
    assert (cams.rows[0], cams.maps.shape, cams.cells) == (p.selected[0], (8, 1, SIDE, SIDE), (8, 8))
    assert cams.towards == ("yes",)
    mass = np.abs(cams.maps[0, 0])
    at = np.arange(SIDE) + 0.5
    centre = (mass.sum(0) @ at / mass.sum(), mass.sum(1) @ at / mass.sum())
    assert centre == pytest.approx((38 + side / 2, 14 + side / 2), abs=2.0)
    assert np.abs(cams.maps[1:]).max() < 1e-6 * mass.max()  # plain tissue speaks neither way


def test_it_repeats_itself_and_survives_its_file(bundle: Bundle) -> None:
    """The same slide gives the same bytes, pictures included; the file gives the numbers back."""
    slide = tissue_slide((300, 200, 30))
    p = _predict(slide, bundle)
    once, again = (refine_slide(slide, bundle, p) for _ in range(2))
    assert fine_bytes(once) == fine_bytes(again)
    assert refined_files(slide, p, once) == refined_files(slide, p, again)
    back = read_fine(fine_bytes(once))
    for name in ("coords", "run_row", "logits", "attention"):
        assert np.array_equal(getattr(back, name), getattr(once, name)), name
    assert back.cams is not None
    assert once.cams is not None
    assert np.array_equal(back.cams.maps, once.cams.maps)
    assert back._replace(coords=0, run_row=0, logits=0, attention=0, cams=None) == once._replace(
        coords=0, run_row=0, logits=0, attention=0, cams=None
    )  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="run heatmap --refine again"):
        read_fine(b"nothing")


def test_pictures_show_fine_attention_where_it_is_and_the_run_s_elsewhere(bundle: Bundle) -> None:
    """The laid-out map covers what the coarse map covers, on one scale; every top tile has its picture."""
    slide = tissue_slide((300, 200, 30))
    p = _predict(slide, bundle)
    found = refine_slide(slide, bundle, p, RefineOptions(n_regions=2))
    tiles = fine_map(p, found)
    raster = map_raster(p, tiles, p.bounds, 8.0)
    coarse = raster_of_tiles(p.attention[:, 0] * p.n_tiles, p.coords, p.extent0, p.bounds, 8.0)
    assert np.isfinite(raster).all()
    assert np.allclose(raster[-8:, :8], coarse[-8:, :8])
    assert not np.allclose(raster, coarse)
    assert tiles.info.title == "attention, refined (stride 0.5) in the top regions"
    files = refined_files(slide, p, found)
    assert {"s.attention.fine.png", "s.top_tiles.cam.png", f"s.top_tiles/01_row{p.selected[0]}.cam.png"} <= set(files)
    assert len(files) == 10
    assert all(data.startswith(b"\x89PNG") for data in files.values())
    assert "s.top_tiles.cam.png" not in refined_files(slide, p, found._replace(cams=None))


def test_a_caption_says_how_to_read_a_map_and_when_it_says_little() -> None:
    """Scale, cells and direction; where no tile moves the label, that is said first of all."""
    cams = TileCams(np.array([3]), np.full((1, 1, 8, 8), 0.3, np.float32), (7, 7), ("tumor",))
    assert "speaks for tumor" in cam_caption(cams)
    assert "±0.5 of the logit" in cam_caption(cams)
    assert "7 × 7 cells" in cam_caption(cams)
    assert "hardly" not in cam_caption(cams)
    assert "hardly hangs on any one of these tiles" in cam_caption(cams._replace(maps=cams.maps / 100))


def test_a_tile_that_cannot_be_read_is_left_out_and_said(bundle: Bundle) -> None:
    """No px is made up: fine tiles over a torn spot are counted, those of the run stay as they are."""
    slide = tissue_slide((300, 200, 30))
    p = _predict(slide, bundle)
    x0, y0 = p.coords[p.selected[0]]
    pixels = slide.read_region(0, 0, 0, 12 * SIDE, 8 * SIDE).pixels
    torn = ArraySlide(pixels, mpp=1.0, fail_at=[Box0(int(x0) - SIDE, int(y0) - SIDE, 1, 1)])
    whole, found = (refine_slide(s, bundle, replace(p), RefineOptions(n_regions=1, stride=0.25)) for s in (slide, torn))
    assert len(found.coords) == len(whole.coords)  # the torn corner is under a tile of the run alone
    torn = ArraySlide(pixels, mpp=1.0, fail_at=[Box0(int(x0) - SIDE + 20, int(y0) - SIDE + 20, 1, 1)])
    found = refine_slide(torn, bundle, p, RefineOptions(n_regions=1, stride=0.25))
    assert len(found.coords) < len(whole.coords)
    assert [n.code for n in found.notes] == ["E_TILE"]
