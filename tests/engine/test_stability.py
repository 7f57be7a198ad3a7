"""Stability: what should not matter, measured; perfect where there is nothing to tell apart."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from dark_model import SIDE, dark_bundle, tissue_slide

from wsi_ips.config import ReadSettings
from wsi_ips.engine import stability as stability_module
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.engine.stability import StainedSlide, stability
from wsi_ips.errors import ModelError
from wsi_ips.model.bundle import Bundle
from wsi_ips.refined import Change, Stability, TaskChange, stability_bytes
from wsi_ips.report.stability import stability_sentences
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.arrayslide import ArraySlide


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return dark_bundle()


def _predict(slide: ArraySlide, bundle: Bundle) -> SlidePrediction:
    return predict_slide(slide, bundle, PredictJob("s"))


def test_a_uniform_slide_is_perfectly_stable(bundle: Bundle) -> None:
    """Where all tiles are alike neither grid nor stain changes anything; constant maps agree."""
    slide = tissue_slide()
    found = stability(slide, bundle, _predict(slide, bundle), stain=True)
    assert [c.kind for c in found.changes] == ["shift", "stain"]
    for change in found.changes:
        (task,) = change.tasks
        assert task.before == pytest.approx(task.after, abs=1e-6)
        assert (task.called_before, task.rank_correlation) == (task.called_after, 1.0)
    assert found.changes[1].selected_overlap == 1.0


def test_the_shifted_grid_lies_half_a_tile_right_and_down(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles move, by the same half tile; the stained pass keeps the run's own tiles."""
    grids, real = [], stability_module.scan_slide

    def watch(slide: Any, grid: Any, *rest: Any) -> Any:
        grids.append(grid.coords)
        return real(slide, grid, *rest)

    monkeypatch.setattr(stability_module, "scan_slide", watch)
    slide = tissue_slide((300, 200, 30))
    p = _predict(slide, bundle)
    found = stability(slide, bundle, p, stain=True)
    assert (grids[0] % SIDE == SIDE // 2).all()
    assert len(grids[0]) == 11 * 7 == found.changes[0].n_tiles
    assert np.array_equal(grids[1], p.coords)


def test_an_object_on_a_corner_of_the_grid_makes_the_label_hang_on_the_grid(bundle: Bundle) -> None:
    """Cut in four, or whole in one tile: another probability, said in a sentence; a second time the same bytes."""
    slide = tissue_slide((5 * SIDE - 10, 3 * SIDE - 10, 20))
    p = _predict(slide, bundle)
    found = stability(slide, bundle, p, stain=False)
    (change,) = found.changes
    (task,) = change.tasks
    assert abs(task.before - task.after) > 1e-3
    assert 0.0 < change.selected_overlap < 1.0
    assert task.rank_correlation is not None
    assert task.rank_correlation < 0.999
    assert stability_bytes(found) == stability_bytes(stability(slide, bundle, p, stain=False, read=ReadSettings(n_readers=1)))
    said = json.loads(stability_bytes(found))
    assert said["changes"][0]["tasks"][0]["before"] == task.before
    assert "Shifting the grid by half a tile" in stability_sentences(found)[0]


def test_another_bundle_is_refused(bundle: Bundle) -> None:
    """What is compared must have been computed by the same model."""
    slide = tissue_slide()
    with pytest.raises(ModelError, match="classified by model"):
        stability(slide, dark_bundle("e" * 64), _predict(slide, bundle), stain=False)


def test_a_stained_slide_differs_in_its_pixels_alone() -> None:
    """Size, levels and place stay; the draw is the seed's; of strength 0 nothing changes beyond rounding."""
    slide = tissue_slide((10, 10, 20))
    plain = slide.read_region(0, 0, 0, 40, 30).pixels.astype(int)
    once, again, other, none = (
        StainedSlide(slide, strength, seed).read_region(0, 0, 0, 40, 30).pixels.astype(int)
        for strength, seed in ((0.1, 0), (0.1, 0), (0.1, 1), (0.0, 0))
    )
    assert np.array_equal(once, again)
    assert np.abs(once - plain).max() > 2
    assert not np.array_equal(once, other)
    assert np.abs(none - plain).max() <= 1
    assert StainedSlide(slide, 0.1, 0).levels == slide.levels
    assert StainedSlide(slide, 0.1, 0).path is None


def test_sentences_say_what_changed_and_what_did_not() -> None:
    """Numbers as people read them; a changed call and maps that cannot be compared are said."""
    rows = (
        TaskChange("label", "probability of tumor", 0.931, 0.907, "tumor", "tumor", 0.878),
        TaskChange("label", "probability of tumor", 0.52, 0.31, "tumor", "normal", None),
        TaskChange("age", "predicted age", 61.04, 61.04, "61.04", "61.04", 1.0),
        TaskChange("label", "probability of tumor", 0.9977, 0.9971, "tumor", "tumor", 0.5),
    )
    found = Stability("s", "m", (Change("shift", 0.5, rows, 0.4, 9), Change("stain", 0.1, rows[:1], 0.9, 9)))
    assert stability_sentences(found) == [
        "Shifting the grid by half a tile changes the probability of tumor from 0.93 to 0.91; the attention maps agree with a rank correlation of 0.88.",
        "Shifting the grid by half a tile changes the probability of tumor from 0.52 to 0.31 and the call from tumor to normal; one of the attention maps is constant, so they cannot be compared.",
        "Shifting the grid by half a tile leaves the predicted age at 61; the attention maps agree with a rank correlation of 1.00.",
        "Shifting the grid by half a tile changes the probability of tumor from 0.9977 to 0.9971; the attention maps agree with a rank correlation of 0.50.",
        "Changing the stain by up to 10 % changes the probability of tumor from 0.93 to 0.91; the attention maps agree with a rank correlation of 0.88.",
    ]


def test_a_regressions_number_is_told_once() -> None:
    """Its call is the number itself, and is not said a second time with other digits."""
    task = TaskChange("age", "predicted age", 61.04, 58.2, "61.04", "58.2", 1.0)
    (said,) = stability_sentences(Stability("s", "m", (Change("shift", 0.5, (task,), 0.5, 9),)))
    assert "the call" not in said
