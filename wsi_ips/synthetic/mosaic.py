"""Slides laid out of labelled tiles, so that sets of patches go the way of slides: file, grid, bag, attention.

The tiles stand in rows on a white ground, beside each other and in the order given; a mask file says which places hold
one. A grid of the same tile size over the whole scan, restricted to the mask, is then exactly the laid tiles in their
order (`MosaicPlan.settings`), and what is known of a tile joins what a slide gives back by its corner.

Frame: level-0 px. n: tiles, S: their side.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely.geometry import MultiPolygon, box, mapping

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.errors import ConfigError
from wsi_ips.synthetic.pyramid import PyramidPlan, array_source, write_pyramid

__all__ = ["MosaicPlan", "make_mosaic"]

_WHITE = 255
_SMALLEST_PX = 64  # no level has a shorter side, but level 0
_MAX_LEVELS = 4
_VIEW_PX_A_TILE = 4


@dataclass(frozen=True)
class MosaicPlan:
    """Where the tiles lie."""

    coords: np.ndarray  # (n, 2) int64, x0 and y0 of the corner of each tile, in the order given
    tile_px: int
    mpp: float
    columns: int  # places a row
    rows: int
    width: int  # of the slide, level-0 px
    height: int

    @property
    def settings(self) -> tuple[TileSpec, TissueSettings]:
        """Tiles and tissue that, with the mask, give back the laid tiles and nothing else, in order."""
        # a view px never straddles much of a tile, so the mask's edge cannot carry a tile over the half
        view_mpp = min(64.0, max(0.51, self.tile_px * self.mpp / _VIEW_PX_A_TILE))
        tissue = TissueSettings(method="whole", view_mpp=view_mpp, min_tile_fraction=0.5)
        return TileSpec(size_px=self.tile_px, mpp=self.mpp), tissue


def make_mosaic(
    path: str | os.PathLike[str],
    tiles: Sequence[np.ndarray],
    *,
    tile_px: int,
    mpp: float,
    columns: int | None = None,
    mask_path: str | os.PathLike[str] | None = None,
    quality: int | None = None,
    spare_px: int = 0,
) -> MosaicPlan:
    """Lay tiles on a slide, row by row from the top left.

    Args:
        path: the slide, a pyramidal tiled TIFF.
        tiles: n arrays (S, S, 3) uint8 RGB.
        tile_px: S.
        mpp: µm per px of the tiles.
        columns: tiles a row; by default about a third more than rows. The slide is never square: where it would be,
            it gets one more column, left white.
        mask_path: GeoJSON to write, with the places that hold a tile; needed where places are left over.
        quality: JPEG quality; None keeps every px exactly.
        spare_px: white px right of and below the last places.

    Raises:
        ConfigError: no tile, a tile of another shape or type, or numbers that make no slide.
    """
    _check(tiles, tile_px, columns, spare_px)
    n = len(tiles)
    across = columns or math.ceil(math.sqrt(4 * n / 3))
    rows = math.ceil(n / across)
    row, column = np.divmod(np.arange(n), across)
    coords = np.stack([column, row], axis=1) * tile_px
    width = (across + (across == rows)) * tile_px + spare_px
    plan = MosaicPlan(coords, tile_px, mpp, across, rows, width, rows * tile_px + spare_px)
    pixels = np.full((plan.height, plan.width, 3), _WHITE, np.uint8)
    for tile, (x0, y0) in zip(tiles, coords, strict=True):
        pixels[y0 : y0 + tile_px, x0 : x0 + tile_px] = tile
    levels = 1
    while levels < _MAX_LEVELS and min(plan.width, plan.height) >> levels >= _SMALLEST_PX:
        levels += 1
    pyramid = PyramidPlan(plan.width, plan.height, n_levels=levels, quality=quality)
    write_pyramid(path, array_source(pixels), pyramid, mpp=mpp)
    if mask_path is not None:
        _write_mask(Path(mask_path), plan)
    return plan


def _check(tiles: Sequence[np.ndarray], tile_px: int, columns: int | None, spare_px: int) -> None:
    if not len(tiles):
        raise ConfigError("mosaic: no tiles; give at least one")
    wrong = next((i for i, t in enumerate(tiles) if t.shape != (tile_px, tile_px, 3) or t.dtype != np.uint8), None)
    if wrong is not None:
        found = tiles[wrong]
        raise ConfigError(
            f"mosaic: tile {wrong} is {found.dtype} {found.shape}, expected uint8 ({tile_px}, {tile_px}, 3); "
            "cut or leave out tiles of other sizes"
        )
    if (columns is not None and columns < 1) or not 0 <= spare_px < tile_px:
        raise ConfigError(
            f"mosaic: columns {columns}, spare_px {spare_px}; columns must be at least 1 and spare_px from 0 to "
            f"{tile_px - 1}, below a tile"
        )


def _write_mask(path: Path, plan: MosaicPlan) -> None:
    """Write the laid places as one annotation: whole rows as one rectangle, the last row as another."""
    full = int(plan.coords[:, 0].max()) + plan.tile_px
    last_y0 = int(plan.coords[-1, 1])
    last_x1 = int(plan.coords[-1, 0]) + plan.tile_px
    boxes = [box(0, last_y0, last_x1, last_y0 + plan.tile_px)]
    if last_y0:
        boxes.insert(0, box(0, 0, full, last_y0))
    feature = {
        "type": "Feature",
        "geometry": mapping(MultiPolygon(boxes)),
        "properties": {"objectType": "annotation", "name": "laid tiles"},
    }
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    path.write_text(text + "\n", encoding="utf-8")
