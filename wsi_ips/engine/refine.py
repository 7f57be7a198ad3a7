"""Finer maps of a finished slide, on demand: the only part that encodes after a run.

A fine map covers the regions that the run ranked highest, with tiles that overlap; every fine tile is weighed against
the run's whole bag, so its attention x N stands on the scale of the run's own map. Tiles of the run keep the ledger's
numbers; some are encoded again, to prove that model and slide are those of the run.

Frames: level-0 px (suffix `0`). Shapes: N tiles of the run, F fine tiles, T tasks, H heads, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from wsi_ips.config import ReadSettings
from wsi_ips.engine.encoding import read_tiles
from wsi_ips.errors import ConfigError, ModelError, Note
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.ledger import log_normalisers, scores_from_logits, top_rows
from wsi_ips.model.saliency import within_tile_maps
from wsi_ips.refined import Refined, TileCams
from wsi_ips.report.readout import evidence_for_call
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.focus import measure_focus
from wsi_ips.tiles.grid import TileGrid, fits_inside, tiles_at
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import TissueMask

__all__ = ["RefineOptions", "check_belongs", "refine_slide", "tissue_of"]

Progress = Callable[[str, int, int], None]
_N_CHECKED = 8  # tiles of the run that are encoded again
_TOLERANCE = 0.25  # of a logit: other hardware computes in other last bits; another model or slide misses by more
_NOTED = 0.01  # a weight that is off by one per cent
_SAME0 = 1.0  # level-0 px: places closer than this are one tile, rounded twice


@dataclass(frozen=True)
class RefineOptions:
    """How fine, and how much of it."""

    stride: float = 0.5  # from tile to tile, in tile widths; 0.125 to 1
    n_regions: int = 64  # tiles of the run, ranked by the selection's score, around which the fine grid is laid
    n_cams: int = 16  # selected tiles that are looked into
    read: ReadSettings = ReadSettings()  # noqa: RUF009 (frozen)


def refine_slide(
    slide: Slide, bundle: Bundle, prediction: SlidePrediction, options: RefineOptions | None = None,
    progress: Progress | None = None,
) -> Refined:  # fmt: skip
    """Lay a fine attention map over a slide's top regions, and look into its top tiles.

    Args:
        slide: open; the one that was classified.
        bundle: the run's model; its classifier may be on any device.
        prediction: from the slide's ledger.
        options: how.
        progress: called with ("refine", done, F).

    Raises:
        ConfigError: a stride out of range, another slide.
        ModelError: another model than the run's, or one that takes features.
        TileReadError: a tile of the run cannot be read any more (`E_TILE`).
    """
    options = options or RefineOptions()
    if not 0.125 <= options.stride <= 1.0:
        raise ConfigError(f"--stride {options.stride:g}: expected 0.125 to 1, in tile widths; 0.5 makes tiles overlap by half")
    p = prediction
    check_belongs(slide, bundle, p)
    error = _largest_error(slide, bundle, p, options.read)
    grid, run_row = _fine_grid(slide, bundle, p, options)
    logits = np.zeros((len(grid.coords), *p.logits.shape[1:]), np.float32)
    known = run_row >= 0
    logits[known] = p.logits[run_row[known]]
    failed = _encode(slide, bundle, grid, np.flatnonzero(~known), logits, options.read, progress)
    notes = []
    if failed.any():
        notes.append(Note("E_TILE", f"{int(failed.sum())} fine tiles could not be decoded and were left out"))
    if error > _NOTED:
        notes.append(Note("E_OTHER_HARDWARE", f"tiles of the run, encoded again, differ by up to {error:.3g} in their logit; "
                                              "fine and coarse map agree as well as that"))  # fmt: skip
    cams, why_not = _look_into(slide, bundle, p, options)
    notes += [Note("E_NO_CAM", why_not)] if why_not else []
    keep = ~failed
    attention = np.exp(logits[keep] - log_normalisers(p.logits)).mean(axis=2)
    attention[run_row[keep] >= 0] = p.attention[run_row[keep & known]]
    n_encoded = int((~known).sum()) + min(_N_CHECKED, len(p.selected)) + (len(cams.rows) if cams else 0)
    return Refined(p.slide_id, p.model_hash, options.stride, p.extent0, p.n_tiles, grid.coords[keep], run_row[keep], logits[keep],
                   attention.astype(np.float32), error, n_encoded, cams, tuple(notes))  # fmt: skip


def check_belongs(slide: Slide, bundle: Bundle, p: SlidePrediction) -> None:
    """Refuse a model or a slide that the prediction was not made with.

    Raises:
        ModelError: another bundle, or one that takes features.
        ConfigError: another slide.
    """
    if not bundle.classifier.takes_tiles:
        raise ModelError("this model takes features, not tiles: there are no finer maps and no other grid to try")
    if bundle.hash != p.model_hash:
        raise ModelError(
            f"{p.slide_id} was classified by model {p.model_hash[:12]}, --model is {bundle.hash[:12]}; give the run's own "
            "bundle, or classify again with this one"
        )
    size0 = tuple(slide.levels[0][:2])
    same_mpp = np.allclose([slide.mpp.x, slide.mpp.y], [p.mpp.x, p.mpp.y], rtol=1e-6)
    if size0 != tuple(p.size0) or tuple(slide.bounds) != tuple(p.bounds) or not same_mpp:
        raise ConfigError(
            f"{slide.name} has {size0[0]} x {size0[1]} px at {slide.mpp.x:g} µm/px; the slide that was classified as {p.slide_id} has "
            f"{p.size0[0]} x {p.size0[1]} px at {p.mpp.x:g}; give the same file, or classify this one"
        )


def tissue_of(p: SlidePrediction) -> TissueMask:
    """The tissue a run looked at, from its ledger."""
    o = p.outline
    return TissueMask(o.mask, o.x0, o.y0, o.downsample_x, o.downsample_y, p.tissue_mm2)


def _largest_error(slide: Slide, bundle: Bundle, p: SlidePrediction, read: ReadSettings) -> float:
    """Encode some tiles of the run again and compare their logits with the ledger's.

    Raises:
        ModelError: they differ by more than another machine explains.
    """
    rows = p.selected[:_N_CHECKED]
    size = bundle.settings.selection.chunk_size
    tiles = read_tiles(slide, tiles_at(slide, p.tile, p.coords), rows, read)
    found = bundle.classifier.scan(bundle.classifier.embed_tiles(tiles, size), size, rows).logits
    errors = np.abs(found - p.logits[rows]).max(axis=(1, 2))
    worst = int(np.argmax(errors))
    if not errors[worst] <= _TOLERANCE:
        x0, y0 = p.coords[rows[worst]]
        raise ModelError(
            f"{p.slide_id}: the tile at level-0 px ({x0}, {y0}) now has attention logits up to {errors[worst]:.3g} from the ledger's; "
            "the slide's pixels or the way they are read have changed: classify it again"
        )
    return float(errors[worst])


def _fine_grid(
    slide: Slide, bundle: Bundle, p: SlidePrediction, options: RefineOptions
) -> tuple[TileGrid, np.ndarray]:
    """Lay fine tiles around the top ones: the grid, and (F,) rows of the run's own among them, else -1.

    The fine lattice hangs on the corner of the bounds as the run's does. What the run would not have looked at (glass,
    blur, beyond the scan) is not looked at here; where the slide names its tiles there is nothing between them.
    """
    reach = np.array(p.extent0)
    top = p.coords[top_rows(scores_from_logits(p.logits), options.n_regions)]
    # both axes in units of a tile, so that "within one tile" is a square
    near, slack = cKDTree(top / reach), _SAME0 / reach.min()
    own = np.flatnonzero(near.query(p.coords / reach, p=np.inf)[0] <= 1.0 + slack)
    fine = np.empty((0, 2), np.int64)
    if slide.tile_corners is None:
        fine = _lattice(top, reach, options.stride * reach, (slide.bounds.x0, slide.bounds.y0))
        apart = cKDTree(p.coords).query(fine, p=np.inf)[0] > _SAME0
        tissue = bundle.settings.tissue
        enough = tissue_of(p).fraction(fine, p.extent0) >= tissue.min_tile_fraction
        fine = fine[apart & enough & fits_inside(slide, tiles_at(slide, p.tile, fine))]
        if tissue.min_focus > 0 and len(fine):
            fine = fine[measure_focus(slide, fine, p.extent0) >= tissue.min_focus]
    coords = np.concatenate([p.coords[own], fine])
    run_row = np.concatenate([own, np.full(len(fine), -1)])
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    return tiles_at(slide, p.tile, coords[order]), run_row[order]


def _lattice(top: np.ndarray, reach: np.ndarray, step0: np.ndarray, origin0: tuple[int, int]) -> np.ndarray:
    """Corners (n, 2) int64 of the lattice that lie within one tile of a top tile's corner."""
    slack = _SAME0 / step0
    first = np.ceil((top - reach - origin0) / step0 - slack).astype(np.int64)
    n_a_side = int(np.ceil((2 * reach / step0 + 2 * slack).max())) + 1
    offsets = np.stack(np.meshgrid(np.arange(n_a_side), np.arange(n_a_side)), axis=-1).reshape(-1, 2)
    numbers = first[:, None] + offsets  # (regions, n, 2)
    within = (np.abs(origin0 + numbers * step0 - top[:, None]) <= reach + _SAME0).all(axis=2)
    return np.rint(origin0 + np.unique(numbers[within], axis=0) * step0).astype(np.int64)


def _encode(
    slide: Slide, bundle: Bundle, grid: TileGrid, rows: np.ndarray, logits: np.ndarray, read: ReadSettings,
    progress: Progress | None,
) -> np.ndarray:  # fmt: skip
    """Fill the logits (F, T, H) of some rows, in place: which tiles (F,) could not be read."""
    size, failed, done = bundle.settings.selection.chunk_size, np.zeros(len(grid.coords), bool), 0
    for chunk in stream_tiles(slide, grid, rows=rows, chunk_size=size, n_readers=read.readers, read_ahead=read.chunks_ahead):
        found = bundle.classifier.scan(bundle.classifier.embed_tiles(chunk.pixels, size), size)
        logits[chunk.rows], failed[chunk.rows] = found.logits, chunk.failed
        done += len(chunk.rows)
        if progress is not None:
            progress("refine", done, len(rows))
    return failed


def _look_into(
    slide: Slide, bundle: Bundle, p: SlidePrediction, options: RefineOptions
) -> tuple[TileCams | None, str]:
    """Maps within the top selected tiles, or why there are none."""
    rows = p.selected[: options.n_cams]
    if not len(rows):
        return None, ""
    n_outputs = len(p.outputs)
    found = [evidence_for_call(p, t, np.eye(n_outputs)) for t in range(len(p.tasks))]
    directions = np.zeros((len(p.tasks), n_outputs))
    for t, (weights, _) in enumerate(found):
        directions[t] = weights
    tiles = read_tiles(slide, tiles_at(slide, p.tile, p.coords), rows, options.read)
    try:
        maps, cells = within_tile_maps(bundle.classifier, tiles, p.values, directions, p.context)
    except ModelError as error:
        return None, str(error)
    return TileCams(rows, maps, cells, tuple(said for _, said in found)), ""
