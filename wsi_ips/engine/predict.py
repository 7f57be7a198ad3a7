"""One slide: pixels in, or features that another tool has made; prediction out.

Tissue, grid, one pass, exact selection, read-out. Attention and evidence come from that very pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from wsi_ips.config import ModelSettings, ReadSettings, TileSpec, result_hash
from wsi_ips.engine.colour import range_note
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.featurefiles import FeatureFile
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.scan import Progress, Scan, plan_slide, scan_embeddings, scan_slide
from wsi_ips.errors import ConfigError, ModelError, Note, NoTissueError
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.faithful import measure_faithfulness
from wsi_ips.model.ledger import attention_from_logits
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.tiles.tissue import find_tissue

__all__ = ["Labelled", "PredictJob", "label_features", "label_slide", "predict_slide", "tile_settings"]

_FEATURES = "features file"


class PredictJob(NamedTuple):
    """What is asked of one slide."""

    slide_id: str
    mask_path: str | None = None  # restricts the tiles
    read: ReadSettings = ReadSettings()
    tile: TileSpec | None = None  # other squares than the model's own
    allow_mismatch: bool = False
    with_bag: bool = False  # also the evidence of every tile in the whole bag
    with_faithfulness: bool = True  # also deletion and insertion curves, which take longer than a small slide's pass
    file: Mapping[str, Any] | None = None  # fingerprint of the slide's files, which travels with the result


class Labelled(NamedTuple):
    """A slide's prediction, and the pass it came from: how much was encoded, which must not enter the results."""

    prediction: SlidePrediction
    scan: Scan


def predict_slide(
    slide: Slide, bundle: Bundle, job: PredictJob, progress: Progress | None = None, cache: EmbeddingCache | None = None
) -> SlidePrediction:
    """Label one slide.

    Args:
        slide: open.
        bundle: the model; its classifier may be on any device.
        job: slide id and reading.
        progress: called with (stage, done, total).
        cache: of embeddings; None does without.

    Raises:
        SlideError: the slide cannot be used; `code` says why. NoTissueError: nothing to look at.
        ConfigError: other tiles than the model's without `allow_mismatch`.
        ModelError: numbers that are not finite, or a model that takes no tiles.
    """
    return label_slide(slide, bundle, job, progress, cache).prediction


def label_slide(
    slide: Slide, bundle: Bundle, job: PredictJob, progress: Progress | None = None, cache: EmbeddingCache | None = None,
    tools: PassTools | None = None,
) -> Labelled:  # fmt: skip
    """Label one slide and tell of the pass; see `predict_slide`.

    Args:
        slide, bundle, job, progress, cache: see there.
        tools: what was made ready for this very slide and job.
    """
    tools = tools or PassTools()
    if not bundle.classifier.takes_tiles:
        raise ModelError(
            "this model takes features, not slides: name their files in the manifest's column features_path"
        )
    settings, mismatch = tile_settings(bundle.settings, job.tile, allow_mismatch=job.allow_mismatch)
    plan = tools.plan
    if plan is None:
        with tools.clock.time("mask"):
            plan = plan_slide(slide, settings, job.read, job.mask_path)
    scan = scan_slide(slide, plan.grid, bundle.classifier, job.read, progress, cache, with_bag=job.with_bag, tools=tools)
    notes = (*slide.notes, *mismatch, *plan.notes, *_scan_notes(scan, bundle))
    place = _Place(
        slide.mpp, slide.bounds, slide.levels[0][:2], plan.tissue.outline(), plan.tissue.tissue_mm2,
        tools.decoding_of(slide, plan.grid).reader + (f", decoded at 1/{plan.grid.shrink}" if plan.grid.shrink > 1 else ""),
    )  # fmt: skip
    with tools.clock.time("select"):
        return Labelled(_prediction(scan, place, bundle, settings, job, notes), scan)


def label_features(
    features: FeatureFile, bundle: Bundle, job: PredictJob, slide: Slide | None = None, progress: Progress | None = None
) -> Labelled:
    """Label one slide by embeddings that another tool has made.

    Args:
        features: from `read_feature_file`.
        bundle: a model whose encoder is `features`.
        job: slide id and reading.
        slide: the slide itself, open, to draw on; without it resolution and tissue are unknown (NaN, empty).
        progress: called with (stage, done, total).

    Raises:
        UnreadableSlideError: `E_FEATURES`, vectors of another width than the model's.
        ModelError: numbers that are not finite, or a model that takes tiles.
    """
    if bundle.classifier.takes_tiles:
        raise ModelError("this model takes slides, not features")
    features.check_width(bundle.classifier.width)
    grid = None
    if features.coords is not None:
        unknown = np.full(len(features.coords), np.nan, np.float32)
        extent0 = features.extent0 or (1.0, 1.0)
        grid = TileGrid(features.coords, unknown, extent0, 0, (1, 1), bundle.settings.tile.size_px)
    scan = scan_embeddings(features.embeddings, bundle.classifier, grid, progress, with_bag=job.with_bag)
    found = _prediction(scan, _place_of(slide, bundle.settings), bundle, bundle.settings, job, ())
    return Labelled(replace(found, tile=_tile_of(found)), scan)


def _tile_of(p: SlidePrediction) -> TileSpec:
    """Give the tiles of a file of features the width they have on the slide, where that is known."""
    mpp = p.extent0[0] * p.mpp.x / p.tile.size_px
    return p.tile.replace(mpp=mpp, overlap_px=0) if 0.0 < mpp <= 100.0 else p.tile  # NaN: not known


class _Place(NamedTuple):
    """What is known of the slide beside its tiles."""

    mpp: Mpp
    bounds: Box0
    size0: tuple[int, int]
    outline: TissueOutline
    tissue_mm2: float
    reader: str


def _place_of(slide: Slide | None, settings: ModelSettings) -> _Place:
    """Describe the slide behind a file of features, as far as it can be."""
    nowhere, nan = TissueOutline(np.zeros((1, 1), bool), 0, 0, 1.0, 1.0), float("nan")
    if slide is None:
        return _Place(Mpp(nan, nan, _FEATURES), Box0(0, 0, 0, 0), (0, 0), nowhere, nan, _FEATURES)
    outline, area = nowhere, nan
    with contextlib.suppress(NoTissueError):
        tissue = find_tissue(slide, settings.tissue)
        outline, area = tissue.outline(), tissue.tissue_mm2
    return _Place(slide.mpp, slide.bounds, slide.levels[0][:2], outline, area, _FEATURES)


def _prediction(
    scan: Scan, place: _Place, bundle: Bundle, settings: ModelSettings, job: PredictJob, notes: tuple[Note, ...]
) -> SlidePrediction:
    read_out = bundle.classifier.read_out(scan.features, scan.context)
    attention = attention_from_logits(scan.logits).astype(np.float32)
    faithfulness = None
    if job.with_faithfulness:
        faithfulness = measure_faithfulness(
            bundle.classifier, scan.features, scan.context, attention[scan.selected], read_out.evidence, read_out.outputs
        )
    return SlidePrediction(
        slide_id=job.slide_id, tasks=settings.tasks, tile=settings.tile, coords=scan.grid.coords, extent0=scan.grid.extent0,
        tissue=scan.grid.tissue, logits=scan.logits, attention=attention,
        selected=scan.selected, values=scan.features, evidence=read_out.evidence, outputs=read_out.outputs, mpp=place.mpp,
        bounds=place.bounds, size0=place.size0, outline=place.outline, tissue_mm2=place.tissue_mm2,
        reader=place.reader, model_hash=bundle.hash, settings_hash=result_hash(settings, job.read), n_missing=scan.n_missing,
        n_failed_reads=scan.n_failed, n_reencoded=scan.n_reencoded, notes=notes, context=scan.context, faithfulness=faithfulness,
        bag_evidence=scan.bag_evidence, file=job.file,
    )  # fmt: skip


def tile_settings(
    settings: ModelSettings, tile: TileSpec | None, *, allow_mismatch: bool
) -> tuple[ModelSettings, tuple[Note, ...]]:
    """Replace the model's squares by others, which it was not trained on.

    Raises:
        ConfigError: without `allow_mismatch`, or when the encoder cannot take tiles of that size at all.
    """
    if tile is None or tile == settings.tile:
        return settings, ()
    own = settings.tile
    text = f"tiles of {tile.size_px} px at {tile.mpp} µm/px (overlap {tile.overlap_px}), trained on {own.size_px} px at {own.mpp} µm/px"
    if not allow_mismatch:
        raise ConfigError(f"{text}: use the model's own, or say --allow-mismatch")
    if tile.size_px != own.size_px:
        raise ConfigError(f"{text}: another tile size needs another encoder input; only mpp and overlap can differ")
    return settings.replace(tile=tile.model_dump()), (Note("E_MISMATCH", text),)


def _scan_notes(scan: Scan, bundle: Bundle) -> list[Note]:
    notes = []
    if scan.n_missing:
        notes.append(
            Note("E_MISSING_PIXELS", f"{scan.n_missing} tiles hold pixels that are missing in the file, shown white")
        )
    if scan.n_failed:
        notes.append(Note("E_TILE", f"{scan.n_failed} tiles could not be decoded and were left out"))
    known = {k: (float(v[0]), float(v[1])) for k, v in bundle.extra.get("colour_range", {}).items()}
    outside = range_note(scan.colour, known)
    return notes + ([outside] if outside else [])
