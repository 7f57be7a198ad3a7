"""How much a label and its map hang on what should not matter: where the grid begins, and the stain.

The slide is predicted again under each change and compared with the run. Maps are brought to one frame, squares of
half a tile, and compared by rank where both have tiles.

Frames: level-0 px (suffix `0`). Shapes: N tiles, T tasks, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from scipy.stats import spearmanr

from wsi_ips.config import ReadSettings
from wsi_ips.engine.refine import check_belongs, tissue_of
from wsi_ips.engine.scan import Scan, scan_slide
from wsi_ips.errors import ConfigError
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.ledger import attention_from_logits
from wsi_ips.refined import Change, Stability, TaskChange
from wsi_ips.report.heatmap import coverage, raster_of_tiles, raster_size
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Region, Slide
from wsi_ips.tasks import TaskSettings, call_value, called_class, probabilities, split_outputs
from wsi_ips.tiles.grid import plan_tiles, tiles_at
from wsi_ips.tiles.stain import jitter_stain

__all__ = ["SHIFT", "STAIN", "StainedSlide", "compare", "stability"]

SHIFT = 0.5  # tile widths
STAIN = 0.1  # largest relative change of a stain's density; training draws up to 0.03 by default
_SEED = 0
_CONSTANT = 1e-4  # relative spread below which a map is constant: rounding, not preference

Progress = Callable[[str, int, int], None]


def stability(
    slide: Slide, bundle: Bundle, prediction: SlidePrediction, *, stain: bool, read: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Stability:  # fmt: skip
    """Predict again on a grid that begins half a tile further right and down, and, if asked, under another stain.

    Args:
        slide: open; the one that was classified.
        bundle: the run's model.
        prediction: from the slide's ledger; its tissue is looked at again.
        stain: also scale and shift the stains, by one draw of a fixed seed, on the run's own tiles.
        read: readers, and how many tiles may fail.
        progress: called with ("tiles", done, N).

    Raises:
        ModelError, ConfigError: another model or slide than the run's; a slide that names its own tiles cannot be
            cut in another place.
        NoTissueError: no tile of the shifted grid has enough tissue.
    """
    p, read = prediction, read or ReadSettings()
    check_belongs(slide, bundle, p)
    if slide.tile_corners is not None:
        raise ConfigError(f"{p.slide_id}: names its own tiles, so there is no grid to shift")
    if bundle.settings.attention.positions is not None:
        raise ConfigError(f"{p.slide_id}: the model knows tiles by their row in one grid (attention.positions); a shifted "
                          "grid has other rows")  # fmt: skip
    tissue = bundle.settings.tissue
    shifted = plan_tiles(slide, tissue_of(p), p.tile, min_fraction=tissue.min_tile_fraction, min_focus=tissue.min_focus,
                         max_tiles=read.max_tiles, shift=SHIFT)  # fmt: skip
    changes = [compare(p, bundle, scan_slide(slide, shifted, bundle.classifier, read, progress), "shift", SHIFT)]
    if stain:
        grid = tiles_at(slide, p.tile, p.coords, p.tissue)
        scan = scan_slide(cast("Slide", StainedSlide(slide, STAIN, _SEED)), grid, bundle.classifier, read, progress)
        changes.append(compare(p, bundle, scan, "stain", STAIN))
    return Stability(p.slide_id, p.model_hash, tuple(changes))


def compare(p: SlidePrediction, bundle: Bundle, scan: Scan, kind: str, strength: float) -> Change:
    """Hold another pass over the same slide against the run's."""
    outputs = bundle.classifier.read_out(scan.features, scan.context).outputs
    attention = attention_from_logits(scan.logits)
    tasks = []
    for t, (task, before, after) in enumerate(
        zip(p.tasks, split_outputs(p.outputs, p.tasks), split_outputs(outputs, p.tasks), strict=True)
    ):
        said = _said(task, before)
        values = [float(call_value(z, task, before)) for z in (before, after)]
        calls = [called_class(probabilities(z, task), z, task) for z in (before, after)]
        correlation = _agreement(p, p.attention[:, t], scan, attention[:, t])
        tasks.append(TaskChange(task.name, said, values[0], values[1], calls[0], calls[1], correlation))
    overlap = _overlap(p, p.coords[p.selected], scan.grid.coords[scan.selected])
    return Change(kind, strength, tuple(tasks), overlap, len(scan.grid.coords))


def _said(task: TaskSettings, outputs: np.ndarray) -> str:
    """Name what `call_value` is the value of."""
    if task.kind in ("binary", "multiclass", "multilabel"):
        probs = probabilities(outputs, task)
        called = task.classes[int(np.argmax(probs))] if task.kind == "multilabel" else called_class(probs, outputs, task)
        return f"probability of {called}"
    return {"ordinal": "expected class number of", "survival": "risk of"}.get(task.kind, "predicted") + f" {task.name}"


def _agreement(p: SlidePrediction, before: np.ndarray, scan: Scan, after: np.ndarray) -> float | None:
    """Rank correlation of two maps over the px that both cover; 1 where both are constant."""
    downsample = p.extent0[0] / 2
    maps = [raster_of_tiles(values, coords, p.extent0, p.bounds, downsample)
            for values, coords in ((before, p.coords), (after, scan.grid.coords))]  # fmt: skip
    both = np.isfinite(maps[0]) & np.isfinite(maps[1])
    x, y = (m[both].astype(np.float64) for m in maps)
    constant = [not len(v) or float(np.ptp(v)) <= _CONSTANT * float(np.abs(v).max()) for v in (x, y)]
    if any(constant):
        return 1.0 if all(constant) and len(x) else None
    return float(spearmanr(x, y).statistic)


def _overlap(p: SlidePrediction, before: np.ndarray, after: np.ndarray) -> float:
    """Intersection over union of the areas under two sets of tiles, on squares of a quarter tile."""
    downsample = p.extent0[0] / 4
    height, width = raster_size(p.bounds, downsample)
    areas = []
    for coords in (before, after):
        across = coverage((coords[:, 0] - p.bounds.x0) / downsample, p.extent0[0] / downsample, width)
        down = coverage((coords[:, 1] - p.bounds.y0) / downsample, p.extent0[1] / downsample, height)
        areas.append(np.minimum((down.T @ across).toarray(), 1.0))
    union = float(np.maximum(*areas).sum())
    return float(np.minimum(*areas).sum()) / union if union else 1.0


class StainedSlide:
    """A slide under another stain: every px read goes through one HED jitter; slides that are not RGB stay.

    Args:
        slide: open; everything but its pixels is passed on.
        strength: largest relative change of a stain's density.
        seed: of the one draw.
    """

    path = None  # so that no cache takes what it reads for the slide's own

    def __init__(self, slide: Slide, strength: float, seed: int) -> None:
        self._slide, self._strength = slide, strength
        self._draws = np.random.default_rng(seed).random(6)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slide, name)

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """See `Slide`."""
        region = self._slide.read_region(x0, y0, level, width_px, height_px)
        if region.pixels.shape[2] != 3:
            return region
        return region._replace(pixels=jitter_stain(np.ascontiguousarray(region.pixels), self._strength, self._draws))
