"""One slide: pixels in, prediction out.

Tissue, grid, one pass, exact selection, read-out. Attention and evidence come from that very pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wsi_ips.config import ModelSettings, ReadSettings, TileSpec, settings_hash
from wsi_ips.engine.colour import range_note
from wsi_ips.engine.scan import Progress, Scan, plan_slide, scan_slide
from wsi_ips.errors import ConfigError, Note
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.ledger import attention_from_logits
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Slide

__all__ = ["PredictJob", "predict_slide", "result_hash", "tile_settings"]


class PredictJob(NamedTuple):
    """What is asked of one slide."""

    slide_id: str
    mask_path: str | None = None  # restricts the tiles
    read: ReadSettings = ReadSettings()
    tile: TileSpec | None = None  # other squares than the model's own
    allow_mismatch: bool = False


def predict_slide(slide: Slide, bundle: Bundle, job: PredictJob, progress: Progress | None = None) -> SlidePrediction:
    """Label one slide.

    Args:
        slide: open.
        bundle: the model; its classifier may be on any device.
        job: slide id and reading.
        progress: called with (stage, done, total).

    Raises:
        SlideError: the slide cannot be used; `code` says why. NoTissueError: nothing to look at.
        ConfigError: other tiles than the model's without `allow_mismatch`.
        ModelError: numbers that are not finite.
    """
    settings, mismatch = tile_settings(bundle.settings, job.tile, allow_mismatch=job.allow_mismatch)
    plan = plan_slide(slide, settings, job.read, job.mask_path)
    scan = scan_slide(slide, plan.grid, bundle.classifier, job.read, progress)
    read_out = bundle.classifier.read_out(scan.features)
    notes = (*slide.notes, *mismatch, *plan.notes, *_scan_notes(scan, bundle))
    width0, height0, _ = slide.levels[0]
    return SlidePrediction(
        slide_id=job.slide_id, tasks=settings.tasks, tile=settings.tile, coords=scan.grid.coords, extent0=scan.grid.extent0,
        tissue=scan.grid.tissue, logits=scan.logits, attention=attention_from_logits(scan.logits).astype(np.float32),
        selected=scan.selected, values=scan.features, evidence=read_out.evidence, outputs=read_out.outputs, mpp=slide.mpp,
        bounds=slide.bounds, size0=(width0, height0), outline=plan.tissue.outline(), tissue_mm2=plan.tissue.tissue_mm2,
        reader=slide.reader, model_hash=bundle.hash, settings_hash=result_hash(settings, job.read), n_missing=scan.n_missing,
        n_failed_reads=scan.n_failed, n_reencoded=scan.n_reencoded, notes=notes,
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


def result_hash(settings: ModelSettings, read: ReadSettings) -> str:
    """Hash the settings that decide a result; how many readers there are is none of them."""
    return settings_hash(settings, ReadSettings(max_bad_tiles=read.max_bad_tiles, max_tiles=read.max_tiles))


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
