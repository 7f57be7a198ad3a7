"""Which squares of a slide are looked at.

The grid hangs on the top-left corner of the scanned bounds at the exact µm per px asked for. A tile's place is rounded
once, from the corner, so roundings never add up. Only tiles wholly inside the bounds are taken: what is left at the
right and bottom, less than a tile wide, is not looked at. No label and no annotation is known here.

Frames: level-0 px (suffix `0`), px of the level read (`read_px`), tile px (`size_px`). N: tiles.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wsi_ips.config import TileSpec
from wsi_ips.errors import MppError, NoTissueError, UnreadableSlideError
from wsi_ips.geometry import level0_to_level_px, level_for_mpp, shrink_for, tile_px_to_level0
from wsi_ips.slide.reader import Slide, offered_shrinks
from wsi_ips.tiles.focus import measure_focus
from wsi_ips.tiles.tilegrid import TileGrid
from wsi_ips.tiles.tissue import TissueMask

__all__ = ["TileGrid", "fits_inside", "plan_tiles", "tiles_at"]

_MAX_UPSAMPLING = 1.1
_CANDIDATES = 250_000  # judged at a time
_BAND_PX = 16_384  # of the level: two rows of file tiles of 512 px are 50 MB
_ABSURD_CANDIDATES = 1000  # times max_tiles


def plan_tiles(
    slide: Slide, tissue: TissueMask, tile: TileSpec, *, min_fraction: float, min_focus: float = 0.0, max_tiles: int,
    shift: float = 0.0,
) -> TileGrid:  # fmt: skip
    """Lay the grid and keep the tiles with enough tissue.

    Tiles are read from the coarsest level that is at least as fine as `tile.mpp`. A slide that names its own tiles
    keeps exactly those, in its order, all tissue.

    Args:
        slide: open; its pixels are read only to judge focus.
        tissue: its mask.
        tile: size, resolution, overlap.
        min_fraction: share of a tile that must be tissue; 0 keeps glass too.
        min_focus: least focus score (see `focus.py`); 0 keeps all and reads nothing.
        max_tiles: more are refused.
        shift: by how much of a tile the grid begins further right and down; nothing where the slide names its tiles.

    Raises:
        MppError: `E_UPSAMPLE`, the slide is more than 1.1 times coarser than the tiles.
        NoTissueError: `E_NO_TILES`, no tile fits, or none has enough tissue or focus.
        UnreadableSlideError: `E_ABSURD`, more than `max_tiles`.
    """
    coarsest = max(slide.mpp.x, slide.mpp.y)
    if coarsest > _MAX_UPSAMPLING * tile.mpp:
        raise MppError(
            "E_UPSAMPLE",
            f"{slide.name}: level 0 has {coarsest:g} µm/px, tiles need {tile.mpp:g}; take a finer scan or a "
            "model made for coarser data",
        )
    grid = _empty_grid(slide, tile)
    if slide.tile_corners is not None:
        coords = np.array(slide.tile_corners, dtype=np.int64).reshape(-1, 2)
        _refuse_absurd(slide, len(coords), max_tiles)
        fraction = np.ones(len(coords), np.float32)
    else:
        coords, fraction = _tiles_with_tissue(slide, tissue, grid, _corners0(slide, tile, grid, shift), min_fraction, max_tiles)
    if len(coords) and min_focus > 0:
        sharp = measure_focus(slide, coords, grid.extent0) >= min_focus
        coords, fraction = coords[sharp], fraction[sharp]
    if not len(coords):
        raise NoTissueError(
            "E_NO_TILES",
            f"{slide.name}: no tile of {grid.extent0[0]:g} x {grid.extent0[1]:g} level-0 px inside the scan has "
            f"{100 * min_fraction:g} % tissue and a focus of {min_focus:g} ({tissue.tissue_mm2:.3g} mm² tissue)",
        )
    return replace(grid, coords=coords, tissue=fraction)


def _empty_grid(slide: Slide, tile: TileSpec) -> TileGrid:
    mpp, size_px = slide.mpp, tile.size_px
    level = level_for_mpp(max(mpp.x, mpp.y), tuple(one.downsample for one in slide.levels), tile.mpp)
    downsample = slide.levels[level].downsample
    extent0 = (tile_px_to_level0(size_px, tile.mpp, mpp.x), tile_px_to_level0(size_px, tile.mpp, mpp.y))
    shrink = shrink_for(min(extent0) / downsample / size_px, offered_shrinks(slide, level))
    read_px = (shrink * level0_to_level_px(extent0[0], downsample * shrink),
               shrink * level0_to_level_px(extent0[1], downsample * shrink))  # fmt: skip
    return TileGrid(np.empty((0, 2), np.int64), np.empty(0, np.float32), extent0, level, read_px, size_px, shrink)


def _tiles_with_tissue(
    slide: Slide, tissue: TissueMask, grid: TileGrid, corners0: tuple[np.ndarray, np.ndarray], min_fraction: float,
    max_tiles: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Judge the grid in batches, so that memory follows the tiles kept, not the slide.

    Wide grids are laid in bands, one beside the other, each row by row: what neighbours below will need of a file's tiles
    then fits a bounded cache, whatever the width of the slide.
    """
    xs0, ys0 = corners0
    if not len(xs0) or not len(ys0):
        raise NoTissueError(
            "E_NO_TILES",
            f"{slide.name}: the scan of {slide.bounds.width0} x {slide.bounds.height0} level-0 px is smaller than "
            f"one tile of {grid.extent0[0]:g} x {grid.extent0[1]:g}",
        )
    n_candidates = len(xs0) * len(ys0)
    _refuse_absurd(slide, n_candidates if min_fraction <= 0 else n_candidates // _ABSURD_CANDIDATES, max_tiles)
    kept, fractions, n_kept = [], [], 0
    for some_xs0 in _bands(xs0, slide.levels[grid.level].downsample):
        for some_ys0 in np.array_split(ys0, -(-len(some_xs0) * len(ys0) // _CANDIDATES)):
            coords = np.stack(np.meshgrid(some_xs0, some_ys0), axis=-1).reshape(-1, 2)  # row by row
            fraction = tissue.fraction(coords, grid.extent0)
            enough = fraction >= min_fraction
            n_kept += int(np.count_nonzero(enough))
            _refuse_absurd(slide, n_kept, max_tiles)
            kept.append(coords[enough])
            fractions.append(fraction[enough])
    return np.concatenate(kept), np.concatenate(fractions)


def _bands(xs0: np.ndarray, downsample: float) -> list[np.ndarray]:
    """Part columns (n,) into bands of one width, about `_BAND_PX` of the level or less."""
    n_bands = max(1, int(np.ceil((xs0[-1] - xs0[0]) / downsample / _BAND_PX)))
    return np.array_split(xs0, n_bands)


def tiles_at(slide: Slide, tile: TileSpec, coords: np.ndarray, tissue: np.ndarray | None = None) -> TileGrid:
    """Make a grid of tiles at given places, read like any other; nothing is judged.

    Args:
        slide: open.
        tile: size and resolution.
        coords: (N, 2) level-0 px of top-left corners.
        tissue: (N,) share of each that is tissue; not known (NaN) by default.
    """
    grid = _empty_grid(slide, tile)
    share = np.full(len(coords), np.nan, np.float32) if tissue is None else np.asarray(tissue, np.float32)
    return replace(grid, coords=np.asarray(coords, np.int64).reshape(-1, 2), tissue=share)


def fits_inside(slide: Slide, grid: TileGrid) -> np.ndarray:
    """Tell which tiles (N,) bool lie wholly inside what was scanned."""
    bounds, downsample = slide.bounds, slide.levels[grid.level].downsample
    far0 = grid.coords + (np.array(grid.read_px) - 0.5) * downsample
    is_inside = (grid.coords >= (bounds.x0, bounds.y0)) & (
        far0 <= (bounds.x0 + bounds.width0, bounds.y0 + bounds.height0)
    )
    return np.asarray(is_inside.all(axis=1))


def _corners0(slide: Slide, tile: TileSpec, grid: TileGrid, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Level-0 px of the columns (nx,) and rows (ny,) of the grid, int64."""
    bounds, downsample = slide.bounds, slide.levels[grid.level].downsample
    corners = []
    for axis, start0, length0 in ((0, bounds.x0, bounds.width0), (1, bounds.y0, bounds.height0)):
        extent0 = grid.extent0[axis]
        stride0 = extent0 * (tile.size_px - tile.overlap_px) / tile.size_px
        # a hair of slack: 3 * 149.333.. is 448
        room0 = length0 - shift * extent0 - extent0
        n_tiles = int(np.floor(room0 / stride0 + 1e-6)) + 1 if room0 >= -1e-6 else 0
        places0 = np.rint(start0 + shift * extent0 + np.arange(n_tiles) * stride0).astype(np.int64)
        if grid.shrink > 1:
            places0 = _on_whole_px(places0, downsample * grid.shrink, start0, start0 + length0 - grid.read_px[axis] * downsample)
        # the centre of the last px read must have been scanned, or a white seam would show
        inside = places0 + (grid.read_px[axis] - 0.5) * downsample <= start0 + length0
        corners.append(places0[inside])
    return corners[0], corners[1]


def _on_whole_px(places0: np.ndarray, step0: float, first0: float, last0: float) -> np.ndarray:
    """Move level-0 places (n,) to the nearest whole px of what the decoder shrinks to, inside first0 to last0."""
    steps = np.rint(places0 / step0)
    steps = np.where(np.rint(steps * step0) < first0, steps + 1, steps)
    steps = np.where(np.rint(steps * step0) > last0, steps - 1, steps)
    return np.rint(np.maximum(steps, np.ceil(first0 / step0)) * step0).astype(np.int64)


def _refuse_absurd(slide: Slide, n_tiles: int, max_tiles: int) -> None:
    if n_tiles > max_tiles:
        raise UnreadableSlideError(
            "E_ABSURD",
            f"{slide.name}: more than {max_tiles} tiles; check the µm per px of slide and tiles, or raise max_tiles",
        )
