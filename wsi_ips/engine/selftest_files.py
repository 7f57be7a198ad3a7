"""Where planted squares are in each output file, as other tools' readers see them.

Frames: level-0 px (suffix `0`). An edge is where a reader's own geometry puts it; nothing of this package reads.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import shapely
import tifffile

from wsi_ips.geometry import Box0
from wsi_ips.report.overlay import place_map
from wsi_ips.results import SlidePrediction

__all__ = ["Finding", "check_files"]

Edges = tuple[float, float, float, float]  # left, top, right, bottom, level-0 px


class Finding(NamedTuple):
    """How far one file is off."""

    file: str
    reader: str
    error0: float  # largest distance of an edge from its square's, level-0 px; inf where a square was not found
    allowed0: float

    @property
    def is_ok(self) -> bool:
        """Whether it is within what is allowed."""
        return self.error0 <= self.allowed0 + 1e-6


def check_files(
    p: SlidePrediction, files: Mapping[str, bytes], squares: Sequence[Box0], slide_path: str | None = None
) -> list[Finding]:
    """Measure every file of `slide_files` in which squares can be found.

    Args:
        p: the prediction that was drawn; the squares are its selected tiles.
        files: content by name.
        squares: where they were planted.
        slide_path: of the DICOM slide that parametric maps belong to.
    """
    wanted = [_edges_of(p, square) for square in squares]
    checks: list[tuple[str, str, Callable[[bytes], tuple[list[Edges], float]]]] = [
        (".evidence.tif", "OpenSlide", lambda data: _openslide(data, p)),
        ("_likelihood_map.tif", "tifffile", lambda data: _likelihood(data, p, wanted)),
        (".maps.ome.tif", "tifffile", lambda data: _ome(data, p)),
        (".attention.geojson.gz", "json + shapely", lambda data: _geojson(data, p)),
        (".qupath.geojson.gz", "json + shapely", lambda data: _geojson(data, p)),
        (".asap.xml", "xml + shapely", _xml),
        (".qupath.png", "OpenCV", lambda data: _qupath_png(data, files, p, wanted)),
        (".layers/evidence.png", "OpenCV", lambda data: _layer(data, p)),
        (".selected.dcm", "highdicom", lambda data: _dicom(data, slide_path or "")),
    ]
    findings = []
    for ending, reader, read in checks:
        for name, data in files.items():
            if name.endswith(ending):
                found, allowed0 = read(data)
                findings.append(Finding(name, reader, _error(found, wanted), allowed0))
    return findings


def _edges_of(p: SlidePrediction, square: Box0) -> Edges:
    """The tile that a square was planted as: its corner, and its side before that was rounded down."""
    return (square.x0, square.y0, square.x0 + p.extent0[0], square.y0 + p.extent0[1])


def _error(found: list[Edges], wanted: list[Edges]) -> float:
    """Largest distance between edges, each wanted rectangle against the found one whose centre is nearest."""
    if len(found) != len(wanted):
        return float("inf")
    a, b = np.array(sorted(found)), np.array(sorted(wanted))
    return float(np.abs(a - b).max())


def _pieces(is_hot: np.ndarray, dx: float, dy: float, x0: float = 0.0, y0: float = 0.0) -> list[Edges]:
    """Rectangles around connected px that are hot (h, w), in level-0 px."""
    n, _, stats, _ = cv2.connectedComponentsWithStats(is_hot.astype(np.uint8), connectivity=4)
    return [(x0 + x * dx, y0 + y * dy, x0 + (x + w) * dx, y0 + (y + h) * dy) for x, y, w, h, _ in stats[1:n].tolist()]


def _is_used(rgba: np.ndarray) -> np.ndarray:
    """Px of the evidence map with a value: at least 0.6 opaque, while "not used" is 0.45."""
    return rgba[..., 3] > 0.52 * 255


def _bright(
    raster: np.ndarray, cut: float, p: SlidePrediction, wanted: Sequence[Edges], place: tuple[float, float, float]
) -> list[Edges]:
    """Rectangles of what is bright in a raster (h, w) of attention; `place` is its downsample and its corner.

    Where tiles overlap a px holds their mean, and a square's border is no longer told from its neighbours'; then
    only what is brightest around each square is looked at, which may not reach beyond it.
    """
    d, x0, y0 = place
    if not p.tile.overlap_px:
        return _pieces(raster >= cut * raster.max(), d, d, x0, y0)
    found = []
    for left, top, right, bottom in wanted:
        column, row = max(0, int((2 * left - right - x0) / d)), max(0, int((2 * top - bottom - y0) / d))
        window = raster[row : int((2 * bottom - top - y0) / d) + 1, column : int((2 * right - left - x0) / d) + 1]
        rows, columns = np.nonzero(window >= 0.9999 * window.max())
        found.append((min(left, x0 + (column + columns.min()) * d), min(top, y0 + (row + rows.min()) * d),
                      max(right, x0 + (column + columns.max() + 1) * d), max(bottom, y0 + (row + rows.max() + 1) * d)))  # fmt: skip
    return found


def _openslide(data: bytes, p: SlidePrediction) -> tuple[list[Edges], float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.tif"
        path.write_bytes(data)
        with openslide.OpenSlide(path) as image:
            dx = float(image.properties["openslide.mpp-x"]) / p.mpp.x
            dy = float(image.properties["openslide.mpp-y"]) / p.mpp.y
            pixels = np.asarray(image.read_region((0, 0), 0, image.dimensions))
    return _pieces(_is_used(pixels), dx, dy), max(dx, dy) / 2


def _likelihood(data: bytes, p: SlidePrediction, wanted: Sequence[Edges]) -> tuple[list[Edges], float]:
    raster = tifffile.TiffFile(io.BytesIO(data)).pages[0].asarray()
    scale = p.size0[0] // raster.shape[1]
    if scale != p.size0[1] // raster.shape[0]:
        return [], 0.0  # ASAP would not show it
    # all other tiles share the middle of the ranks; half of a square between 0.5 and 1 is 0.75
    return _bright(raster, 0.75, p, wanted, (scale, 0.0, 0.0)), scale / 2


def _ome(data: bytes, p: SlidePrediction) -> tuple[list[Edges], float]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        channels = tiff.series[0].asarray()
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    pixels = next(e for e in root.iter() if e.tag.endswith("Pixels"))
    names = [e.attrib["Name"] for e in root.iter() if e.tag.endswith("}Channel")]
    evidence = channels[next(i for i, name in enumerate(names) if name.startswith("evidence"))]
    dx = float(pixels.attrib["PhysicalSizeX"]) / p.mpp.x
    dy = float(pixels.attrib["PhysicalSizeY"]) / p.mpp.y
    return _pieces(np.isfinite(evidence), dx, dy), max(dx, dy) / 2


def _geojson(data: bytes, p: SlidePrediction) -> tuple[list[Edges], float]:
    found = json.loads(gzip.decompress(data))
    x0, y0 = (p.bounds.x0, p.bounds.y0) if found["wsi_ips"]["origin"] == "bounds" else (0, 0)
    boxes = []
    for feature in found["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        if not shape.is_valid:
            return [], 1.0
        if feature["properties"].get("measurements", {}).get("selected"):
            left, top, right, bottom = shape.bounds
            boxes.append((left + x0, top + y0, right + x0, bottom + y0))
    return boxes, 1.0


def _xml(data: bytes) -> tuple[list[Edges], float]:
    boxes = []
    for one in ElementTree.fromstring(data).iter("Annotation"):
        if one.attrib["PartOfGroup"] == "top regions":
            ring = shapely.Polygon([(float(c.attrib["X"]), float(c.attrib["Y"])) for c in one.iter("Coordinate")])
            boxes.append(ring.bounds)
    return boxes, 1.0


def _qupath_png(
    data: bytes, files: Mapping[str, bytes], p: SlidePrediction, wanted: Sequence[Edges]
) -> tuple[list[Edges], float]:
    about = json.loads(next(d for name, d in files.items() if name.endswith(".qupath.json")))
    d, alpha = float(about["downsample"]), _rgba(data)[..., 3].astype(float)
    # on a logarithmic scale half of a square is nearly as opaque as all of it
    return _bright(alpha, 0.86, p, wanted, (d, p.bounds.x0, p.bounds.y0)), d / 2


def _rgba(png: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))


def _layer(data: bytes, p: SlidePrediction) -> tuple[list[Edges], float]:
    placed, layer = place_map(p.bounds), _rgba(data)
    d = placed.downsample * round(placed.map_width / layer.shape[1])
    return _pieces(_is_used(layer), d, d, p.bounds.x0, p.bounds.y0), d / 2


def _dicom(data: bytes, slide_path: str) -> tuple[list[Edges], float]:
    """Take map px to mm and those to level-0 px by highdicom's own transforms."""
    import pydicom
    from highdicom import imread
    from highdicom.spatial import ImageToReferenceTransformer, ReferenceToImageTransformer

    found = imread(io.BytesIO(data))
    raster = np.squeeze(np.asarray(found.get_total_pixel_matrix(apply_real_world_transform=False)))
    folder = Path(slide_path)
    levels = [pydicom.dcmread(f, stop_before_pixels=True)
              for f in (sorted(folder.iterdir()) if folder.is_dir() else sorted(folder.parent.iterdir()))
              if f.is_file() and f.suffix.lower() in (".dcm", "")]  # fmt: skip
    volumes = [lv for lv in levels if "VOLUME" in lv.get("ImageType", ()) and "TotalPixelMatrixColumns" in lv]
    source = max(volumes, key=lambda lv: lv.TotalPixelMatrixColumns)
    to_mm = ImageToReferenceTransformer.for_image(found, for_total_pixel_matrix=True)
    to_px = ReferenceToImageTransformer.for_image(source, for_total_pixel_matrix=True)
    boxes = []
    for left, top, right, bottom in _pieces(raster != 0, 1.0, 1.0):
        corners = to_px(to_mm(np.array([[left, top], [right, bottom]], float)))[:, :2]
        (x_a, y_a), (x_b, y_b) = corners.tolist()
        boxes.append((min(x_a, x_b), min(y_a, y_b), max(x_a, x_b), max(y_a, y_b)))
    per_px = np.abs(np.diff(to_px(to_mm(np.array([[0.0, 0.0], [1.0, 1.0]])))[:, :2], axis=0))
    return boxes, float(per_px.max()) / 2
