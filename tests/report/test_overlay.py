"""Overlays lie over the slide exactly, say what they show, and are the same every time."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from wsi_ips.config import TaskSettings
from wsi_ips.geometry import Box0
from wsi_ips.report.overlay import (
    draw_contour,
    draw_over,
    evidence_png,
    no_tissue_sheet,
    overlay_png,
    place_map,
    thumbnail_jpeg,
)
from wsi_ips.report.picture import printable, scale_bar
from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.readout import call_text, evidence_for_call
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.backends import ArraySlide

Make = Callable[..., ArraySlide]
Predict = Callable[..., SlidePrediction]


def _decode(png: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize(
    ("size", "bounds", "row"),
    [((1537, 1011), Box0(203, 107, 1201, 811), 40), ((911, 2003), None, 3), ((2503, 409), Box0(0, 51, 2499, 301), 77)],
)
@pytest.mark.parametrize("scale", ["uniform", "percentile"])
def test_fault_113_the_hottest_px_of_the_png_lies_in_the_hot_tile(
    make_prediction: Predict, size: tuple[int, int], bounds: Box0 | None, row: int, scale: str
) -> None:
    """On wide, tall and offset scans, the px that changes most towards yellow is inside the planted tile."""
    grey = np.full((size[1], size[0], 3), 230, np.uint8)
    slide = ArraySlide(grey, bounds=bounds)
    prediction = make_prediction(slide, hot=row, outline=TissueOutline(np.zeros((4, 5), bool), 0, 0, 9.0, 9.0))
    picture = _decode(overlay_png(slide, prediction, scale=scale, max_px=1200)).astype(int)  # type: ignore[arg-type]
    placed = place_map(prediction.bounds, 1200)
    assert picture.shape == (placed.sheet_height, placed.sheet_width, 3)
    part = picture[placed.map_y : placed.map_y + placed.map_height, placed.map_x : placed.map_x + placed.map_width]
    yellow = part[..., 0] + part[..., 1] - 2 * part[..., 2]
    hottest = np.argwhere(yellow > yellow.max() - 8)
    centres = [placed.to_level0(placed.map_x + x + 0.5, placed.map_y + y + 0.5) for y, x in hottest]
    x0, y0 = prediction.coords[row]
    assert all(x0 <= x <= x0 + 61 and y0 <= y <= y0 + 61 for x, y in centres)
    # and the whole tile is hot, but for px on its border that its neighbours share
    side = 61 / placed.downsample
    assert (side - 2) ** 2 <= len(hottest) <= (side + 1) ** 2


def test_the_same_prediction_gives_the_same_bytes(make_slide: Make, make_prediction: Predict) -> None:
    """Two drawings are equal byte for byte; their one text chunk says where they come from, and there is no date or profile."""
    slide = make_slide(701, 401)
    prediction = make_prediction(slide, hot=5)
    for draw in (overlay_png, evidence_png):
        first = draw(slide, prediction, max_px=600)
        assert first == draw(slide, prediction, max_px=600)
        assert not any(chunk in first for chunk in (b"iTXt", b"zTXt", b"tIME", b"eXIf", b"iCCP"))
        assert Image.open(io.BytesIO(first)).info == {"Description": provenance_text(prediction)}
        assert json.loads(provenance_text(prediction))["model_hash"] == prediction.model_hash


def test_a_slide_without_preference_keeps_its_look(make_slide: Make, make_prediction: Predict) -> None:
    """With uniform attention tissue stays tissue: no px moves by a third of the range, and no tile stands out."""
    slide = make_slide(701, 401)
    none = TissueOutline(np.zeros((4, 5), bool), 0, 0, 9.0, 9.0)
    placed = place_map(slide.bounds, 600)
    box = (slice(placed.map_y, placed.map_y + placed.map_height), slice(placed.map_x, placed.map_x + placed.map_width))
    plain = no_tissue_sheet(slide, "a", max_px=600)[box].astype(int)
    flat = _decode(overlay_png(slide, make_prediction(slide, outline=none), max_px=600))[box].astype(int)
    assert np.abs(plain - flat).max() < 85


def test_unselected_tiles_are_grey_in_the_evidence_picture(make_prediction: Predict) -> None:
    """Only selected tiles are coloured; the others get one neutral grey, and glass without tiles stays as it was."""
    slide = ArraySlide(np.full((700, 1013, 3), 230, np.uint8))
    evidence = np.array([[0.4], [-0.4]], np.float32)
    none = TissueOutline(np.zeros((4, 5), bool), 0, 0, 9.0, 9.0)
    p = make_prediction(slide, tile_px=100, hot=13, m=2, evidence=evidence, outline=none)
    picture = _decode(evidence_png(slide, p, max_px=1000)).astype(int)
    placed = place_map(p.bounds, 1000)

    def colour(row: int) -> list[int]:
        x0, y0 = p.coords[row] + 50
        x, y = placed.map_x + int(x0 / placed.downsample), placed.map_y + int(y0 / placed.downsample)
        return picture[y, x].tolist()

    positive, negative, unused = colour(p.selected[0]), colour(p.selected[1]), colour(p.n_tiles - 1)
    assert positive[0] > positive[2] + 60  # orange
    assert negative[2] > negative[0] + 30  # purple
    assert max(unused) - min(unused) <= 6
    assert unused == colour(p.n_tiles - 2)
    assert unused[0] < 215


def test_the_contour_follows_the_mask(make_prediction: Predict) -> None:
    """The contour of a mask with its own origin and downsample lies on the mask's edge, within two map px."""
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:70] = True
    picture = np.full((300, 400, 3), 255, np.uint8)
    draw_contour(picture, TissueOutline(mask, 100, 50, 20.0, 20.0), Box0(200, 100, 2000, 1500), 5.0)
    rows, columns = np.nonzero(picture[..., 0] < 200)
    # mask edges in level-0 px: x 700..1500, y 450..850; in map px: 100..260 and 70..150
    assert (columns.min(), columns.max()) == (pytest.approx(100, abs=2), pytest.approx(259, abs=2))
    assert (rows.min(), rows.max()) == (pytest.approx(70, abs=2), pytest.approx(149, abs=2))
    assert (picture[80:140, 110:250] == 255).all()


def test_the_contour_of_the_png_lies_at_the_mask_of_an_offset_scan(make_slide: Make, make_prediction: Predict) -> None:
    """P5: with bounds, the contour on the sheet leads back to the mask's edge in level-0 px."""
    slide = make_slide(bounds=Box0(210, 130, 1200, 800))
    mask = np.zeros((100, 150), bool)
    mask[20:60, 30:110] = True  # level-0 px: x 450..1090, y 290..610
    with_contour = make_prediction(slide, outline=TissueOutline(mask, 210, 130, 8.0, 8.0))
    without = replace(with_contour, outline=TissueOutline(np.zeros_like(mask), 210, 130, 8.0, 8.0))
    sheets = [_decode(overlay_png(slide, p)) for p in (with_contour, without)]
    rows, columns = np.nonzero((sheets[0] != sheets[1]).any(axis=-1))
    placed = place_map(slide.bounds)
    assert placed.to_level0(columns.min(), rows.min()) == pytest.approx((450, 290), abs=6)
    assert placed.to_level0(columns.max() + 1, rows.max() + 1) == pytest.approx((1090, 610), abs=6)


@pytest.mark.parametrize("size", [(200000, 8000), (9000, 150000), (640, 480), (30001, 29999)])
@pytest.mark.parametrize("max_px", [1200, 1800])
def test_every_shape_of_slide_fits_the_sheet(size: tuple[int, int], max_px: int) -> None:
    """The sheet is never wider than asked, the map never leaves it, and keeps the slide's proportions."""
    placed = place_map(Box0(0, 0, *size), max_px)
    assert placed.sheet_width <= max_px
    assert placed.map_x >= 0
    assert placed.map_x + placed.map_width <= placed.sheet_width
    assert abs(placed.map_width * placed.downsample - size[0]) <= placed.downsample
    assert abs(placed.map_height * placed.downsample - size[1]) <= placed.downsample


def test_laying_over_is_exact_arithmetic() -> None:
    """Half of white over black is 128 after rounding to even; nothing over anything is that thing."""
    rgba = np.array([[[1.0, 1.0, 1.0, 0.5], [1.0, 0.0, 0.0, 0.0]]])
    assert draw_over(np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8), rgba).tolist() == [[[128, 128, 128], [9, 8, 7]]]


def test_fault_062_a_slide_without_tissue_gets_its_picture(make_slide: Make) -> None:
    """A slide on which nothing was found is still drawn, with its own px, and a small copy can be cut from it."""
    slide = make_slide(1501, 401, mpp=0.25)
    sheet = no_tissue_sheet(slide, "an $odd$ id\n组织")
    placed = place_map(slide.bounds)
    assert sheet.shape[:2] == (placed.sheet_height, placed.sheet_width)
    assert thumbnail_jpeg(sheet)[:2] == b"\xff\xd8"
    assert len(thumbnail_jpeg(sheet)) < 30_000


def test_any_text_can_be_written() -> None:
    """Control characters become spaces and unknown glyphs boxes, so no id can stop a drawing."""
    assert printable("a\tb\x00c") == "a b c"
    assert printable("é µ ≥") == "é µ ≥"
    assert printable("\U000e0001x") in ("  x", " x", "□x")


def test_scale_bars_are_round_and_fit() -> None:
    """The bar is 1, 2 or 5 times a power of ten and no longer than its room."""
    for um_per_px in (0.13, 0.5, 3.7, 22.2, 180.0):
        bar = scale_bar(um_per_px, 300.0)
        number, unit = bar.text.split()
        assert float(f"{float(number):e}".split("e")[0]) in (1.0, 2.0, 5.0)
        assert bar.length_px * um_per_px == pytest.approx(float(number) * (1000 if unit == "mm" else 1))
        assert 110 <= bar.length_px <= 300.0001


def test_the_call_is_said_for_every_kind_of_task(make_slide: Make, make_prediction: Predict) -> None:
    """Each kind of task has a sentence, and evidence belongs to what was called."""
    slide = make_slide()
    tasks = (
        TaskSettings(name="a", kind="multiclass", classes=("x", "y", "z")),
        TaskSettings(name="b", kind="multilabel", classes=("p", "q")),
        TaskSettings(name="c", kind="ordinal", classes=("0", "1", "2")),
        TaskSettings(name="d", kind="regression"),
    )
    outputs = np.array([0.0, 3.0, 0.0, -2.0, 2.0, 4.0, -4.0, 1.25], np.float32)
    p = make_prediction(slide, tasks=tasks, outputs=outputs)
    said = [call_text(p, t) for t in range(4)]
    assert said[0] == "a: y (probability 0.909)"
    assert said[1] == "b: q (probabilities: p 0.119, q 0.881)"
    assert said[2].startswith("c: 1 (probability 0.9")
    assert said[3] == "d: 1.25"
    values, towards = evidence_for_call(p, 0)
    assert towards == "y"
    np.testing.assert_array_equal(values.astype(np.float32), p.evidence[:, 1])
    assert evidence_for_call(p, 2)[1] == "a higher c"
