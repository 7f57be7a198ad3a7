"""P5: a planted tile lies where it should in every file, read back by somebody else's reader, in level-0 px."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import shapely
import tifffile

from wsi_ips.config import TileSpec
from wsi_ips.geometry import Box0
from wsi_ips.report.asap import asap_xml
from wsi_ips.report.maps import find_map, list_maps, map_rgba, tile_map
from wsi_ips.report.qupath import MOST_BYTES, geojson_gz
from wsi_ips.report.rasters import likelihood_tiff, ome_tiff, raster_downsample, rgba_tiff
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.tissue import TissueMask

Predict = Callable[..., SlidePrediction]


@dataclass(frozen=True)
class Geometry:
    """A scan that is awkward in its own way."""

    name: str
    width: int
    height: int
    mpp: float
    tile: TileSpec
    bounds: Box0 | None = None


GEOMETRIES = (
    Geometry("odd sizes, wide", 2537, 1011, 0.5, TileSpec(size_px=61, mpp=0.5)),
    Geometry("tall, sides of tiles not whole", 1303, 2861, 0.25, TileSpec(size_px=64, mpp=0.61)),  # 156.16 px
    Geometry("bounds", 3001, 2203, 0.5, TileSpec(size_px=64, mpp=1.0), Box0(413, 207, 2001, 1609)),
    Geometry("overlap", 1537, 1811, 0.5, TileSpec(size_px=64, mpp=0.5, overlap_px=24)),
    Geometry("overlap, sides not whole, bounds", 2401, 2003, 0.243, TileSpec(size_px=96, mpp=0.5, overlap_px=32),
             Box0(101, 303, 2111, 1501)),
    Geometry("coarse", 1201, 901, 1.1, TileSpec(size_px=32, mpp=1.13)),
)  # fmt: skip
geometries = pytest.mark.parametrize("g", GEOMETRIES, ids=lambda g: g.name)


def _planted(make_prediction: Predict, g: Geometry) -> tuple[SlidePrediction, int]:
    """A prediction on the grid that the house itself lays, with one tile that has all: attention and evidence."""
    slide = ArraySlide(np.full((g.height, g.width, 3), 230, np.uint8), mpp=g.mpp, bounds=g.bounds)
    b = slide.bounds
    everywhere = TissueMask(np.ones((4, 4), bool), b.x0, b.y0, b.width0 / 4, b.height0 / 4, 1.0)
    grid = plan_tiles(slide, everywhere, g.tile, min_fraction=0.0, max_tiles=10_000)
    n = len(grid.coords)
    row = 3 * n // 5
    attention = np.ones((n, 1))
    attention[row] = 40.0
    attention /= attention.sum()
    p = make_prediction(slide, tile=g.tile, coords=grid.coords, extent0=grid.extent0, tissue=np.ones(n, np.float32),
                        attention=attention.astype(np.float32), logits=np.log(attention)[..., None].astype(np.float32),
                        selected=np.array([row]), values=np.zeros((1, 4), np.float32),
                        evidence=np.array([[0.7]], np.float32))  # fmt: skip
    return p, row


def _box(p: SlidePrediction, row: int) -> tuple[float, float, float, float]:
    (x0, y0), (width, height) = p.coords[row], p.extent0
    return float(x0), float(y0), float(x0 + width), float(y0 + height)


def _edges(is_hot: np.ndarray, step: float | tuple[float, float]) -> tuple[float, float, float, float]:
    """Smallest rectangle around what is hot (h, w), in level-0 px."""
    rows, columns = np.nonzero(is_hot)
    dx, dy = step if isinstance(step, tuple) else (step, step)
    return columns.min() * dx, rows.min() * dy, (columns.max() + 1) * dx, (rows.max() + 1) * dy


def _near(found: tuple[float, ...], wanted: tuple[float, ...], within: float) -> None:
    assert np.abs(np.subtract(found, wanted)).max() <= within + 1e-6, (found, wanted)


def _shared(p: SlidePrediction, row: int) -> bool:
    """Whether other tiles cover part of the planted one (overlap): its mean there is lower, its area the same."""
    return p.tile.overlap_px > 0


@geometries
def test_the_rgba_pyramid_opens_in_openslide_and_lies_in_place(
    make_prediction: Predict, g: Geometry, tmp_path: Path
) -> None:
    """OpenSlide finds every level, each with its own µm per px; the used tile is where it was read, to half a map px."""
    p, row = _planted(make_prediction, g)
    path = tmp_path / "evidence.tif"
    path.write_bytes(rgba_tiff(p, tile_map(p, find_map(p, "evidence"))))
    d = raster_downsample(p)
    with openslide.OpenSlide(path) as image, tifffile.TiffFile(path) as tiff:
        assert image.level_count == len(tiff.pages) >= (2 if max(g.width, g.height) > 256 * d else 1)
        assert tiff.is_bigtiff
        assert all(not page.subifds for page in tiff.pages)
        assert image.dimensions == (-(-g.width // d), -(-g.height // d))
        assert float(image.properties["openslide.mpp-x"]) == pytest.approx(g.mpp * d, rel=1e-6)
        for level in range(min(2, image.level_count)):
            page = tiff.pages[level]
            per_cm = page.tags["XResolution"].value
            assert 1e4 * per_cm[1] / per_cm[0] == pytest.approx(g.mpp * d * 2**level, rel=1e-6)
            pixels = np.asarray(image.read_region((0, 0), level, image.level_dimensions[level])).astype(int)
            is_orange = (pixels[..., 0] > pixels[..., 2] + 40) & (pixels[..., 3] > 0)
            if not _shared(p, row):  # grey tiles beside it
                assert ((pixels[..., 3] > 0) & ~is_orange).any()
            # what OpenSlide is told of a level's place: its true downsample
            step = (g.mpp * d * 2**level) / g.mpp
            _near(_edges(is_orange, step), _box(p, row), step / 2)


@geometries
def test_the_likelihood_map_fits_asap_and_lies_in_place(
    make_prediction: Predict, g: Geometry, tmp_path: Path
) -> None:
    """Float32 in 0..1; both sides divide the slide's by one whole number, which is the scale ASAP will use."""
    p, row = _planted(make_prediction, g)
    page = tifffile.TiffFile(io.BytesIO(likelihood_tiff(p, tile_map(p, find_map(p, "attention"))))).pages[0]
    raster = page.asarray()
    scale = g.width // raster.shape[1]
    assert scale == g.height // raster.shape[0]
    assert raster.dtype == np.float32
    assert 0.0 <= raster.min() <= raster.max() <= 1.0
    assert page.is_tiled
    per_cm = page.tags["XResolution"].value
    assert 1e4 * per_cm[1] / per_cm[0] == pytest.approx(g.mpp * scale, rel=1e-6)
    rank = np.unique(np.r_[raster[raster > 0]])
    low, high = 0.5 * (p.n_tiles - 1) / p.n_tiles, (p.n_tiles - 0.5) / p.n_tiles
    assert rank.max() == pytest.approx(high, abs=1e-5)
    if not _shared(p, row):
        _near(_edges(raster >= (low + high) / 2, scale), _box(p, row), scale / 2)
    else:
        y, x = np.unravel_index(np.argmax(raster), raster.shape)
        x0, y0, x1, y1 = _box(p, row)
        assert x0 <= (x + 0.5) * scale <= x1
        assert y0 <= (y + 0.5) * scale <= y1
    # the edge of the grid itself, against glass
    corners = p.coords.min(axis=0), p.coords.max(axis=0) + np.array(p.extent0)
    _near(_edges(raster > 0, scale), (*corners[0], *np.minimum(corners[1], np.array(raster.shape[::-1]) * scale)), scale / 2)


@geometries
def test_the_ome_tiff_holds_raw_values_in_place(make_prediction: Predict, g: Geometry) -> None:
    """Channels are named, px are as large as they say, attention is the ledger's, and NaN where there is no tile."""
    p, row = _planted(make_prediction, g)
    names = ["attention", "evidence"]
    data = ome_tiff(p, [tile_map(p, find_map(p, name)) for name in names])
    assert data == ome_tiff(p, [tile_map(p, find_map(p, name)) for name in names])
    d = raster_downsample(p)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series = tiff.series[0]
        assert series.axes == "CYX"
        assert len(series.levels) >= (2 if max(g.width, g.height) > 256 * d else 1)
        root = ElementTree.fromstring(tiff.ome_metadata)
        pixels = next(e for e in root.iter() if e.tag.endswith("Pixels"))
        assert float(pixels.attrib["PhysicalSizeX"]) == pytest.approx(g.mpp * d)
        assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
        assert [e.attrib["Name"] for e in root.iter() if e.tag.endswith("}Channel")] == ["attention", "evidence towards tumor"]
        attention, evidence = series.asarray()
    _near(_edges(np.isfinite(evidence), d), _box(p, row), d / 2)
    assert np.nanmax(evidence) == pytest.approx(0.7, abs=1e-6)
    assert np.nanmax(attention) <= p.attention.max() * (1 + 1e-6)
    outside = np.ones(attention.shape, bool)
    b = p.bounds
    outside[b.y0 // d : -(-(b.y0 + b.height0) // d), b.x0 // d : -(-(b.x0 + b.width0) // d)] = False
    assert np.isnan(attention[outside]).all()


@geometries
@pytest.mark.parametrize("origin", ["bounds", "level0"])
def test_geojson_tiles_are_the_tiles(make_prediction: Predict, g: Geometry, origin: Any) -> None:
    """Every tile is there to a hundredth of a px, bounds subtracted where QuPath subtracts them, and says so."""
    p, row = _planted(make_prediction, g)
    found = json.loads(gzip.decompress(geojson_gz(p, origin)))
    dx, dy = (p.bounds.x0, p.bounds.y0) if origin == "bounds" else (0, 0)
    assert found["wsi_ips"]["origin"] == origin
    tiles = [f for f in found["features"] if f["properties"]["objectType"] == "tile"]
    assert len(tiles) == p.n_tiles
    for i, feature in enumerate(tiles):
        box = shapely.geometry.shape(feature["geometry"])
        x0, y0, x1, y1 = _box(p, i)
        _near(box.bounds, (x0 - dx, y0 - dy, x1 - dx, y1 - dy), 0.01)
    hot = tiles[row]["properties"]["measurements"]
    assert hot["selected"] == hot["selection rank"] == 1
    assert hot["evidence towards tumor"] == pytest.approx(0.7)
    assert hot["attention x N"] == pytest.approx(float(p.attention[row, 0]) * p.n_tiles, rel=1e-4)
    assert 0.99 < hot["attention rank"] <= 1.0
    top = next(f for f in found["features"] if f["properties"].get("name") == "top 1")
    assert top["geometry"] == tiles[row]["geometry"]
    assert top["properties"]["classification"]["color"]  # without a colour the import fails


def test_geojson_is_valid_for_everybody(make_prediction: Predict, tmp_path: Path) -> None:
    """geopandas opens it; every feature is valid, has a real UUID of its own, and no bare NaN."""
    geopandas = pytest.importorskip("geopandas")
    slide = ArraySlide(np.full((1811, 2003, 3), 230, np.uint8), bounds=Box0(11, 23, 1900, 1700))
    p = make_prediction(slide, tile_px=50, hot=9, m=30)
    data = gzip.decompress(geojson_gz(p))
    assert geojson_gz(p) == geojson_gz(p)
    (tmp_path / "x.geojson").write_bytes(data)
    frame = geopandas.read_file(tmp_path / "x.geojson")
    assert len(frame) == p.n_tiles + 16 + 1
    assert frame.geometry.is_valid.all()

    def refuse(text: str) -> float:
        raise AssertionError(text)

    features = json.loads(data, parse_constant=refuse)["features"]
    assert len({f["id"] for f in features}) == len(features)
    assert all(len(f["id"]) == 36 for f in features)


def test_a_slide_of_250000_tiles_stays_small(make_prediction: Predict) -> None:
    """Below 5 MB gzipped whatever the attention; every selected tile stands alone, every tile is covered once, valid."""
    side = 224.0 / 0.9
    y, x = np.mgrid[0:520, 0:640]
    inside = ((x - 320) / 330) ** 2 + ((y - 260) / 262) ** 2 < 1
    coords = np.rint(np.stack([x[inside], y[inside]], 1)[:250_000] * side + (1000, 500)).astype(np.int64)
    n, rng = len(coords), np.random.default_rng(0)
    assert n == 250_000
    attention = rng.gamma(0.3, size=(n, 1))  # no two neighbours alike: the worst to merge
    attention /= attention.sum()
    selected = np.argsort(-attention[:, 0])[:512]
    mask = np.repeat(np.repeat(inside, 2, 0), 2, 1)
    bounds = Box0(1000, 500, 160_000, 130_000)
    p = make_prediction(ArraySlide(np.zeros((99, 101, 3), np.uint8)), tile=TileSpec(size_px=224, mpp=0.5), coords=coords,
                        extent0=(side, side), tissue=np.ones(n, np.float32), attention=attention.astype(np.float32),
                        logits=np.log(attention)[..., None].astype(np.float32), selected=selected,
                        values=np.zeros((512, 4), np.float32), evidence=rng.normal(size=(512, 1)).astype(np.float32),
                        bounds=bounds, size0=(161_001, 130_501),
                        outline=TissueOutline(mask, 1000, 500, side / 2, side / 2))  # fmt: skip
    data = geojson_gz(p)
    assert len(data) <= MOST_BYTES < 5_000_000
    features = json.loads(gzip.decompress(data))["features"]
    shapes = shapely.from_geojson(json.dumps({"type": "GeometryCollection", "geometries": [f["geometry"] for f in features]}))
    parts = shapely.get_parts(shapes)
    assert shapely.is_valid(parts).all()
    measured = [f["properties"]["measurements"] for f in features if f["properties"]["objectType"] == "tile"]
    assert sum(m.get("tiles merged", 1) for m in measured) == n
    assert sum(m["selected"] for m in measured) == 512
    assert sum(m["attention"] * m.get("tiles merged", 1) for m in measured) == pytest.approx(1.0, abs=1e-3)
    tissue = next(s for s, f in zip(parts, features, strict=True) if f["properties"].get("name") == "tissue")
    assert tissue.area == pytest.approx(inside.sum() * side * side, rel=1e-3)


@geometries
def test_asap_annotations_are_in_level0_px(make_prediction: Predict, g: Geometry) -> None:
    """ASAP knows no bounds: places are those of level 0; every group that is named is declared."""
    p, row = _planted(make_prediction, g)
    root = ElementTree.fromstring(asap_xml(p))
    annotations = list(root.iter("Annotation"))
    groups = {group.attrib["Name"] for group in root.iter("Group")}
    assert {a.attrib["PartOfGroup"] for a in annotations} <= groups
    for kind, group, within in (("Rectangle", "top tiles", 0.01), ("Polygon", "top regions", 1.0)):
        one = next(a for a in annotations if a.attrib["PartOfGroup"] == group)
        assert one.attrib["Type"] == kind
        places = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in one.iter("Coordinate")]
        assert [c.attrib["Order"] for c in one.iter("Coordinate")] == [str(i) for i in range(len(places))]
        assert len(places) == 4
        _near(shapely.Polygon(places).bounds, _box(p, row), within)


@geometries
def test_tissue_is_traced_along_the_masks_px(make_prediction: Predict, g: Geometry) -> None:
    """The tissue of GeoJSON and XML is the mask's own px, a hole included, with the mask's own corner and scale."""
    p, _ = _planted(make_prediction, g)
    mask = np.zeros((9, 14), bool)
    mask[2:8, 3:12] = True
    mask[4:6, 5:9] = False
    p = replace(p, outline=TissueOutline(mask, p.bounds.x0 + 7, p.bounds.y0 + 13, 60.5, 59.25))
    found = json.loads(gzip.decompress(geojson_gz(p, "level0")))["features"]
    tissue = shapely.geometry.shape(next(f for f in found if f["properties"].get("name") == "tissue")["geometry"])
    x0, y0 = p.bounds.x0 + 7, p.bounds.y0 + 13
    _near(tissue.bounds, (x0 + 3 * 60.5, y0 + 2 * 59.25, x0 + 12 * 60.5, y0 + 8 * 59.25), 0.01)
    assert tissue.area == pytest.approx((9 * 6 - 4 * 2) * 60.5 * 59.25)
    rings = [a for a in ElementTree.fromstring(asap_xml(p)).iter("Annotation") if "tissue" in a.attrib["PartOfGroup"]]
    assert [a.attrib["PartOfGroup"] for a in rings] == ["tissue", "holes in tissue"]


@geometries
@pytest.mark.parametrize("zoom", [0.37, 1.0, 4.0])
def test_any_part_of_a_map_is_that_part(make_prediction: Predict, g: Geometry, zoom: float) -> None:
    """A window of a map, at any scale, shows the planted tile at its place to half a px: what a viewer draws."""
    p, row = _planted(make_prediction, g)
    x0, y0, x1, y1 = _box(p, row)
    window = Box0(int(x0) - 37, int(y0) - 53, int(x1 - x0) + 90, int(y1 - y0) + 101)
    rgba = map_rgba(p, tile_map(p, find_map(p, "evidence")), window, zoom)
    is_orange = (rgba[..., 0] > rgba[..., 2] + 0.15) & (rgba[..., 3] > 0)
    left, top, right, bottom = _edges(is_orange, zoom)
    found = (window.x0 + left, window.y0 + top, window.x0 + right, window.y0 + bottom)
    _near(found, (x0, y0, x1, y1), zoom / 2)


def test_every_map_has_a_name_and_a_legend_of_its_own(make_prediction: Predict) -> None:
    """No two maps share a name or a title; every legend says what is shown."""
    slide = ArraySlide(np.full((500, 701, 3), 230, np.uint8))
    p = make_prediction(slide, hot=3)
    p = replace(p, logits=np.repeat(p.logits, 2, axis=2), bag_evidence=np.zeros((p.n_tiles, 1), np.float32))
    infos = list_maps(p)
    assert [i.name for i in infos] == ["attention", "evidence", "evidence_bag", "head_1", "head_2", "selected"]
    assert len({i.title for i in infos}) == len(infos)
    labels = {i.name: tile_map(p, i).colouring.label for i in infos}
    assert "attention" in labels["head_1"]
    assert labels["evidence"].startswith("evidence towards tumor")
    assert "percentile" in tile_map(p, infos[0], "percentile").colouring.label
    heads = tile_map(p, infos[3])
    assert heads.values.sum() == pytest.approx(1.0)
