"""Masks (GeoJSON, XML, pictures) spoilt and made: a mask that restricts, or a refusal of the slide, and nothing else."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fuzzing import Document, fuzz, fuzz_test, try_some
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import json_values, mutated, odd_json
from PIL import Image

from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.tissue import TissueMask

SQUARE = [[[10, 10], [400, 10], [400, 300], [10, 300], [10, 10]]]
BOWTIE = [[[0, 0], [500, 400], [500, 0], [0, 400], [0, 0]]]
HOLED = [*SQUARE, [[50, 50], [60, 50], [60, 60], [50, 50]]]
JSONS = [
    json.dumps(d).encode()
    for d in (
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": HOLED}, "properties":
            {"classification": {"name": "Tumor", "colorRGB": -3670016}}}]},
        [{"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [SQUARE, BOWTIE]}}, {"type": "Feature", "geometry": None}],
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": BOWTIE}, {"type": "Point", "coordinates": [1.5, 2]}]},
    )
]  # fmt: skip
XMLS = (
    b'<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="None" Color="#F4FA58"><Coordinates>'
    b'<Coordinate Order="0" X="10.5" Y="10" /><Coordinate Order="1" X="400" Y="10" /><Coordinate Order="2" X="400" Y="300" /></Coordinates>'
    b"</Annotation></Annotations><AnnotationGroups /></ASAP_Annotations>",
    b'<Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions><Region Id="1" Type="0" NegativeROA="0"><Vertices><Vertex X="1" Y="2" Z="0"/>'
    b'<Vertex X="300" Y="2" Z="0"/><Vertex X="300" Y="250" Z="0"/></Vertices></Region></Regions></Annotation></Annotations>',
)
BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]><ASAP_Annotations>&c;</ASAP_Annotations>'
KEYS = ("type", "features", "geometry", "geometries", "coordinates", "properties", "classification", "name")


def _pictures() -> dict[str, bytes]:
    keep = np.zeros((50, 70), np.uint8)
    keep[5:30, 8:60] = 255
    png, tif = io.BytesIO(), io.BytesIO()
    Image.fromarray(keep).save(png, "png")
    tifffile.imwrite(tif, keep, compression="zlib")
    return {".png": png.getvalue(), ".tif": tif.getvalue()}


PICTURES = _pictures()


@st.composite
def _made_geojson(draw: DrawFn) -> bytes:
    """Right in most of its parts, odd in some."""
    number = st.one_of(st.integers(-50, 800), st.floats(-1e3, 1e3), odd_json())
    point = st.one_of(st.lists(number, min_size=2, max_size=3), odd_json())
    ring = st.one_of(st.lists(point, min_size=2, max_size=7), odd_json())
    polygon = st.one_of(st.lists(ring, max_size=3), odd_json())
    kind = st.sampled_from(("Polygon", "MultiPolygon", "Point", "LineString", "GeometryCollection", "Circle"))
    plain = st.fixed_dictionaries({"type": kind, "coordinates": st.one_of(polygon, st.lists(polygon, max_size=3))})
    geometry = st.recursive(
        plain, lambda g: st.fixed_dictionaries({"type": st.just("GeometryCollection"), "geometries": st.one_of(st.lists(g, max_size=3), odd_json())})
    )
    feature = st.fixed_dictionaries({"type": st.just("Feature"), "geometry": st.one_of(geometry, st.none(), odd_json())})
    features = st.lists(st.one_of(feature, geometry, odd_json()), max_size=4)
    whole = st.one_of(features, geometry, st.fixed_dictionaries({"type": st.just("FeatureCollection"), "features": st.one_of(features, odd_json())}))
    return json.dumps(draw(st.one_of(whole, json_values(KEYS)))).encode()


@st.composite
def _deep(draw: DrawFn) -> bytes:
    n = draw(st.sampled_from((9, 200, 20_000, 200_000)))
    left, right = draw(st.sampled_from(((b"[", b"]"), (b'{"type":"GeometryCollection","geometries":[', b"]}"), (b"<Annotation>", b"</Annotation>"))))
    return left * n + draw(st.sampled_from((b"", right * n)))


words = (b"[", b"]", b"{", b"}", b",", b'"', b"null", b"\\ud800", b"\xff", b"NaN", b"[[[[", b"Polygon", b"<Coordinate>", b"</Annotation>", b"&amp;", BOMB)
texts = st.one_of(mutated(JSONS, words), mutated((*XMLS, BOMB), words), _made_geojson(), _deep())
documents = st.one_of(
    st.builds(Document, texts, st.sampled_from((".geojson", ".json", ".xml"))),
    st.builds(Document, texts.map(gzip.compress), st.just(".geojson.gz")),
    st.builds(Document, mutated([gzip.compress(j) for j in JSONS]), st.just(".geojson.gz")),
    *(st.builds(Document, mutated((data,)), st.just(ending)) for ending, data in PICTURES.items()),
)


@pytest.fixture
def masks(tmp_path: Path) -> Callable[[Document], None]:
    """Lays a document on a slide that is tissue all over."""
    slide = ArraySlide(np.zeros((500, 700, 3), np.uint8), mpp=1.0)
    tissue = TissueMask(np.ones((50, 70), bool), 0, 0, 10.0, 10.0, 0.35)

    def mask(document: Document) -> None:
        path = tmp_path / f"mask{document.ending}"
        path.write_bytes(document.data)
        found = restrict_tissue(tissue, slide, path)
        assert found.mask.shape == (50, 70)
        assert found.mask.any()
        assert 0.0 < found.tissue_mm2 <= 0.35

    return mask


def test_some_spoilt_masks(masks: Callable[[Document], None]) -> None:
    """A few of what is below."""
    try_some(masks, documents)


@fuzz_test
def test_spoilt_masks(masks: Callable[[Document], None]) -> None:
    """Some of the tissue, or a `SlideError`."""
    fuzz(masks, documents)
