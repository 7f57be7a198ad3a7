"""Maps as image files that other tools open in place: for OpenSlide and QuPath, for ASAP, for Bio-Formats.

All begin at level-0 px (0, 0), not at the bounds, and have square px of `downsample` level-0 px, so that a viewer that
knows both files' µm per px lays them over each other. Frames: level-0 px (suffix `0`), px of the raster (h, w).
Rasters are drawn strip by strip from the tiles; what a strip holds is all that is in memory, beside the file.
"""

from __future__ import annotations

import io
import math
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tifffile

from wsi_ips.geometry import Box0
from wsi_ips.report.heatmap import percentile_rank, raster_of_tiles
from wsi_ips.report.maps import MapFrame, TileMap
from wsi_ips.report.provenance import provenance_text
from wsi_ips.results import SlidePrediction

__all__ = ["Plane", "likelihood_downsample", "likelihood_tiff", "ome_tiff", "raster_downsample", "rgba_tiff"]

_TILE_PX = 256
_STRIP_PX = 16 * _TILE_PX  # drawn at once: some 50 MB whatever the slide
_PX_A_TILE = 4  # least px across one step of the grid
_MOST_PX = 16_000_000  # of a raster
_SOFTWARE = "wsi-ips"


class Plane(NamedTuple):
    """One resolution of a raster that covers level 0."""

    width: int
    height: int
    downsample: float  # level-0 px per px


def raster_downsample(p: SlidePrediction) -> int:
    """Choose level-0 px per raster px: a power of two, a quarter of the grid's step or less, at most 16 Mpx in all."""
    step0 = min(p.extent0) * (p.tile.size_px - p.tile.overlap_px) / p.tile.size_px
    downsample = 2 ** max(0, math.floor(math.log2(max(1.0, step0 / _PX_A_TILE))))
    while p.size0[0] / downsample * p.size0[1] / downsample > _MOST_PX:
        downsample *= 2
    return downsample


def rgba_tiff(p: SlidePrediction, tiles: TileMap) -> bytes:
    """Draw a map as a pyramidal RGBA BigTIFF: levels are top-level directories, straight alpha, deflate.

    OpenSlide, and all that is built on it, reads every level; each has its own µm per px, in px per centimetre.
    """
    out = io.BytesIO()
    planes = list(_planes(p.size0, raster_downsample(p)))
    with tifffile.TiffWriter(out, bigtiff=True) as writer:
        for i, plane in enumerate(planes):
            writer.write(
                _rgba_tiles(p, tiles, plane), shape=(plane.height, plane.width, 4), dtype=np.uint8, tile=(_TILE_PX, _TILE_PX),
                photometric="rgb", extrasamples=["unassalpha"], compression="deflate", subfiletype=1 if i else 0,
                **_resolution(p, plane.downsample), description=_description(p, tiles.info.title, plane) if i == 0 else None,
                software=_SOFTWARE, metadata=None,
            )  # fmt: skip
    return out.getvalue()


def _planes(size0: tuple[int, int], downsample: int) -> Iterator[Plane]:
    while True:
        plane = Plane(-(-size0[0] // downsample), -(-size0[1] // downsample), downsample)
        yield plane
        if max(plane.width, plane.height) <= _TILE_PX:
            return
        downsample *= 2


def _rgba_tiles(p: SlidePrediction, tiles: TileMap, plane: Plane) -> Iterator[np.ndarray]:
    """Yield the file's tiles (256, 256, 4) uint8 in raster order, drawn a strip of them at a time."""
    d = round(plane.downsample)
    for y in range(0, plane.height, _TILE_PX):
        for left in range(0, plane.width, _STRIP_PX):
            width = min(_STRIP_PX, -(-(plane.width - left) // _TILE_PX) * _TILE_PX)
            strip = MapFrame(p, Box0(left * d, y * d, width * d, _TILE_PX * d), plane.downsample).rgba8(tiles)
            yield from (np.ascontiguousarray(strip[:, x : x + _TILE_PX]) for x in range(0, width, _TILE_PX))


def likelihood_downsample(size0: tuple[int, int], wanted: int) -> int:
    """Find the whole downsample nearest to the wanted one that ASAP accepts.

    ASAP divides the slide's sides by the map's, as whole numbers, and wants the same answer twice; the map's sides are
    the slide's divided by the downsample, as whole numbers, too.

    >>> likelihood_downsample((1001, 701), 64)
    58
    >>> likelihood_downsample((100001, 80001), 64)
    64
    """
    def fits(d: int) -> bool:
        return all(side >= d and side // (side // d) == d for side in size0)

    return next(d for d in sorted(range(1, 2 * wanted + 1), key=lambda d: (abs(d - wanted), d)) if fits(d))


def likelihood_tiff(p: SlidePrediction, tiles: TileMap) -> bytes:
    """Write percentile ranks 0..1 as float32 TIFF, 0 where no tile is: what ASAP shows over `<slide>.tif` by itself.

    The file must lie beside the slide as `<slide's name>_likelihood_map.tif`.
    """
    d = likelihood_downsample(p.size0, raster_downsample(p))
    plane = Plane(p.size0[0] // d, p.size0[1] // d, d)
    return _float_tiff(p, plane, [(tiles.info.title + ", percentile rank 0..1", percentile_rank(tiles.values), tiles)])


def _float_tiff(p: SlidePrediction, plane: Plane, layers: list[tuple[str, np.ndarray, TileMap]]) -> bytes:
    out, (title, values, tiles) = io.BytesIO(), layers[0]
    raster = np.nan_to_num(_whole_raster(p, tiles.rows, values, plane), nan=0.0)
    with tifffile.TiffWriter(out, bigtiff=True) as writer:
        writer.write(raster, tile=(_TILE_PX, _TILE_PX), photometric="minisblack", compression="deflate", predictor=False,
                     **_resolution(p, plane.downsample), description=_description(p, title, plane), software=_SOFTWARE,
                     metadata=None)  # fmt: skip
    return out.getvalue()


def ome_tiff(p: SlidePrediction, maps: Sequence[TileMap]) -> bytes:
    """Write raw values (attention, evidence) as float32 OME-TIFF, a channel a map, NaN where no tile has one.

    The coarser levels are SubIFDs, as Bio-Formats, QuPath and OMERO want them.
    """
    out = io.BytesIO()
    planes = list(_planes(p.size0, raster_downsample(p)))
    name = f"{p.model_hash}/{p.settings_hash}/{p.slide_id}/{' '.join(m.info.name for m in maps)}"
    metadata = {
        "axes": "CYX", "Name": p.slide_id, "Channel": {"Name": [m.info.title for m in maps]},
        "PhysicalSizeX": p.mpp.x * planes[0].downsample, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": p.mpp.y * planes[0].downsample, "PhysicalSizeYUnit": "µm",
        "Description": _description(p, "raw values", planes[0]), "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        "Creator": _SOFTWARE,
    }  # fmt: skip
    with tifffile.TiffWriter(out, bigtiff=True, ome=True) as writer:
        for i, plane in enumerate(planes):
            channels = np.stack([_whole_raster(p, m.rows, m.values, plane) for m in maps])
            writer.write(channels, tile=(_TILE_PX, _TILE_PX), photometric="minisblack", compression="deflate",
                         subifds=len(planes) - 1 if i == 0 else None, subfiletype=1 if i else 0,
                         **_resolution(p, plane.downsample), metadata=metadata if i == 0 else None,
                         software=_SOFTWARE)  # fmt: skip
    return out.getvalue()


def _whole_raster(p: SlidePrediction, rows: np.ndarray, values: np.ndarray, plane: Plane) -> np.ndarray:
    """Values (n,) of tiles on a plane: (h, w) float32; a last px beyond the slide's edge is drawn as far as it goes."""
    d = round(plane.downsample)
    box = Box0(0, 0, plane.width * d, plane.height * d)
    return raster_of_tiles(values, p.coords[rows], p.extent0, box, plane.downsample)


def _resolution(p: SlidePrediction, downsample: float) -> dict[str, Any]:
    if not math.isfinite(p.mpp.x):
        return {}
    per_cm = (1e4 / (p.mpp.x * downsample), 1e4 / (p.mpp.y * downsample))
    return {"resolution": per_cm, "resolutionunit": "CENTIMETER"}


def _description(p: SlidePrediction, title: str, plane: Plane) -> str:
    return (f"{title}; slide {p.slide_id}; origin level-0 px (0, 0); {plane.downsample:g} level-0 px per px; "
            f"model {p.model_hash[:12]}; research use only; ").encode("ascii", "replace").decode() + provenance_text(p)  # fmt: skip
