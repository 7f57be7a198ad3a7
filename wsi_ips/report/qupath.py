"""Tiles, top tiles and tissue as GeoJSON for QuPath, small enough to open whatever the slide.

Tiles are `tile` objects (a kind of detection, which QuPath holds by the ten thousand and colours by a measurement:
Measure > Show measurement maps); top tiles and tissue are annotations. Beyond some thousand tiles those with the least
attention are merged into blocks that carry their means, so that the file stays below 5 MB.

QuPath shows the scanned bounds alone, with their corner as origin; so by default coordinates have the bounds' corner
subtracted (`origin` "bounds"). Whatever shows all of level 0 needs `origin` "level0". The file says which it is.

Source: QuPath's GeoJSON, qupath-core, QuPathTypeAdapters.java. Shapes: N tiles, m selected, k top tiles.
"""

from __future__ import annotations

import gzip
import io
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import shapely

from wsi_ips.report.heatmap import percentile_rank, times_uniform
from wsi_ips.report.readout import evidence_for_call
from wsi_ips.report.vectors import blocks_of_tiles, tile_boxes, tissue_polygons
from wsi_ips.results import SlidePrediction

__all__ = ["MOST_BYTES", "Origin", "geojson_gz"]

Origin = Literal["bounds", "level0"]
MOST_BYTES = 4_800_000  # gzipped
_ALL_ALONE = 12_000  # tiles that are written one by one without any merging
_SIDES = (4, 8, 16, 32)  # of a block, tiles
_TISSUE = {"name": "Tissue", "color": [61, 107, 76]}  # a class with a name needs a colour, or the import fails
_TOP = {"name": "Top tile", "color": [230, 159, 0]}
_N_TOP = 16


class _Numbers(NamedTuple):
    """What a tile's measurements are taken from; (N,) each."""

    attention: dict[str, np.ndarray]
    rank: np.ndarray  # 1 is the best, 0 where not selected
    evidence: dict[str, np.ndarray]  # NaN where not selected


def geojson_gz(p: SlidePrediction, origin: Origin = "bounds") -> bytes:
    """Write tiles, top tiles and tissue as gzipped GeoJSON; the same prediction gives the same bytes.

    Args:
        p: what the pass found.
        origin: "bounds" for QuPath, "level0" for whatever shows all of level 0.
    """
    numbers = _numbers(p)
    score = p.attention.astype(np.float64).mean(axis=1)
    by_score = np.lexsort((np.arange(p.n_tiles), -score))
    is_kept = np.zeros(p.n_tiles, bool)
    for n_alone, side in _budgets(p.n_tiles):
        is_kept[:] = False
        is_kept[by_score[:n_alone]] = True
        is_kept[p.selected[:n_alone]] = True
        tiles = _tiles(p, numbers, np.flatnonzero(is_kept), origin)
        blocks = _blocks(p, numbers, np.flatnonzero(~is_kept), side, origin)
        data = _collection(p, chain(_annotations(p, origin), tiles, blocks), origin)
        if len(data) <= MOST_BYTES:
            break
    return data


def _budgets(n_tiles: int) -> Iterator[tuple[int, int]]:
    """How many tiles stand alone and how large the blocks of the others are; smaller files later."""
    if n_tiles <= _ALL_ALONE:
        yield n_tiles, 1
    for side in _SIDES:
        yield 8000, side
    yield 2000, _SIDES[-1]
    yield 500, 2 * _SIDES[-1]


def _numbers(p: SlidePrediction) -> _Numbers:
    rank = np.zeros(p.n_tiles, np.int64)
    rank[p.selected] = np.arange(1, len(p.selected) + 1)
    attention, evidence = {}, {}
    for t, task in enumerate(p.tasks):
        of = f" ({task.name})" if len(p.tasks) > 1 else ""
        a = p.attention[:, t].astype(np.float64)
        attention[f"attention{of}"] = a
        attention[f"attention x N{of}"] = times_uniform(a)
        attention[f"attention rank{of}"] = percentile_rank(a)
        values, towards = evidence_for_call(p, t)
        column = np.full(p.n_tiles, np.nan)
        column[p.selected] = values
        evidence[f"evidence towards {towards}{of}"] = column
    return _Numbers(attention, rank, evidence)


def _tiles(p: SlidePrediction, numbers: _Numbers, rows: np.ndarray, origin: Origin) -> Iterator[str]:
    for row, shape in zip(rows.tolist(), _moved(p, tile_boxes(p, rows), origin), strict=True):
        values: dict[str, float] = {name: a[row] for name, a in numbers.attention.items()}
        values["selected"] = int(numbers.rank[row] > 0)
        if numbers.rank[row]:
            values["selection rank"] = int(numbers.rank[row])
            values |= {name: e[row] for name, e in numbers.evidence.items()}
        yield _feature(p, f"tile {row}", shape, {"objectType": "tile", "isLocked": True, "measurements": _short(values)})


def _blocks(p: SlidePrediction, numbers: _Numbers, rows: np.ndarray, side: int, origin: Origin) -> Iterator[str]:
    regions = blocks_of_tiles(p, rows, side)
    shapes = _moved(p, np.array([r.shape for r in regions], dtype=object), origin)
    for i, (region, shape) in enumerate(zip(regions, shapes, strict=True)):
        values: dict[str, float] = {name: a[region.rows].mean() for name, a in numbers.attention.items()}
        values |= {"selected": 0, "tiles merged": len(region.rows)}
        yield _feature(p, f"block {i}", shape, {"objectType": "tile", "isLocked": True, "measurements": _short(values)})


def _annotations(p: SlidePrediction, origin: Origin) -> Iterator[str]:
    pieces = tissue_polygons(p.outline)
    if pieces:
        whole = _moved(p, np.array([shapely.MultiPolygon(pieces)], dtype=object), origin)[0]
        yield _feature(p, "tissue", whole, {"objectType": "annotation", "isLocked": True, "name": "tissue",
                                            "classification": _TISSUE})  # fmt: skip
    top = p.selected[:_N_TOP]
    for rank, shape in enumerate(_moved(p, tile_boxes(p, top), origin), start=1):
        name = f"top {rank}"
        yield _feature(p, name, shape, {"objectType": "annotation", "isLocked": True, "name": name, "classification": _TOP})


def _moved(p: SlidePrediction, shapes: np.ndarray, origin: Origin) -> np.ndarray:
    """Bring shapes from level-0 px to the wanted origin."""
    if origin == "level0" or not len(shapes):
        return shapes
    corner = np.array([p.bounds.x0, p.bounds.y0], dtype=np.float64)
    return np.atleast_1d(shapely.transform(shapes, lambda xy: xy - corner))


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """Keep five digits that matter; whole numbers as such. Bare NaN is no JSON, so it is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, int):
            found[name] = value
        elif np.isfinite(value):
            found[name] = float(f"{value:.5g}")
    return found


def _feature(p: SlidePrediction, what: str, shape: shapely.Geometry, properties: dict[str, Any]) -> str:
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{p.model_hash}/{p.settings_hash}/{p.slide_id}/{what}")
    geometry = _tidy(shapely.geometry.mapping(shape))
    return json.dumps(
        {"type": "Feature", "id": str(identity), "geometry": geometry, "properties": properties}, separators=(",", ":")
    )


def _tidy(value: Any) -> Any:
    """Write whole coordinates without a point, others to a hundredth of a px."""
    if isinstance(value, dict):
        return {k: _tidy(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_tidy(v) for v in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 2)
    return value


def _collection(p: SlidePrediction, features: Iterable[str], origin: Origin) -> bytes:
    """Pack features one by one: the text as a whole is never in memory."""
    b = p.bounds
    about = {
        "made_by": "wsi-ips", "slide_id": p.slide_id, "origin": origin, "bounds": list(b), "size0": list(p.size0),
        "frame": "level-0 px from the corner of the scanned bounds" if origin == "bounds" else "level-0 px",
        "n_tiles": p.n_tiles, "model_hash": p.model_hash, "settings_hash": p.settings_hash, "note": "research use only",
    }  # fmt: skip
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
        packed.write(f'{{"type":"FeatureCollection","wsi_ips":{json.dumps(about)},"features":['.encode())
        for i, feature in enumerate(features):
            packed.write(f"{',' if i else ''}\n{feature}".encode())
        packed.write(b"\n]}\n")
    return out.getvalue()
