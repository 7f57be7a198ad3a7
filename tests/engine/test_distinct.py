"""Tiles of the same bytes are encoded once, and nobody can tell by the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.distinct import DistinctTiles
from wsi_ips.engine.scan import plan_slide, scan_slide, slide_logits
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.slide.sparseslide import SparseSlide
from wsi_ips.training.start import build_classifier


@pytest.fixture(scope="module")
def classifier(tiny_settings: ModelSettings) -> IPSClassifier:
    """A tiny model of 32-px tiles at 1 µm/px over whole images."""
    tile, tissue = {"size_px": 32, "mpp": 1.0}, {"method": "whole"}
    return build_classifier(tiny_settings.replace(tile=tile, tissue=tissue), seed=1).eval()


def test_copies_get_the_very_features_of_their_original(classifier: IPSClassifier) -> None:
    """Bit for bit what encoding every tile in batches of that shape gives; later chunks know what came twice before."""
    rng = np.random.default_rng(0)
    different = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    distinct = DistinctTiles()
    for rows, n_new in (([0, 1, 0, 0, 2], 3), ([0, 3, 3, 3], 1), ([4], 1), ([0, 3, 1], 1)):
        before = distinct.n_encoded
        assert np.array_equal(distinct.embed(classifier, different[rows], 8), classifier.embed_tiles(different[rows], 8))
        assert distinct.n_encoded - before == n_new  # 0 and 3 are remembered; 1, which came once, is not


def test_a_blank_image_costs_its_marks_alone(classifier: IPSClassifier) -> None:
    """Selection, features and logits are those without the option; two marks and the blank tile are encoded."""
    mark = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    with SparseSlide((320, 256), [(40, 40, mark), (200, 90, mark)]) as slide:
        # the option encodes in smaller batches, so the batch is the same in both
        grid, size = plan_slide(slide, classifier.settings, ReadSettings()).grid, classifier.settings.selection.chunk_size
        assert (len(grid.coords), size) == (80, 16)
        plain, once = (scan_slide(slide, grid, classifier, ReadSettings(same_once=on)) for on in (False, True))
        logits = slide_logits(slide, grid, classifier, ReadSettings(same_once=True))
    assert np.array_equal(plain.logits, once.logits)
    assert np.array_equal(plain.features, once.features)
    assert np.array_equal(plain.selected, once.selected)
    assert np.array_equal(plain.logits, logits.logits)
    assert plain.n_encoded >= 80
    assert once.n_encoded == logits.n_encoded == 4  # the second mark lies on two tiles
