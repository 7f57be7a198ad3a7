"""A tile's place as part of its features: added to keys and values alike, part of the bundle, never beyond its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ips.config import AttentionSettings, ReadSettings
from wsi_ips.engine.slideplan import plan_slide
from wsi_ips.errors import ModelError, SlideError
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.positions import position_table
from wsi_ips.slide.arrayslide import ArraySlide

MakeClassifier = Callable[..., IPSClassifier]


def _with_places(make: MakeClassifier, n: int) -> IPSClassifier:
    plain = make(context=True)
    settings = plain.settings.replace(attention=AttentionSettings(dim=8, n_heads=2, dropout=0.0, positions=n).model_dump())
    placed = IPSClassifier(plain.encoder, settings).eval()
    placed.load_state_dict(plain.state_dict())
    return placed


def test_the_table_is_sines_and_cosines_of_rising_wavelength() -> None:
    """Row r, columns 2k and 2k + 1: sin and cos of r / 10000^(2k / D); an odd D ends with a sine."""
    table = position_table(50, 5).numpy()
    assert table.shape == (50, 5)
    for column, (wave, k) in enumerate([(np.sin, 0), (np.cos, 0), (np.sin, 1), (np.cos, 1), (np.sin, 2)]):
        assert table[:, column] == pytest.approx(wave(np.arange(50) / 10_000 ** (2 * k / 5)), abs=1e-6)


def test_places_join_the_features_that_keys_and_values_see(make_classifier: MakeClassifier, tiles: torch.Tensor) -> None:
    """Features with places are those without, plus the table's rows; logits and labels follow from them."""
    placed, plain = _with_places(make_classifier, 40), make_classifier(context=True)
    rows = np.array([3, 39, 0, 7, 8, 20, 21])
    found, without = placed.scan(tiles, 4, rows), plain.scan(tiles, 4)
    assert found.features == pytest.approx(without.features + position_table(40, 8).numpy()[rows], abs=1e-6)
    assert found.logits == pytest.approx(plain.head_logits(torch.from_numpy(found.features)).detach().numpy(), abs=1e-6)
    assert np.array_equal(placed.read_out(found.features).outputs, plain.read_out(found.features).outputs)


def test_learning_sees_the_same_places_as_labelling(make_classifier: MakeClassifier, tiles: torch.Tensor) -> None:
    """The differentiable head over selected tiles and context gives the logits of the read-out."""
    placed = _with_places(make_classifier, 40)
    rows = np.array([3, 39, 0, 7, 8, 20, 21])
    embedded = placed.embed(tiles)
    out = placed.head(placed.encode(embedded[:4], rows[:4]), embedded[4:], rows[4:]).outputs
    whole = placed.head(placed.encode(tiles, rows)).outputs
    assert out.detach().numpy() == pytest.approx(whole.detach().numpy(), abs=1e-5)
    other = placed.head(placed.encode(embedded[:4], rows[:4]), embedded[4:], rows[4:] + 1).outputs
    assert np.abs((out - other).detach().numpy()).max() > 1e-4


def test_unknown_places_and_larger_bags_are_refused(make_classifier: MakeClassifier, tiles: torch.Tensor) -> None:
    """Nothing is guessed: without rows, or with a row beyond the table, there is an error that says what to do."""
    placed = _with_places(make_classifier, 40)
    with pytest.raises(ModelError, match="places of the tiles are not known"):
        placed.scan(tiles, 4)
    with pytest.raises(ModelError, match="row 40 of the grid: this model knows the places of 40 tiles"):
        placed.scan(tiles, 4, np.arange(34, 41))


def test_an_image_with_another_grid_is_a_row_with_a_reason(make_classifier: MakeClassifier) -> None:
    """Rows of another grid mean other places, so a slide of more, or fewer, tiles is not planned."""
    settings = _with_places(make_classifier, 6).settings.replace(tissue={"method": "whole"})
    assert len(plan_slide(ArraySlide(np.zeros((64, 96, 3), np.uint8), mpp=1.0), settings, ReadSettings()).grid.coords) == 6
    for shape in ((96, 96, 3), (64, 64, 3)):
        with pytest.raises(SlideError, match="places of a grid of 6"):
            plan_slide(ArraySlide(np.zeros(shape, np.uint8), mpp=1.0), settings, ReadSettings())


def test_places_travel_with_the_bundle(make_classifier: MakeClassifier, tiles: torch.Tensor, tmp_path: Path) -> None:
    """An opened bundle adds the same places to the last bit."""
    placed = _with_places(make_classifier, 40)
    save_bundle(tmp_path / "model", placed, placed.settings, card="# places")
    opened = load_bundle(tmp_path / "model").classifier
    rows = np.arange(30, 37)
    assert np.array_equal(opened.scan(tiles, 4, rows).features, placed.scan(tiles, 4, rows).features)
