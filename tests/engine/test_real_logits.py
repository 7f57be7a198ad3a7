"""Real slides through mask, grid and an untrained model: the same tissue in three formats gives the same answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_ips.config import TissueSettings
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.model.bundle import load_bundle
from wsi_ips.slide.reader import open_slide
from wsi_ips.tiles.tissue import find_tissue

# CMU-1-Small-Region; the TIFF's own resolution tag is wrong by 100 and refused
TRIO = {
    "svs": ("aperio/CMU-1-Small-Region.svs", None),
    "dicom": ("dicom-cmu", None),
    "tiff": ("tiff/CMU-1-Small-Region.jpeg.tiff", 0.499),
}


@pytest.fixture(scope="module")
def trio(shared_data: Path) -> dict[str, tuple[str, float | None]]:
    return {kind: (str(shared_data / "slides" / name), mpp) for kind, (name, mpp) in TRIO.items()}


@pytest.mark.parametrize("other", ["dicom", "tiff"])
def test_masks_of_one_tissue_in_three_formats_agree(trio: dict[str, tuple[str, float | None]], other: str) -> None:
    """Intersection over union of at least 0.98 with the SVS."""
    masks = {}
    for kind in ("svs", other):
        with open_slide(*trio[kind]) as slide:
            masks[kind] = find_tissue(slide, TissueSettings()).mask
    a, b = masks["svs"], masks[other]
    assert a.shape == b.shape
    assert (a & b).sum() / (a | b).sum() >= 0.98


def test_logits_of_one_tissue_in_three_formats_agree(
    trio: dict[str, tuple[str, float | None]], tiny_bundle: Path
) -> None:
    """Recompressed pixels move the label's logit by less than 0.2."""
    bundle = load_bundle(tiny_bundle)
    logits = {}
    for kind, place in trio.items():
        with open_slide(*place) as slide:
            logits[kind] = predict_slide(slide, bundle, PredictJob(kind)).outputs
    assert np.ptp([z[0] for z in logits.values()]) < 0.2
