"""Maps as tiles of the viewer, and the legend that goes with them: drawn when asked for, from the ledger's numbers.

A map tile covers exactly the level-0 px of the slide tile of the same name, at any zoom; see `pyramid`. Colours, scales
and titles are those of the pictures (`maps`, `heatmap`); the viewer may change the colour map, hide what lies below a
threshold, and leave out the grey of tiles that were not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast, get_args

import cv2
import numpy as np
from skimage import measure

from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0
from wsi_ips.report.heatmap import Scale
from wsi_ips.report.maps import NOT_USED_RGBA, TileMap, map_raster, map_rgba
from wsi_ips.results import SlidePrediction, TissueOutline

__all__ = ["COLOURMAPS", "SIGNED_COLOURMAPS", "MapQuery", "coloured", "legend", "map_query", "map_tile_png", "outline_rings"]

COLOURMAPS = ("viridis", "cividis", "magma", "inferno")
SIGNED_COLOURMAPS = ("PuOr",)
_MATPLOTLIB = {"PuOr": "PuOr_r"}  # orange speaks for, as in every picture of this package
_STOPS = 128  # colours that a legend is drawn from


class MapQuery(NamedTuple):
    """What of a map to show."""

    name: str  # of `maps.list_maps`
    scale: Scale = "uniform"
    colourmap: str = ""  # "": the map's own
    threshold: float = 0.0  # 0..1 on the scale; what lies below it is transparent; signed: distance from the middle
    shows_unused: bool = True  # tiles without a value in grey


def map_query(params: Mapping[str, str]) -> MapQuery:
    """Read a query's parameters, none of which is believed.

    Raises:
        ConfigError: an unknown scale or colour map, or a threshold outside 0..1.
    """
    scale, colourmap = params.get("scale", "uniform"), params.get("colormap", "")
    if scale not in get_args(Scale):
        raise ConfigError(f"scale: expected {' or '.join(get_args(Scale))}")
    if colourmap and colourmap not in COLOURMAPS + SIGNED_COLOURMAPS:
        raise ConfigError(f"colormap: expected one of {', '.join(COLOURMAPS + SIGNED_COLOURMAPS)}")
    try:
        threshold = float(params.get("threshold", "0"))
    except ValueError:
        threshold = math.nan
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError("threshold: expected a number from 0 to 1")
    name = params.get("map", "attention")
    return MapQuery(name, cast(Scale, scale), colourmap, round(threshold, 4), params.get("unused", "1") != "0")


def coloured(tiles: TileMap, query: MapQuery) -> TileMap:
    """Give a map the colours that were asked for.

    Raises:
        ConfigError: a colour map without a middle for signed numbers, or the other way round.
    """
    if not query.colourmap:
        return tiles
    fitting = SIGNED_COLOURMAPS if tiles.colouring.is_signed else COLOURMAPS
    if query.colourmap not in fitting:
        raise ConfigError(f"colormap: {tiles.info.name} is drawn in {', '.join(fitting)}")
    name = _MATPLOTLIB.get(query.colourmap, query.colourmap)
    return replace(tiles, colouring=replace(tiles.colouring, colormap=name))


def map_tile_png(prediction: SlidePrediction, tiles: TileMap, query: MapQuery, box: Box0, downsample: float) -> bytes:
    """Draw one tile of a map as PNG with straight alpha, (h, w) of `raster_size(box, downsample)`.

    Args:
        prediction: whose tiles.
        tiles: the map, `coloured`.
        query: threshold and grey.
        box: what the tile covers, level-0 px.
        downsample: level-0 px per px of the tile.
    """
    rgba = map_rgba(prediction, tiles, box, downsample)
    if query.threshold > 0 or (tiles.has_unused and not query.shows_unused):
        raster = map_raster(prediction, tiles, box, downsample)
        rgba[_strength(tiles, raster) < query.threshold - 1e-9, 3] = 0.0  # NaN compares as False
        if not query.shows_unused:
            rgba[np.isnan(raster), 3] = 0.0
    pixels = np.rint(rgba * 255.0).astype(np.uint8)
    pixels[pixels[..., 3] == 0] = 0
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def _strength(tiles: TileMap, shown: np.ndarray) -> np.ndarray:
    """Place values on the scale as the threshold sees them, 0..1."""
    position = tiles.colouring.position(shown)
    return np.abs(2.0 * position - 1.0) if tiles.colouring.is_signed else position


def legend(tiles: TileMap) -> dict[str, Any]:
    """Say what a map shows, ready for JSON: label, scale, ticks, colours.

    `stops` are RGBA colours (0..255 and alpha 0..1) at equal steps from the low end of the scale to the high one.
    """
    c = tiles.colouring
    t = (np.arange(_STOPS) + 0.5) / _STOPS
    values = c.low * (c.high / c.low) ** t if c.is_log else c.low + (c.high - c.low) * t
    stops = c.rgba(values)
    positions = c.position(np.array(c.ticks))
    return {
        "label": c.label, "title": tiles.info.title, "detail": tiles.detail,
        "low": c.low, "high": c.high, "is_log": c.is_log, "is_signed": c.is_signed,
        "ticks": [{"text": c.tick_text(v), "position": float(p)} for v, p in zip(c.ticks, positions, strict=True)],
        "stops": [[*(round(255 * v) for v in rgba[:3]), round(float(rgba[3]), 4)] for rgba in stops.tolist()],
        "has_unused": tiles.has_unused, "unused": [*(round(255 * v) for v in NOT_USED_RGBA[:3]), NOT_USED_RGBA[3]],
        "colormaps": list(SIGNED_COLOURMAPS if c.is_signed else COLOURMAPS),
    }  # fmt: skip


def outline_rings(outline: TissueOutline) -> list[list[list[float]]]:
    """Trace the edge of the tissue mask: rings of (x, y) in level-0 px, to a tenth.

    The line runs half way between the centres of px inside and outside; it is simplified by less than half a px.
    """
    padded = np.pad(outline.mask, 1).astype(np.float32)
    rings = []
    for line in measure.find_contours(padded, 0.5):
        kept = measure.approximate_polygon(line, 0.4)
        if len(kept) < 4:
            continue
        x0 = outline.x0 + (kept[:, 1] - 1 + 0.5) * outline.downsample_x
        y0 = outline.y0 + (kept[:, 0] - 1 + 0.5) * outline.downsample_y
        rings.append(np.round(np.stack([x0, y0], axis=1), 1).tolist())
    return rings
