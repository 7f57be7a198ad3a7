"""Polygons out of GeoJSON, in the flavours QuPath and others write, and onto a mask.

A FeatureCollection, a bare list of features, one feature or one geometry; Polygon, MultiPolygon, GeometryCollection;
plain or gzipped. Coordinates are level-0 px. Files come from anywhere, so size and depth are limited and every number
is looked at; a message names the element.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon

from wsi_ips.errors import Note, SlideError
from wsi_ips.untrusted import read_json

__all__ = ["Polygons", "rasterize", "read_polygons"]

_MAX_BYTES = 128 * 2**20
_PIECE_BYTES = 2**20
_MAX_COORDINATE = 1e9  # level-0 px
_MAX_DEPTH = 8  # geometry collections in geometry collections
_MAX_CROSSINGS = 1 << 22  # of outlines with rows of a mask, worked on at a time
_OTHER_KINDS = ("Point", "MultiPoint", "LineString", "MultiLineString")


class Polygons(NamedTuple):
    """The union of a file's polygons."""

    area: MultiPolygon  # level-0 px, valid, holes honoured
    notes: tuple[Note, ...]


def read_polygons(path: Path) -> Polygons:
    """Read all polygons of a file, joined.

    Self-crossing outlines are repaired (every px they go round an odd number of times stays) with a note; points,
    lines and empty geometries are skipped with a note.

    Raises:
        SlideError: `E_MASK`, unreadable, too large, not GeoJSON, or a coordinate that is no finite number.
    """
    parts: list[Polygon] = []
    n_repaired = n_skipped = 0
    for place, geometry in _geometries(_load(path), path.name):
        if geometry is None or geometry.get("type") in _OTHER_KINDS:
            n_skipped += 1
            continue
        for rings in _polygon_rings(geometry, f"{path.name}, {place}"):
            if not rings:
                n_skipped += 1
                continue
            polygon = Polygon(rings[0], rings[1:])
            n_repaired += not polygon.is_valid
            parts += _polygons_in(polygon if polygon.is_valid else shapely.make_valid(polygon))
    notes = []
    if n_repaired:
        notes.append(Note("E_MASK_REPAIRED", f"{path.name}: {n_repaired} polygons cross themselves; repaired"))
    if n_skipped:
        notes.append(Note("E_MASK_SKIPPED", f"{path.name}: {n_skipped} points, lines or empty geometries left out"))
    return Polygons(MultiPolygon(_polygons_in(shapely.union_all(parts))), tuple(notes))


def rasterize(
    area: MultiPolygon, shape: tuple[int, int], corner0: tuple[int, int], downsample: tuple[float, float]
) -> np.ndarray:
    """Mark the mask px whose centre lies inside.

    Args:
        area: level-0 px; valid, so that no point is covered twice.
        shape: (h, w) of the mask.
        corner0: x and y of its top-left corner, level-0 px.
        downsample: level-0 px per mask px, x and y.

    Returns:
        (h, w) bool.

    Source: even-odd rule; Foley et al., Computer Graphics, 1990, 3.6.
    """
    height, width = shape
    flips = np.zeros((height, width + 1), np.uint8)
    for polygon in area.geoms:
        for ring in (polygon.exterior, *polygon.interiors):
            points = (shapely.get_coordinates(ring) - corner0) / downsample - 0.5  # now centres are whole numbers
            _flip_right_of(flips, points)
    np.bitwise_xor.accumulate(flips, axis=1, out=flips)
    return flips[:, :width].view(bool)


def _flip_right_of(flips: np.ndarray, points: np.ndarray) -> None:
    """Toggle, in each row, the first px at or right of where a closed ring (n, 2) crosses the row's centre."""
    height = flips.shape[0]
    low, high = np.minimum(points[:-1, 1], points[1:, 1]), np.maximum(points[:-1, 1], points[1:, 1])
    first = np.ceil(np.clip(low, 0, height)).astype(np.int64)
    n_rows = np.ceil(np.clip(high, 0, height)).astype(np.int64) - first  # half open: a corner counts once
    # an outline of many long edges crosses more rows than memory holds numbers
    part = np.cumsum(n_rows) // _MAX_CROSSINGS
    for cut in np.split(np.arange(len(part)), np.flatnonzero(np.diff(part)) + 1):
        _flip_edges(flips, points[cut], points[cut + 1], first[cut], n_rows[cut])


def _flip_edges(flips: np.ndarray, a: np.ndarray, b: np.ndarray, first: np.ndarray, n_rows: np.ndarray) -> None:
    """Toggle along edges from `a` to `b` (n, 2), each of which crosses `n_rows` rows from `first` on."""
    width = flips.shape[1] - 1
    (xa, ya), (xb, yb) = a.T, b.T
    edge = np.repeat(np.arange(len(n_rows)), n_rows)
    rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    x = xa[edge] + (rows - ya[edge]) * (xb[edge] - xa[edge]) / (yb[edge] - ya[edge])
    columns = np.ceil(np.clip(x, 0, width)).astype(np.int64)
    np.bitwise_xor.at(flips, (rows, columns), np.uint8(1))


def _load(path: Path) -> Any:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            text = bytearray()
            # piece by piece: a read makes room for all that it may return, however little there is
            while len(text) <= _MAX_BYTES and (piece := f.read(_PIECE_BYTES)):
                text += piece
        if len(text) > _MAX_BYTES:
            raise SlideError("E_MASK", f"{path.name}: over {_MAX_BYTES >> 20} MiB; simplify it, or give an image")
        return read_json(bytes(text), max_bytes=_MAX_BYTES, allow_nan=True)  # NaN is told with its element, below
    except (OSError, EOFError, zlib.error) as error:
        raise SlideError("E_MASK", f"{path.name}: cannot be read ({error})") from error
    except ValueError as error:
        raise SlideError("E_MASK", f"{path.name}: not GeoJSON ({error})") from error


def _geometries(data: Any, name: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Walk over a file's geometries, each with its place for messages."""
    if isinstance(data, dict) and data.get("type") == "FeatureCollection":
        data = data.get("features")
    elements = data if isinstance(data, list) else [data]
    for i, element in enumerate(elements, start=1):
        if not isinstance(element, dict) or not isinstance(element.get("type"), str):
            raise SlideError("E_MASK", f"{name}: element {i} is no GeoJSON feature; export polygons as QuPath does")
        geometry = element.get("geometry") if element["type"] == "Feature" else element
        for one in _flatten(geometry, f"{name}, element {i}", 0):
            yield f"element {i}", one


def _flatten(geometry: Any, where: str, depth: int) -> Iterator[dict[str, Any] | None]:
    if geometry is None:
        yield None
    elif not isinstance(geometry, dict) or depth > _MAX_DEPTH:
        raise SlideError("E_MASK", f"{where}: not a geometry, or one nested deeper than {_MAX_DEPTH}")
    elif geometry.get("type") == "GeometryCollection":
        for one in _as_list(geometry.get("geometries") or [], where):
            yield from _flatten(one, where, depth + 1)
    else:
        yield geometry


def _polygon_rings(geometry: dict[str, Any], where: str) -> Iterator[list[np.ndarray]]:
    """Yield the rings (n, 2) float64 of each polygon, the outer one first; an empty polygon has none."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise SlideError("E_MASK", f"{where}: geometry {kind!r} is not known; expected Polygon or MultiPolygon")
    for polygon in [coordinates] if kind == "Polygon" else _as_list(coordinates, where):
        yield [_ring(ring, where) for ring in _as_list(polygon, where)]


def _ring(points: Any, where: str) -> np.ndarray:
    try:
        xy = np.array([(point[0], point[1]) for point in _as_list(points, where)])
    except OverflowError as error:  # a whole number of hundreds of digits
        raise SlideError("E_MASK", f"{where}: a coordinate is not a finite number") from error
    except (TypeError, LookupError, ValueError) as error:
        raise SlideError("E_MASK", f"{where}: a point is not a pair of numbers") from error
    if len(xy) < 3:
        raise SlideError("E_MASK", f"{where}: a ring of {len(xy)} points encloses nothing")
    if xy.ndim != 2 or xy.dtype.kind not in "iuf" or not np.isfinite(xy).all():
        raise SlideError("E_MASK", f"{where}: a coordinate is not a finite number")
    if np.abs(xy).max() > _MAX_COORDINATE:
        raise SlideError("E_MASK", f"{where}: a coordinate of {np.abs(xy).max():g} level-0 px lies beyond any slide")
    return xy.astype(np.float64)


def _as_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SlideError("E_MASK", f"{where}: expected a list of coordinates, found {type(value).__name__}")
    return value


def _polygons_in(geometry: Any) -> list[Polygon]:
    """Keep what has an area."""
    if geometry.geom_type == "Polygon":
        return [] if geometry.is_empty else [geometry]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in _polygons_in(part)]
