"""One slide through the whole path: what is written is what was computed, where it was computed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ips.config import ReadSettings, TileSpec
from wsi_ips.engine import draw
from wsi_ips.engine import scan as scan_module
from wsi_ips.engine.draw import slide_files
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.engine.scan import plan_slide, scan_slide, slide_embeddings, slide_logits
from wsi_ips.errors import ConfigError, NoTissueError, TileReadError, UnreadableSlideError
from wsi_ips.geometry import Box0
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.model.ledger import attention_from_logits, ips_loop, scores_from_logits, top_rows
from wsi_ips.model.selector import Selection, StreamingSelector
from wsi_ips.report.map_switch import draw_layers
from wsi_ips.results import SlidePrediction, ledger_bytes, read_ledger
from wsi_ips.slide.backends import ArraySlide
from wsi_ips.slide.faultyslide import Fault, FaultySlide
from wsi_ips.slide.reader import Region, Slide

MPP, SIDE0 = 1.0, 128  # a 32-px tile at 4 µm/px is 128 level-0 px


def _pixels(height: int = 1100, width: int = 1700) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 243, np.uint8)
    tissue = rng.integers(-12, 12, (height - 200, width - 260, 3)) + np.array([205, 120, 180])
    pixels[90 : height - 110, 120 : width - 140] = tissue.astype(np.uint8)
    return pixels


def _patchwork() -> np.ndarray:
    """Tissue of 12 x 8 squares, each of its own colour, so that tiles differ."""
    pixels = np.full((1100, 1700, 3), 243, np.uint8)
    colours = np.random.default_rng(0).integers((150, 60, 130), (220, 140, 200), (8, 12, 3)).astype(np.uint8)
    pixels[38 : 38 + 8 * SIDE0, 82 : 82 + 12 * SIDE0] = colours.repeat(SIDE0, 0).repeat(SIDE0, 1)
    return pixels


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def _predict(slide: Slide, bundle: Bundle, **job: object) -> SlidePrediction:
    return predict_slide(slide, bundle, PredictJob("s", **job))  # type: ignore[arg-type]


def test_the_label_is_recomputed_from_the_ledger_bit_for_bit(bundle: Bundle) -> None:
    """P4: outputs and evidence follow from the stored values alone, after a round through the file."""
    p = read_ledger(ledger_bytes(_predict(ArraySlide(_pixels(), mpp=MPP), bundle)))
    again = bundle.classifier.read_out(p.values)
    assert np.array_equal(again.outputs, p.outputs)
    assert np.array_equal(again.evidence, p.evidence)


def test_evidence_in_the_whole_bag_is_that_of_removing_each_tile(bundle: Bundle) -> None:
    """Every tile has one, through the file and back, and nothing else of the prediction changes by it."""
    slide = ArraySlide(_patchwork(), mpp=MPP)
    plain, found = _predict(slide, bundle), read_ledger(ledger_bytes(_predict(slide, bundle, with_bag=True)))
    assert found.bag_evidence is not None
    assert ledger_bytes(replace(found, bag_evidence=None)) == ledger_bytes(plain)
    embeddings = slide_embeddings(slide, plan_slide(slide, bundle.settings, ReadSettings()).grid, bundle.classifier, ReadSettings())
    features = torch.from_numpy(bundle.classifier.scan(embeddings.embeddings.astype(np.float32), 16).features)
    head, rows = bundle.single.double_head(), [0, 3, int(found.selected[0]), found.n_tiles - 1]
    wanted = [head.label(features) - head.label(torch.cat([features[:i], features[i + 1 :]])) for i in rows]
    assert np.allclose(found.bag_evidence[rows], torch.stack(wanted).numpy(), atol=1e-5)


def test_attention_and_selection_follow_from_the_logits(bundle: Bundle) -> None:
    """The map covers every tile, sums to 1 and ranks as the selection does."""
    p = _predict(ArraySlide(_pixels(), mpp=MPP), bundle)
    assert p.logits.shape == (p.n_tiles, 1, 2)
    assert np.allclose(p.attention.sum(axis=0), 1.0, atol=1e-5)
    assert np.allclose(p.attention, attention_from_logits(p.logits), atol=1e-7)
    assert np.array_equal(p.selected, top_rows(scores_from_logits(p.logits), 6))


@pytest.mark.parametrize("bounds", [None, Box0(37, 53, 1500, 960)])
def test_fault_039_and_113_a_planted_square_stands_out_at_its_own_place(bundle: Bundle, bounds: Box0 | None) -> None:
    """P5: a square painted over one tile changes that tile's numbers and no other's, with and without bounds."""
    origin = bounds or Box0(0, 0, 1700, 1100)
    place = (origin.x0 + 5 * SIDE0, origin.y0 + 3 * SIDE0)
    plain = _pixels()
    planted = plain.copy()
    planted[place[1] : place[1] + SIDE0, place[0] : place[0] + SIDE0] = (120, 40, 150)
    without, with_square = (_predict(ArraySlide(pixels, mpp=MPP, bounds=bounds), bundle) for pixels in (plain, planted))
    assert np.array_equal(without.coords, with_square.coords)
    changed = np.flatnonzero((without.logits != with_square.logits).any(axis=(1, 2)))
    assert [tuple(c) for c in with_square.coords[changed]] == [place]
    assert with_square.extent0 == (SIDE0, SIDE0)


def test_a_large_slide_is_drawn_as_a_small_one_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one thread, to hold less at a time; every file has the same bytes."""
    slide = ArraySlide(_patchwork(), mpp=MPP)
    p, row = _predict(slide, bundle), {"slide_id": "s", "status": "ok"}
    beside = slide_files(slide, p, row)
    monkeypatch.setattr(draw, "_MANY_TILES", 0)
    threads: set[str] = set()
    monkeypatch.setattr(draw, "draw_layers", lambda *a: (threads.add(threading.current_thread().name), draw_layers(*a))[1])
    assert slide_files(slide, p, row) == beside
    assert threads == {threading.current_thread().name}


def test_label_and_map_change_together(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: one pass feeds both. Repaint a tile that was used, or turn the encoder, and label, attention and picture change."""
    encoded = []
    whole = type(bundle.classifier).embed_tiles
    monkeypatch.setattr(type(bundle.classifier), "embed_tiles",
                        lambda self, tiles, batch: encoded.append(len(tiles)) or whole(self, tiles, batch))  # fmt: skip
    pixels = _patchwork()
    before = _predict(ArraySlide(pixels, mpp=MPP), bundle)
    slide = ArraySlide(pixels, mpp=MPP)
    picture = slide_files(slide, before, {"slide_id": "s", "status": "ok"})
    assert sum(encoded) == before.n_tiles + before.n_reencoded  # drawing encodes nothing
    x0, y0 = before.coords[before.selected[0]]
    repainted = pixels.copy()
    repainted[y0 : y0 + SIDE0, x0 : x0 + SIDE0] = (120, 40, 150)
    after = _predict(ArraySlide(repainted, mpp=MPP), bundle)
    assert np.array_equal(before.coords, after.coords)
    assert (before.outputs != after.outputs).all()
    assert not np.array_equal(before.attention, after.attention)
    assert slide_files(slide, after, {"slide_id": "s", "status": "ok"})["s.attention.tif"] != picture["s.attention.tif"]
    # and a model that looks elsewhere labels otherwise
    query = bundle.classifier.attention.query
    monkeypatch.setattr(query, "data", query.data.flip(-1) * 3.0)
    elsewhere = _predict(ArraySlide(pixels, mpp=MPP), bundle)
    assert not np.allclose(before.attention, elsewhere.attention, rtol=1e-3)
    assert (before.outputs != elsewhere.outputs).all()


def test_the_same_slide_gives_the_same_bytes(bundle: Bundle) -> None:
    """Number of readers and a second run change nothing."""
    slide = ArraySlide(_pixels(), mpp=MPP)
    once = ledger_bytes(_predict(slide, bundle, read=ReadSettings(n_readers=1)))
    again = ledger_bytes(_predict(slide, bundle, read=ReadSettings(n_readers=4, read_ahead=3)))
    assert once == again


def test_fault_071_other_tiles_than_the_models_are_refused_or_recorded(bundle: Bundle) -> None:
    """P10: an error that says both, or a warning in the result."""
    slide, other = ArraySlide(_pixels(), mpp=MPP), TileSpec(size_px=32, mpp=2.0)
    with pytest.raises(ConfigError, match=r"2.0 µm/px.*trained on 32 px at 4.0 µm/px.*--allow-mismatch"):
        _predict(slide, bundle, tile=other)
    p = _predict(slide, bundle, tile=other, allow_mismatch=True)
    assert [n.code for n in p.notes] == ["E_MISMATCH"]
    assert p.extent0 == (64.0, 64.0)
    with pytest.raises(ConfigError, match="another tile size"):
        _predict(slide, bundle, tile=TileSpec(size_px=64, mpp=4.0), allow_mismatch=True)


def test_fault_005_unreadable_tiles_fail_the_slide_unless_some_are_allowed(bundle: Bundle) -> None:
    """P6: no pixel is made up; the count and the first place are said; rows close up over the tiles left out."""
    levels = [_pixels(1024, 1664), _pixels(1024, 1664)[::8, ::8]]  # the tissue view comes from the second level
    bad = Box0(4 * SIDE0 + 5, 2 * SIDE0 + 5, 10, 10)
    sound = ArraySlide(levels, mpp=MPP)
    torn = FaultySlide(sound, [Fault("error", bad, level=0)])
    with pytest.raises(TileReadError, match=r"E_TILE.* 1 of \d+ tiles cannot be decoded, the first at .*\(512, 256\)"):
        _predict(torn, bundle)
    whole, rest = _predict(sound, bundle), _predict(torn, bundle, read=ReadSettings(max_bad_tiles=0.1))
    keep = (whole.coords != (512, 256)).any(axis=1)
    assert np.array_equal(rest.coords, whole.coords[keep])
    assert np.array_equal(rest.logits, whole.logits[keep])
    assert np.array_equal(rest.selected, top_rows(scores_from_logits(rest.logits), 6))
    assert (rest.n_failed_reads, [n.code for n in rest.notes]) == (1, ["E_TILE"])


@pytest.mark.parametrize("at_once", [20, 33, 4096])
def test_learning_ranks_tiles_by_the_logits_of_the_pass(bundle: Bundle, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored many chunks at a time or few: the same tiles, unreadable ones left out, to the last digits of float32."""
    monkeypatch.setattr(scan_module, "_SCORED_AT_ONCE", at_once)
    slide = FaultySlide(ArraySlide([_patchwork(), _patchwork()[::8, ::8]], mpp=MPP), [Fault("error", Box0(517, 261, 10, 10), level=0)])
    read = ReadSettings(max_bad_tiles=0.1)
    grid = plan_slide(slide, bundle.settings, read).grid
    found = scan_slide(slide, grid, bundle.classifier, read)
    logits = slide_logits(slide, grid, bundle.classifier, read).logits
    assert (found.n_failed, len(logits)) == (1, len(grid.coords) - 1)
    assert len(logits) > 33
    np.testing.assert_allclose(logits, found.logits, rtol=1e-5, atol=1e-6)


def test_fault_007_missing_pixels_are_counted_and_said(bundle: Bundle) -> None:
    """P6: a tile that the file holds only in part is a count and a warning of the result, not silence."""
    missing = np.zeros((1100, 1700), bool)
    missing[3 * SIDE0 + 10 : 3 * SIDE0 + 20, 5 * SIDE0 + 10 : 5 * SIDE0 + 20] = True
    p = _predict(ArraySlide(_pixels(), mpp=MPP, missing=missing), bundle)
    assert (p.n_missing, p.n_failed_reads) == (1, 0)
    assert [n.code for n in p.notes] == ["E_MISSING_PIXELS"]


def test_fault_007_and_015_a_slide_without_most_of_its_tiles_has_no_label(bundle: Bundle) -> None:
    """Where the coarse level shows tissue and the fine one was never copied there is nothing to label."""

    class Hollow(ArraySlide):
        def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
            if level == 0:
                return super().read_region(x0, y0, level, width_px, height_px)
            return ArraySlide(self._arrays, mpp=MPP).read_region(x0, y0, level, width_px, height_px)

    levels = [_pixels(1024, 1664), _pixels(1024, 1664)[::8, ::8]]
    missing = np.zeros((1024, 1664), bool)
    missing[:, :1000] = True
    with pytest.raises(UnreadableSlideError, match=r"E_MISSING_PIXELS: array: \d+ of \d+ tiles hold mostly pixels that are missing"):
        _predict(Hollow(levels, mpp=MPP, missing=missing), bundle)
    missing[:, 600:] = False
    assert [n.code for n in _predict(Hollow(levels, mpp=MPP, missing=missing), bundle).notes] == ["E_MISSING_PIXELS"]


def test_glass_is_no_bag_of_glass(bundle: Bundle) -> None:
    """An empty slide has no label."""
    glass = np.full((900, 1300, 3), 243, np.uint8)
    with pytest.raises(NoTissueError, match=r"E_NO_T"):
        _predict(ArraySlide(glass, mpp=MPP), bundle)


def test_values_are_the_features_of_the_selected_tiles(bundle: Bundle) -> None:
    """Values are those of the selected tiles, in the order of the selection: equal to encoding them alone."""
    slide = ArraySlide(_pixels(), mpp=MPP)
    p = _predict(slide, bundle)
    tiles = np.stack([_tile(slide, *p.coords[r]) for r in p.selected])
    assert np.allclose(bundle.classifier.scan(tiles, 16).features, p.values, atol=1e-6)


def test_features_that_left_the_buffer_are_encoded_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: with half of the selected features dropped, they are read again, each to its place, and counted."""

    class Forgets(StreamingSelector):
        def finish(self) -> Selection:
            found = super().finish()
            found.features[[0, 3, 5]] = np.nan
            return found._replace(missing=np.array([0, 3, 5]))

    slide = ArraySlide(_patchwork(), mpp=MPP)
    whole = _predict(slide, bundle)
    assert (np.diff(whole.selected[[0, 3, 5]]) < 0).any()  # in storage order the place would not show
    monkeypatch.setattr(scan_module, "StreamingSelector", Forgets)
    p = _predict(slide, bundle)
    assert (whole.n_reencoded, p.n_reencoded) == (0, 3)
    assert np.array_equal(p.selected, whole.selected)
    assert np.allclose(p.values, whole.values, atol=1e-6)
    assert np.allclose(p.outputs, whole.outputs, atol=1e-6)


def test_the_selection_of_a_slide_is_exact_where_the_papers_loop_is_not(tiny_bundle: Path) -> None:
    """P3: a sharp head and a flat one that disagree: the loop keeps other tiles than the top M of the whole bag."""
    bundle = load_bundle(tiny_bundle)
    attention = bundle.classifier.attention
    half = attention.dim // attention.n_heads
    with torch.no_grad():
        attention.to_query.weight[half:] = -10.0 * attention.to_query.weight[:half]
        attention.to_query.weight[:half] *= 100.0
        attention.to_key.weight[half:] = attention.to_key.weight[:half]
    p = _predict(ArraySlide(_patchwork(), mpp=MPP), bundle)
    assert set(ips_loop(p.logits, 6, 16)) != set(p.selected)
    assert np.array_equal(p.selected, top_rows(scores_from_logits(p.logits), 6))


def _tile(slide: ArraySlide, x0: int, y0: int) -> np.ndarray:
    import cv2

    return cv2.resize(
        slide.read_region(int(x0), int(y0), 0, SIDE0, SIDE0).pixels, (32, 32), interpolation=cv2.INTER_AREA
    )


def test_fault_036_a_slide_unlike_the_training_slides_draws_a_warning(bundle: Bundle) -> None:
    """The cohort's colour range travels in the bundle."""
    config = bundle.config | {"extra": {"colour_range": {"red density": [0.9, 1.0]}}}
    p = _predict(ArraySlide(_pixels(), mpp=MPP), replace(bundle, config=config))
    assert [n.code for n in p.notes] == ["E_OUT_OF_RANGE"]
    assert "red density" in p.notes[0].message
