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
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import shapely

from wsi_ips.report.blocks import blocks_of_tiles
from wsi_ips.report.heatmap import percentile_rank, times_uniform
from wsi_ips.report.provenance import provenance
from wsi_ips.report.readout import evidence_for_call
from wsi_ips.report.vectors import tile_boxes, tissue_polygons
from wsi_ips.results import SlidePrediction

__all__ = ["MOST_BYTES", "Origin", "geojson_gz"]

Origin = Literal["bounds", "level0"]
MOST_BYTES = 4_800_000  # gzipped
_ALL_ALONE = 12_000  # tiles that are written one by one without any merging
_SIDES = (4, 8, 16, 32)  # of a block, tiles
_TISSUE = {"name": "Tissue", "color": [61, 107, 76]}  # a class with a name needs a colour, or the import fails
_TOP = {"name": "Top tile", "color": [230, 159, 0]}
_N_TOP = 16
_FEATURES_AT_ONCE = 256
_WHOLE = re.compile(r"\.0(?=[,\]])")


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
    numbers, annotations = _numbers(p), list(_annotations(p, origin))
    score = p.attention.astype(np.float64).mean(axis=1)
    by_score = np.lexsort((np.arange(p.n_tiles), -score))
    is_kept = np.zeros(p.n_tiles, bool)
    *budgets, smallest = _budgets(p.n_tiles)
    for n_alone, side in (*budgets, smallest):
        is_kept[:] = False
        is_kept[by_score[:n_alone]] = True
        is_kept[p.selected[:n_alone]] = True
        tiles = _tiles(p, numbers, np.flatnonzero(is_kept), origin)
        blocks = _blocks(p, numbers, np.flatnonzero(~is_kept), side, origin)
        data = _collection(p, chain(annotations, tiles, blocks), origin, can_be_left=(n_alone, side) != smallest)
        if data is not None:
            break
    return data or b""


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
    geometries = _geometries(p, tile_boxes(p, rows), origin)
    attention = {name: a[rows].tolist() for name, a in numbers.attention.items()}
    ranks = numbers.rank[rows].tolist()
    for i, row in enumerate(rows.tolist()):
        values: dict[str, float] = {name: a[i] for name, a in attention.items()}
        values["selected"] = int(ranks[i] > 0)
        if ranks[i]:
            values["selection rank"] = ranks[i]
            values |= {name: float(e[row]) for name, e in numbers.evidence.items()}
        yield _feature(p, f"tile {row}", geometries[i], _measured(values))


def _blocks(p: SlidePrediction, numbers: _Numbers, rows: np.ndarray, side: int, origin: Origin) -> Iterator[str]:
    regions = blocks_of_tiles(p, rows, side)
    if not regions:
        return
    geometries = _geometries(p, np.array([r.shape for r in regions], dtype=object), origin)
    merged = [len(region.rows) for region in regions]
    by_block, first = np.concatenate([region.rows for region in regions]), np.cumsum([0, *merged[:-1]])
    means = {name: (np.add.reduceat(a[by_block], first) / merged).tolist() for name, a in numbers.attention.items()}
    for i, n_merged in enumerate(merged):
        values: dict[str, float] = {name: mean[i] for name, mean in means.items()}
        yield _feature(p, f"block {i}", geometries[i], _measured(values | {"selected": 0, "tiles merged": n_merged}))


def _annotations(p: SlidePrediction, origin: Origin) -> Iterator[str]:
    pieces = tissue_polygons(p.outline)
    if pieces:
        whole = _geometries(p, np.array([shapely.MultiPolygon(pieces)], dtype=object), origin)[0]
        yield _feature(p, "tissue", whole, _annotation("tissue", _TISSUE))
    top = p.selected[:_N_TOP]
    for rank, geometry in enumerate(_geometries(p, tile_boxes(p, top), origin), start=1):
        yield _feature(p, f"top {rank}", geometry, _annotation(f"top {rank}", _TOP))


def _geometries(p: SlidePrediction, shapes: np.ndarray, origin: Origin) -> list[str]:
    """Bring shapes from level-0 px to the wanted origin and write them, to a hundredth of a px; whole numbers as such."""
    corner = np.array([p.bounds.x0, p.bounds.y0] if origin == "bounds" else [0, 0], dtype=np.float64)
    moved = np.atleast_1d(shapely.transform(shapes, lambda xy: np.round(xy - corner, 2) + 0.0))  # -0 is 0
    return [_WHOLE.sub("", text) for text in np.atleast_1d(shapely.to_geojson(moved)).tolist()]


def _measured(values: Mapping[str, float]) -> str:
    """Write a tile's properties; five digits that matter, whole numbers as such. Bare NaN is no JSON, so it is left out."""
    texts = [
        f"{_quoted(name)}:{value if isinstance(value, int) else float(f'{value:.5g}')!r}"
        for name, value in values.items()
        if math.isfinite(value)
    ]
    return f'{{"objectType":"tile","isLocked":true,"measurements":{{{",".join(texts)}}}}}'


def _annotation(name: str, classification: Mapping[str, Any]) -> str:
    about = {"objectType": "annotation", "isLocked": True, "name": name, "classification": classification}
    return json.dumps(about, separators=(",", ":"))


@lru_cache(maxsize=256)
def _quoted(name: str) -> str:
    return json.dumps(name)


def _feature(p: SlidePrediction, what: str, geometry: str, properties: str) -> str:
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{p.model_hash}/{p.settings_hash}/{p.slide_id}/{what}")
    return f'{{"type":"Feature","id":"{identity}","geometry":{geometry},"properties":{properties}}}'


def _collection(p: SlidePrediction, features: Iterator[str], origin: Origin, *, can_be_left: bool) -> bytes | None:
    """Pack features some at a time: the text as a whole is never in memory. None: it grew too large and can be left."""
    b = p.bounds
    about = {
        "made_by": "wsi-ips", "slide_id": p.slide_id, "origin": origin, "bounds": list(b), "size0": list(p.size0),
        "frame": "level-0 px from the corner of the scanned bounds" if origin == "bounds" else "level-0 px",
        "n_tiles": p.n_tiles, "model_hash": p.model_hash, "settings_hash": p.settings_hash, "note": "research use only",
        "provenance": provenance(p),
    }  # fmt: skip
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
        packed.write(f'{{"type":"FeatureCollection","wsi_ips":{json.dumps(about)},"features":['.encode())
        comma = "\n"
        while some := list(islice(features, _FEATURES_AT_ONCE)):
            packed.write((comma + ",\n".join(some)).encode())
            comma = ",\n"
            if can_be_left and out.tell() > MOST_BYTES:
                return None
        packed.write(b"\n]}\n")
    return None if can_be_left and len(out.getvalue()) > MOST_BYTES else out.getvalue()
