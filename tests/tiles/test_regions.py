"""A mask file only ever removes, lies where its polygons lie, and is refused clearly when it cannot be meant."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from shapely.geometry import MultiPolygon, Polygon, box

from wsi_ips.errors import NoTissueError, SlideError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.tiles.polygons import rasterize, read_polygons
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.tissue import TissueMask

SQUARE = [[160, 80], [480, 80], [480, 240], [160, 240], [160, 80]]
HOLE = [[240, 120], [320, 120], [320, 200], [240, 200], [240, 120]]


@pytest.fixture
def slide() -> ArraySlide:
    """Level 0 of 800 x 480; the mask's px are 16 x 16."""
    return ArraySlide(np.zeros((480, 800, 3), np.uint8), name="one.svs")


@pytest.fixture
def tissue() -> TissueMask:
    """Tissue but for the first row."""
    mask = np.ones((30, 50), bool)
    mask[0] = False
    return TissueMask(mask, 0, 0, 16.0, 16.0, 2.9)


def _feature(rings: list[Any], kind: str = "Polygon") -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": rings},
        "properties": {"classification": {"name": "x"}},
    }


def _write(folder: Path, data: Any, name: str = "roi.geojson") -> Path:
    path = folder / name
    text = data if isinstance(data, str) else json.dumps(data)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


FLAVOURS = {
    "collection": {"type": "FeatureCollection", "features": [_feature([SQUARE])]},
    "bare list": [_feature([SQUARE])],
    "one feature": _feature([SQUARE]),
    "bare geometry": {"type": "Polygon", "coordinates": [SQUARE]},
    "open ring": _feature([SQUARE[:-1]]),
    "three numbers a point": _feature([[[x, y, 0] for x, y in SQUARE]]),
    "multi": _feature([[SQUARE]], "MultiPolygon"),
    "geometry collection": {"type": "GeometryCollection", "geometries": [_feature([SQUARE])["geometry"]]},
    "two overlapping": [_feature([SQUARE]), _feature([HOLE])],
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["roi.geojson", "roi.json", "roi.geojson.gz"])
def test_every_flavour_of_geojson_restricts_alike(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, flavour: str, name: str
) -> None:
    """The mask px with their centre inside the polygon stay, the others go, exactly."""
    found = restrict_tissue(tissue, slide, _write(tmp_path, FLAVOURS[flavour], name))
    want = np.zeros((30, 50), bool)
    want[5:15, 10:30] = True
    assert np.array_equal(found.mask, want)
    assert found.tissue_mm2 == pytest.approx(2.9 * 200 / 1450)
    assert found.notes == ()
    assert (found.x0, found.y0, found.downsample_x) == (tissue.x0, tissue.y0, tissue.downsample_x)


def test_holes_are_honoured(tmp_path: Path, slide: ArraySlide, tissue: TissueMask) -> None:
    """Inner rings are cut out."""
    found = restrict_tissue(tissue, slide, _write(tmp_path, _feature([SQUARE, HOLE])))
    assert found.mask.sum() == 200 - 25
    assert not found.mask[8:12, 15:20].any()


def test_nothing_is_ever_added(tmp_path: Path, slide: ArraySlide, tissue: TissueMask) -> None:
    """A polygon over everything, also far beyond the slide, leaves the tissue as it was."""
    big = [[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]]
    assert np.array_equal(restrict_tissue(tissue, slide, _write(tmp_path, _feature([big]))).mask, tissue.mask)


def test_the_polygon_is_placed_in_level0_px_of_a_scan_with_bounds(tmp_path: Path, slide: ArraySlide) -> None:
    """Coordinates count from level 0's corner, not from the scan's."""
    inside = TissueMask(np.ones((20, 25), bool), 96, 48, 8.0, 8.0, 1.0)
    found = restrict_tissue(inside, slide, _write(tmp_path, _feature([SQUARE])))
    rows, columns = np.nonzero(found.mask)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (4, 20, 8, 25)


def test_fault_059_a_crossed_outline_is_repaired_with_a_note(tmp_path: Path, slide: ArraySlide, tissue: TissueMask) -> None:
    """Both halves of a bow tie stay; lines, points and empty geometries are counted and skipped."""
    bow = [[0, 32], [320, 352], [320, 32], [0, 352]]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}}
    found = restrict_tissue(
        tissue, slide, _write(tmp_path, [_feature([bow]), point, {"type": "Feature", "geometry": None}])
    )
    assert found.mask.sum() == pytest.approx(200, abs=20)
    assert [n.code for n in found.notes] == ["E_MASK_REPAIRED", "E_MASK_SKIPPED"]
    assert "1 polygons" in found.notes[0].message
    assert "2 points" in found.notes[1].message
    found = restrict_tissue(tissue, slide, _write(tmp_path, _feature([[SQUARE], []], "MultiPolygon")))
    assert [n.message for n in found.notes] == ["roi.geojson: 1 points, lines or empty geometries left out"]


def test_fault_059_nothing_left_is_no_tissue(tmp_path: Path, slide: ArraySlide, tissue: TissueMask) -> None:
    """A polygon beside the tissue, an empty list, only points: an empty slide with the file's name, not a failure."""
    for data in (
        _feature([[[9000, 9000], [9100, 9000], [9100, 9100]]]),
        [],
        {"type": "FeatureCollection", "features": []},
    ):
        with pytest.raises(NoTissueError, match=r"E_NO_TISSUE.*roi\.geojson"):
            restrict_tissue(tissue, slide, _write(tmp_path, data))


BROKEN = {
    "nan": (
        '[{"type":"Polygon","coordinates":[[[0,0],[NaN,5],[5,5]]]}]',
        "element 1: a coordinate is not a finite number",
    ),
    "inf": ('{"type":"Polygon","coordinates":[[[0,0],[Infinity,5],[5,5]]]}', "not a finite number"),
    "text": ([_feature([SQUARE]), _feature([[["1", "2"], ["3", "4"], ["5", "6"]]])], "element 2: a coordinate is not"),
    "mixed": (_feature([[[0, 0], ["3", 4], [5, 6]]]), "not a finite number"),
    "null": (_feature([[[0, 0], [None, 4], [5, 6]]]), "element 1"),
    "true": (_feature([[[True, True], [False, False], [True, False]]]), "not a finite number"),
    "flat": (_feature([[0, 0, 5, 5]]), "element 1: a point is not a pair of numbers"),
    "two points": (_feature([[[0, 0], [5, 5]]]), "a ring of 2 points"),
    "huge": (_feature([[[0, 0], [1e300, 5], [5, 5]]]), "beyond any slide"),
    "no list": (_feature({"x": 1}), "expected a list"),  # type: ignore[arg-type]
    "unknown kind": (_feature([SQUARE], "Circle"), "'Circle' is not known"),
    "number": ("17", "element 1 is no GeoJSON feature"),
    "not json": ("<xml/>", "not GeoJSON"),
    "cut": ('{"type": "Polygon", "coordinates": [[[0,0],', "not GeoJSON"),
    "deep": ("[" * 100_000, "not GeoJSON (it is nested 100000 deep"),
    "endless digits": ('{"type":"Polygon","coordinates":[[[0,0],[1' + "0" * 400 + ",0.5],[5,5]]]}", "not a finite number"),
    "too large": ('{"type":"Polygon","coordinates":[[[0,0],[1e999,5],[5,5]]]}', "not a finite number"),
    "no points": (_feature([[]]), "a ring of 0 points"),
    "camelyon json": ({"positive": [{"name": "a", "vertices": [[0, 0]]}], "negative": []}, "no GeoJSON feature"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_fault_057_and_058_broken_geojson_names_the_element(tmp_path: Path, slide: ArraySlide, tissue: TissueMask, case: str) -> None:
    """Whatever is wrong inside the file is one clear error with the file's name, never a guess."""
    data, words = BROKEN[case]
    with pytest.raises(SlideError, match=r"E_MASK: roi\.geojson.*") as caught:
        restrict_tissue(tissue, slide, _write(tmp_path, data))
    assert words in str(caught.value)


def test_damaged_or_missing_files_are_refused(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, not gzip, cut gzip, unpacking to too much, no image, another kind of file: E_MASK each."""
    good = _write(tmp_path, _feature([SQUARE]), "good.geojson.gz").read_bytes()
    files = {"gone.geojson": None, "plain.geojson.gz": b"{}", "cut.geojson.gz": good[:-20], "bad.png": b"\x89PNG\r\n",
             "bad.tif": b"II*\x00\x08\x00", "photo.jpg": b"\xff\xd8", "gone.png": None}  # fmt: skip
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=f"E_MASK: {name}"):
            restrict_tissue(tissue, slide, tmp_path / name)
    monkeypatch.setattr("wsi_ips.tiles.polygons._MAX_BYTES", 1000)
    with pytest.raises(SlideError, match="E_MASK: bomb"):
        restrict_tissue(tissue, slide, _write(tmp_path, " " * 5000, "bomb.geojson.gz"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("scale", [0.05, 0.25, 1.0])
def test_a_png_of_any_resolution_and_mode_restricts(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, mode: str, scale: float
) -> None:
    """Non-zero px keep; an image at 1/20 of level 0 and at full size mean the same."""
    grey = np.zeros((round(480 * scale), round(800 * scale)), np.uint8)
    grey[round(160 * scale) :, : round(400 * scale)] = 1
    image = Image.fromarray(grey * 255 if mode == "1" else grey)
    (Image.fromarray(grey.astype(np.uint16)) if mode == "I;16" else image.convert(mode)).save(tmp_path / "m.png")
    found = restrict_tissue(tissue, slide, tmp_path / "m.png")
    want = np.zeros((30, 50), bool)
    want[10:, :25] = True
    assert np.array_equal(found.mask, want)


def test_a_transparent_part_removes(tmp_path: Path, slide: ArraySlide, tissue: TissueMask) -> None:
    """What is transparent is not kept, whatever colour lies under it."""
    pixels = np.full((48, 80, 4), 255, np.uint8)
    pixels[:, 40:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert restrict_tissue(tissue, slide, tmp_path / "m.png").mask.sum() == 29 * 25


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_pyramidal_tiff_restricts_by_its_finest_usable_level(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, monkeypatch: pytest.MonkeyPatch, planar: str
) -> None:
    """Levels too large to decode are passed over by their header."""
    pixels = np.zeros((480, 800, 3), np.uint8)
    pixels[240:] = 9
    with tifffile.TiffWriter(tmp_path / "m.tif") as tiff:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "planarconfig": planar}
        for k in (1, 4):
            level = pixels[::k, ::k]
            data = level if planar == "contig" else np.moveaxis(level, -1, 0)
            tiff.write(data, subifds=1 if k == 1 else None, subfiletype=0 if k == 1 else 1, **options)
    for most in (10**8, 30_000):
        monkeypatch.setattr("wsi_ips.tiles.regions._MAX_PX", most)
        found = restrict_tissue(tissue, slide, tmp_path / "m.tif")
        assert found.mask[15:].all()
        assert not found.mask[:15].any()
    monkeypatch.setattr("wsi_ips.tiles.regions._MAX_PX", 1000)
    with pytest.raises(SlideError, match="E_MASK_SIZE"):
        restrict_tissue(tissue, slide, tmp_path / "m.tif")


@pytest.mark.parametrize(
    ("height", "width", "fits"), [(48, 80, True), (96, 161, True), (48, 81, False), (80, 48, False)]
)
def test_fault_061_another_shape_than_the_slides_is_refused(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, height: int, width: int, fits: bool
) -> None:
    """The sides' ratio may differ by one per cent; the error gives both sizes."""
    Image.fromarray(np.ones((height, width), np.uint8)).save(tmp_path / "m.png")
    if fits:
        assert np.array_equal(restrict_tissue(tissue, slide, tmp_path / "m.png").mask, tissue.mask)
        return
    with pytest.raises(SlideError, match=f"E_MASK_SIZE.*{width} x {height} px for a slide of 800 x 480"):
        restrict_tissue(tissue, slide, tmp_path / "m.png")


def test_fault_060_an_image_that_promises_too_much_is_refused_unread(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask
) -> None:
    """A PNG header of 10^12 px is refused by its header."""
    image = bytearray(_png(tmp_path))
    image[16:24] = (1_600_000).to_bytes(4, "big") + (960_000).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(image))
    with pytest.raises(SlideError, match=r"E_MASK"):
        restrict_tissue(tissue, slide, tmp_path / "bomb.png")


def test_fault_060_channels_count_towards_an_images_size(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few px of very many samples are as large as very many px."""
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((48, 80, 16), np.uint8), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr("wsi_ips.tiles.regions._MAX_PX", 48 * 80)
    with pytest.raises(SlideError, match="E_MASK_SIZE"):
        restrict_tissue(tissue, slide, tmp_path / "m.tif")


def test_fault_060_a_png_of_many_px_in_few_bytes_is_refused_unread(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask
) -> None:
    """900 million px of one colour fit into a few hundred KiB; the header is enough to refuse them."""
    head = struct.pack(">IIBBBBB", 38_730, 23_238, 1, 0, 0, 0, 0)  # the slide's own ratio
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(2_000_000))), (b"IEND", b""))
    packed = b"".join(len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + packed)
    with pytest.raises(SlideError, match=r"E_MASK_SIZE: bomb\.png"):
        restrict_tissue(tissue, slide, tmp_path / "bomb.png")


def test_fault_056_entities_in_a_masks_description_are_refused(
    tmp_path: Path, slide: ArraySlide, tissue: TissueMask
) -> None:
    """A mask's OME-XML is read by the TIFF library, so it is looked at before."""
    text = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><OME xmlns="http://www.openmicroscopy.org/">&b;</OME>'
    tifffile.imwrite(tmp_path / "m.ome.tif", np.ones((48, 80), np.uint8), description=text, metadata=None)
    with pytest.raises(SlideError, match=r"E_MASK: m\.ome\.tif: the XML in its description may define entities"):
        restrict_tissue(tissue, slide, tmp_path / "m.ome.tif")


def test_an_outline_of_many_long_edges_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts or at once, the mask is the same; a part's numbers are bounded."""
    x = np.repeat(np.arange(0, 400, 1.0), 2)
    teeth = np.stack([x, np.tile([5.0, 250.0, 250.0, 5.0], 200)], axis=1)
    area = MultiPolygon([Polygon([*teeth, (400, 300), (0, 300)])])
    at_once = rasterize(area, (300, 500), (0, 0), (1.0, 1.0))
    monkeypatch.setattr("wsi_ips.tiles.polygons._MAX_CROSSINGS", 1000)
    assert np.array_equal(rasterize(area, (300, 500), (0, 0), (1.0, 1.0)), at_once)
    assert at_once.sum() == pytest.approx(area.area, rel=0.02)


def _png(folder: Path) -> bytes:
    Image.fromarray(np.ones((48, 80), np.uint8)).save(folder / "small.png")
    return (folder / "small.png").read_bytes()


def test_rasterizing_agrees_with_asking_every_centre() -> None:
    """For ragged polygons with holes, a mask px is set exactly when its centre lies inside."""
    rng = np.random.default_rng(4)
    for seed in range(6):
        angles = np.sort(rng.random(40)) * 2 * np.pi
        radii = 60 + 50 * rng.random(40)
        outer = Polygon(np.stack([130 + radii * np.cos(angles), 100 + radii * np.sin(angles)], axis=1))
        area = MultiPolygon([outer.difference(box(100 + seed, 80, 150, 120.5)), box(250, -30, 300.25, 77.7)])
        mask = rasterize(area, (37, 71), (-10, 5), (4.5, 5.25))
        y, x = np.mgrid[:37, :71]
        want = shapely.contains_xy(area, -10 + (x + 0.5) * 4.5, 5 + (y + 0.5) * 5.25)
        assert np.array_equal(mask, want)


@pytest.mark.parametrize(
    ("name", "n_least"),
    [("camelyon17/patient_012_node_0.geojson", 30), ("qupath/dlup_qupath05.geojson", 3),
     ("qupath/histoqc_geojson_example.json", 2), ("wsidicom/qupath-polygon.json", 1),
     ("wsidicom/qupath-rectangle.json", 1), ("wsidicom/qupath-wand.json", 1)],
)  # fmt: skip
def test_real_annotations_are_read(shared_data: Path, name: str, n_least: int) -> None:
    """Files that QuPath and others wrote give their polygons, and land on a mask with their own area."""
    area = read_polygons(shared_data / "annotations" / name).area
    assert len(area.geoms) >= n_least
    x0, y0, x1, y1 = (int(v) for v in area.bounds)
    step = max((x1 - x0) / 700, (y1 - y0) / 700)
    shape = (int((y1 - y0) / step) + 2, int((x1 - x0) / step) + 2)
    mask = rasterize(area, shape, (x0, y0), (step, step))
    assert mask.sum() * step**2 == pytest.approx(area.area, rel=0.02)


@pytest.mark.parametrize("name", ["wsidicom/qupath-point.json", "wsidicom/qupath-line.json"])
def test_real_points_and_lines_enclose_nothing(
    shared_data: Path, slide: ArraySlide, tissue: TissueMask, name: str
) -> None:
    """A file of points only restricts to nothing."""
    with pytest.raises(NoTissueError):
        restrict_tissue(tissue, slide, shared_data / "annotations" / name)


def test_bounds_do_not_matter_to_an_image(tmp_path: Path, tissue: TissueMask) -> None:
    """A mask image covers all of level 0, also where only a part was scanned."""
    slide = ArraySlide(np.zeros((480, 800, 3), np.uint8), bounds=Box0(400, 240, 400, 240))
    image = np.zeros((48, 80), np.uint8)
    image[:, 60:] = 1
    Image.fromarray(image).save(tmp_path / "m.png")
    inside = TissueMask(np.ones((15, 25), bool), 400, 240, 16.0, 16.0, 1.0)
    found = restrict_tissue(inside, slide, tmp_path / "m.png").mask
    want = np.zeros((15, 25), bool)
    want[:, 12:] = True  # the centre of column 12 lies at 400 + 12.5 * 16 = 600
    assert np.array_equal(found, want)
