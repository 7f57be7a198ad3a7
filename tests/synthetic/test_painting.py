"""Painted slides are reproducible, and what is said about them is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsi_ips.synthetic import PaintedSlide, SlideRecipe, lesion_fraction, paint_slide

_RECIPE = SlideRecipe(seed=11, width=1900, height=1400, has_lesion=True)


@pytest.fixture(scope="module")
def painted() -> PaintedSlide:
    """A slide with a lesion."""
    return paint_slide(_RECIPE)


def test_same_seed_same_pixels(painted: PaintedSlide) -> None:
    """A recipe decides every pixel."""
    again = paint_slide(_RECIPE)
    assert np.array_equal(again.pixels, painted.pixels)
    assert not np.array_equal(paint_slide(replace(_RECIPE, seed=12)).pixels, painted.pixels)


def test_glass_is_bright_and_tissue_is_stained(painted: PaintedSlide) -> None:
    """Off-white glass surrounds tissue that covers a fair part of the slide."""
    assert painted.pixels.shape == (1400, 1900, 3)
    assert 0.3 < painted.tissue.mean() < 0.8
    cells = painted.pixels[: 175 * 8, : 237 * 8].reshape(175, 8, 237, 8, 3).mean((1, 3))  # (h, w, 3)
    spread = cells.max(-1) - cells.min(-1)
    assert np.median(cells[~painted.tissue]) > 235
    assert np.median(spread[~painted.tissue]) < 6
    assert np.median(spread[painted.tissue]) > 40


def test_only_the_lesion_tells_the_classes_apart(painted: PaintedSlide) -> None:
    """With and without lesion the slide has the same tissue, and the same pixels far from the lesions."""
    healthy = paint_slide(replace(_RECIPE, has_lesion=False))
    assert healthy.lesions == ()
    assert np.array_equal(healthy.tissue, painted.tissue)


def test_lesions_lie_in_the_tissue_and_are_darker(painted: PaintedSlide) -> None:
    """The outlines are where the dark crowded nuclei are."""
    side = 64
    y, x = np.mgrid[0 : 1400 - side + 1 : side, 0 : 1900 - side + 1 : side]
    coords = np.stack([x.ravel(), y.ravel()], axis=1)
    covered = lesion_fraction(coords, (side, side), painted.lesions)
    tissue = np.array([painted.tissue[b // 8 : b // 8 + 8, a // 8 : a // 8 + 8].mean() for a, b in coords])
    red = np.array([painted.pixels[b : b + side, a : a + side, 0].mean() for a, b in coords])
    inside, outside = (covered > 0.9) & (tissue > 0.9), (covered == 0) & (tissue > 0.9)
    assert inside.sum() > 5
    assert tissue[covered > 0.9].mean() > 0.8
    assert np.median(red[inside]) < np.median(red[outside]) - 25


@pytest.mark.parametrize(("pen", "channel"), [("green", 1), ("blue", 2), ("red", 0)])
def test_pen_has_its_colour(pen: str, channel: int) -> None:
    """A pen mark adds many px of a saturated colour that no tissue has."""
    marked = paint_slide(replace(_RECIPE, pen=pen, width=1300, height=1000)).pixels.astype(int)
    clean = paint_slide(replace(_RECIPE, width=1300, height=1000)).pixels.astype(int)
    others = [c for c in range(3) if c != channel]

    def strong(pixels: np.ndarray) -> int:
        return int((pixels[..., channel] - pixels[..., others].max(-1) > 60).sum())

    assert strong(marked) > strong(clean) + 5000


def test_stain_batches_differ() -> None:
    """The two batches differ in colour by more than sensor noise does."""
    a, b = (paint_slide(replace(_RECIPE, stain=s, width=1300, height=1000)) for s in "AB")
    assert np.array_equal(a.tissue, b.tissue)
    assert np.abs(a.pixels.astype(int) - b.pixels).mean() > 4
