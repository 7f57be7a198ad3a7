"""DICOM maps: read back by two libraries, the numbers are the ledger's and lie where the slide's tiles do."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicomfile import TURNED, write_wsi

from wsi_ips.config import TaskSettings
from wsi_ips.engine.drawoptions import DEFAULT_FORMATS, DrawOptions
from wsi_ips.engine.formats import format_files
from wsi_ips.errors import ConfigError
from wsi_ips.report.dicommap import dicom_map
from wsi_ips.report.maps import find_map, list_maps, tile_map
from wsi_ips.results import SlidePrediction, ledger_bytes
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.reader import open_slide
from wsi_ips.slidefiles import find_slides

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

_WIDTH, _HEIGHT = 1537, 1011
_FLAT = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
MakePrediction = Callable[..., SlidePrediction]


@pytest.fixture(scope="module")
def drawn(make_slide: Callable[..., ArraySlide]) -> np.ndarray:
    """Level 0 of the slide that is written."""
    return make_slide(_WIDTH, _HEIGHT).read_region(0, 0, 0, _WIDTH, _HEIGHT).pixels


def _total_matrix(data: bytes) -> np.ndarray:
    """Put the frames together with pydicom alone: (h, w) float32."""
    d = pydicom.dcmread(io.BytesIO(data))
    rows, columns = d.TotalPixelMatrixRows, d.TotalPixelMatrixColumns
    down, across = -(-rows // d.Rows), -(-columns // d.Columns)
    frames = np.frombuffer(d.FloatPixelData, "<f4").reshape(down, across, d.Rows, d.Columns)
    return frames.transpose(0, 2, 1, 3).reshape(down * d.Rows, across * d.Columns)[:rows, :columns]


def _to_reference(image: Any) -> Any:
    """Take image coordinates (corner of the first px is 0, 0) to mm on the slide."""
    origin = image.TotalPixelMatrixOriginSequence[0]
    position = (origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem,
                origin.get("ZOffsetInSlideCoordinateSystem", 0.0))  # fmt: skip
    spacing = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    args = ([float(v) for v in position], [float(v) for v in image.ImageOrientationSlide], [float(v) for v in spacing])
    return hd.spatial.ImageToReferenceTransformer(*args), hd.spatial.ReferenceToImageTransformer(*args)


def _level0_places(data: bytes, slide: Any, points: np.ndarray) -> np.ndarray:
    """Take points (n, 2) of the map (x, y) through the frame of reference to level-0 px of the slide."""
    to_mm = _to_reference(pydicom.dcmread(io.BytesIO(data)))[0]
    places = np.asarray(_to_reference(slide)[1](to_mm(np.asarray(points, np.float64))))
    assert np.abs(places[:, 2:]).max() < 1e-6  # in the plane of the slide
    return places[:, :2]


@pytest.mark.parametrize("orientation", [TURNED, _FLAT])
def test_the_hot_tile_lies_where_it_was_planted(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction, orientation: tuple[float, ...]
) -> None:
    """Through the frame of reference, corners of the map and edges of a tile are those of level 0."""
    wsi = write_wsi(tmp_path / "a.dcm", drawn, orientation=orientation)
    with open_slide(tmp_path / "a.dcm") as slide:
        hot = 64
        p = make_prediction(slide, tile_px=61, step_px=61, hot=hot, times=40.0)
        np.testing.assert_array_equal(slide.read_region(300, 200, 0, 99, 88).pixels, drawn[200:288, 300:399])
    tiles = tile_map(p, find_map(p, "attention"))
    data = dicom_map(tmp_path / "a.dcm", p, tiles)
    found = _total_matrix(data)
    downsample = 8  # the largest power of two of at most 61 / 4
    assert found.shape == (-(-_HEIGHT // downsample), -(-_WIDTH // downsample))
    corners = np.array([(0.0, 0.0), (found.shape[1], 0), (0, found.shape[0]), (found.shape[1], found.shape[0])])
    np.testing.assert_allclose(_level0_places(data, wsi, corners), corners * downsample, atol=1e-3)
    rows, columns = np.nonzero(found == found.max())
    edges = np.array([(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)])
    x0, y0 = p.coords[hot]
    places = _level0_places(data, wsi, edges)
    inner = [(x0, y0), (x0 + 61, y0 + 61)]
    # px wholly inside the tile are the hottest: less than a px of the map is lost at either edge
    assert (places[0] - inner[0] >= -1e-3).all()
    assert (inner[1] - places[1] >= -1e-3).all()
    assert (np.abs(places - inner) < downsample).all()
    weight = found - np.median(found[found > 0])
    weight[np.abs(np.indices(found.shape)[0] * downsample - y0) > 100] = 0
    weight[:, np.abs(np.arange(found.shape[1]) * downsample - x0) > 100] = 0
    y, x = np.indices(found.shape) + 0.5
    centre = np.array([[(weight * x).sum(), (weight * y).sum()]]) / weight.sum()
    np.testing.assert_allclose(_level0_places(data, wsi, centre), [(x0 + 30.5, y0 + 30.5)], atol=downsample / 8)


def test_values_are_the_ledgers_in_both_libraries(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """Attention x N in every px of a tile, 0 where none is; no unit, no NaN, an identity mapping."""
    write_wsi(tmp_path / "a.dcm", drawn)
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, tile_px=64, hot=5, times=40.0)
    keep = np.arange(p.n_tiles) % 7 != 3  # holes in the grid
    p = SlidePrediction(**{**vars(p), "coords": p.coords[keep], "attention": p.attention[keep] / p.attention[keep].sum(axis=0),
                           "logits": p.logits[keep], "tissue": p.tissue[keep], "selected": p.selected[p.selected < 30]})  # fmt: skip
    tiles = tile_map(p, find_map(p, "attention"))
    data = dicom_map(tmp_path / "a.dcm", p, tiles)
    found = _total_matrix(data)
    expected = np.zeros_like(found)
    for (x0, y0), value in zip(p.coords // 16, tiles.shown, strict=True):
        expected[y0 : y0 + 4, x0 : x0 + 4] = value
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found == 0).any()
    image = hd.imread(io.BytesIO(data))
    np.testing.assert_array_equal(image.get_total_pixel_matrix(apply_real_world_transform=True), found)
    d = pydicom.dcmread(io.BytesIO(data))
    assert d.FloatPixelPaddingValue == 0.0
    mapping = d.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeMeaning == "no units"
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == found.max()
    assert "(1 = uniform" in mapping.LUTExplanation


def test_a_stored_level_gives_its_spacing_and_place(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """Where the series stores a level that is coarse enough, the map has that level's grid, for viewers to pair them."""
    wsi = write_wsi(tmp_path / "a.dcm", drawn)
    small = cv2.resize(drawn, (_WIDTH // 4, _HEIGHT // 4), interpolation=cv2.INTER_AREA)
    stored = write_wsi(tmp_path / "b.dcm", small, number=2, downsample=4)
    with open_slide(tmp_path) as slide:
        assert len(slide.levels) == 2
        p = make_prediction(slide, tile_px=61, hot=64)
    data = dicom_map(tmp_path, p, tile_map(p, find_map(p, "attention")))
    d = pydicom.dcmread(io.BytesIO(data))
    ours, theirs = (x.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing for x in (d, stored))
    np.testing.assert_allclose([float(v) for v in ours], [float(v) for v in theirs], rtol=1e-9)
    for axis in "XY":
        name = f"{axis}OffsetInSlideCoordinateSystem"
        assert float(d.TotalPixelMatrixOriginSequence[0][name].value) == pytest.approx(
            float(stored.TotalPixelMatrixOriginSequence[0][name].value), abs=1e-9
        )
    np.testing.assert_allclose(_level0_places(data, wsi, np.array([(100.0, 50.0)])), [(400.0, 200.0)], atol=1e-3)
    assert data == dicom_map(tmp_path / "b.dcm", p, tile_map(p, find_map(p, "attention")))


def test_it_belongs_to_the_slides_patient_study_and_specimen(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """The context is the slide's, the series is new and names map and model, the source is referred to."""
    wsi = write_wsi(tmp_path / "a.dcm", drawn)
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, hot=5)
    d = pydicom.dcmread(io.BytesIO(dicom_map(tmp_path / "a.dcm", p, tile_map(p, find_map(p, "attention")))))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "AccessionNumber", "FrameOfReferenceUID", "ContainerIdentifier", "ImageOrientationSlide",
                    "SpecimenDescriptionSequence"):  # fmt: skip
        assert d[keyword].value == wsi[keyword].value, keyword
    assert d.SOPClassUID == pydicom.uid.ParametricMapStorage
    assert d.SeriesInstanceUID != wsi.SeriesInstanceUID
    assert d.SeriesDescription == "attention of model 0123456789ab"
    assert p.model_hash in d.DerivationDescription
    assert "Research use only" in d.DerivationDescription
    assert d.SourceImageSequence[0].ReferencedSOPInstanceUID == wsi.SOPInstanceUID
    assert d.ContentQualification == "RESEARCH"
    assert (d.ContentDate, d.ContentTime) == (wsi.ContentDate, wsi.ContentTime)


def test_fault_134_what_a_dicom_file_says_of_a_patient_is_in_dicom_maps_alone(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """Ledger and tables of QuPath and ASAP hold no name, number, date or UID; a DICOM map, made when asked for, belongs to its patient."""
    wsi = write_wsi(tmp_path / "a.dcm", drawn)
    assert "dicom" not in DEFAULT_FORMATS
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, hot=5)
        files = format_files(slide, p, DrawOptions(("geojson", "asap", "ome", "tif")))
    told = [ledger_bytes(p), *(gzip.decompress(data) if name.endswith(".gz") else data for name, data in files.items())]
    for secret in ("Doe", "P-17", "19500102", "A-9", str(wsi.StudyInstanceUID), str(wsi.SeriesInstanceUID), str(wsi.SOPInstanceUID)):
        assert not any(secret.encode() in data for data in told), secret
    assert b"P-17" in dicom_map(tmp_path / "a.dcm", p, tile_map(p, find_map(p, "attention")))


def test_the_same_map_gives_the_same_bytes(tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction) -> None:
    """No clock and no dice: only another map, model or slide makes another instance."""
    write_wsi(tmp_path / "a.dcm", drawn)
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, hot=5)
        other = make_prediction(slide, hot=5, model_hash="ff" * 32)
    files = [dicom_map(tmp_path / "a.dcm", p, tile_map(p, info)) for info in list_maps(p)]
    assert files[0] == dicom_map(tmp_path / "a.dcm", p, tile_map(p, list_maps(p)[0]))
    files += [dicom_map(tmp_path / "a.dcm", p, tile_map(p, list_maps(p)[0], "percentile"))]
    files += [dicom_map(tmp_path / "a.dcm", other, tile_map(other, list_maps(p)[0]))]
    assert len({pydicom.dcmread(io.BytesIO(f)).SOPInstanceUID for f in files}) == len(files)


def test_a_map_beside_its_slide_is_no_second_slide(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """In a folder that holds slide and map, as archives hand out a study, the slide is listed and opens as before."""
    study = tmp_path / "study"
    study.mkdir()
    write_wsi(study / "b.dcm", drawn)
    with open_slide(study) as slide:
        p = make_prediction(slide, hot=5)
        levels = slide.levels
    data = dicom_map(study, p, tile_map(p, find_map(p, "attention")))
    (study / "a.dcm").write_bytes(data)
    assert find_slides(tmp_path) == [study]
    with open_slide(study) as slide:
        assert slide.levels == levels
        assert slide.notes == ()
    assert dicom_map(study, p, tile_map(p, find_map(p, "attention"))) == data
    with pytest.raises(ConfigError, match="without a level of a slide"):
        dicom_map(study / "a.dcm", p, tile_map(p, find_map(p, "attention")))


def test_evidence_keeps_its_sign_and_selected_its_order(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction
) -> None:
    """Evidence is signed and an activation of a class; the chosen tiles hold their rank, the first 1."""
    write_wsi(tmp_path / "a.dcm", drawn)
    task = TaskSettings(name="Grad × naïve", kind="multiclass", classes=("läge", "b", "c"))
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, tile_px=64, m=9, tasks=(task,))
    for info in list_maps(p):  # a name that ASCII does not have is no obstacle
        data = dicom_map(tmp_path / "a.dcm", p, tile_map(p, info))
        d, found = pydicom.dcmread(io.BytesIO(data)), _total_matrix(data)
        quantity = d.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].QuantityDefinitionSequence[0]
        said = quantity.ConceptCodeSequence[0].CodeMeaning
        window = d.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
        assert window.VOILUTFunction == "LINEAR_EXACT"  # the plain one has no windows narrower than 1
        x, y = (p.coords[p.selected] // 16 + 1).T
        if info.kind == "evidence":
            assert said == "Class activation"
            assert (window.WindowCenter, window.WindowWidth) == (0.0, 2 * tile_map(p, info).colouring.high)
            np.testing.assert_allclose(found[y, x], tile_map(p, info).values, rtol=1e-6)
            assert found.min() < 0 < found.max()
        elif info.kind == "selected":
            np.testing.assert_array_equal(found[y, x], np.arange(1, 10))
        else:
            assert said == "Saliency"


def test_slides_that_have_no_place_in_dicom_are_refused(
    tmp_path: Path, drawn: np.ndarray, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide of another format or size, a series without levels, a missing library: each is said in words."""
    wsi = write_wsi(tmp_path / "a.dcm", drawn)
    with open_slide(tmp_path / "a.dcm") as slide:
        p = make_prediction(slide, hot=5)
    tiles = tile_map(p, find_map(p, "attention"))
    (tmp_path / "slide.tif").write_bytes(b"II*\0" + bytes(500))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "slide.tif", tmp_path / "empty", tmp_path / "absent.dcm"):
        with pytest.raises(ConfigError, match="belongs to a DICOM slide, and this is none"):
            dicom_map(path, p, tiles)
    other = SlidePrediction(**{**vars(p), "size0": (_HEIGHT, _WIDTH)})
    with pytest.raises(ConfigError, match="1537 x 1011 px, the prediction was made from 1011 x 1537 px"):
        dicom_map(tmp_path / "a.dcm", other, tiles)
    del wsi.SharedFunctionalGroupsSequence
    wsi.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(ConfigError, match="SharedFunctionalGroupsSequence"):
        dicom_map(tmp_path / "a.dcm", p, tiles)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install \"wsi-ips\[dicom\]\""):
        dicom_map(tmp_path / "a.dcm", p, tiles)


@pytest.mark.parametrize("name", ["dicom-cmu", "dicom-lung"])
def test_a_real_slide_takes_a_map(name: str, shared_data: Path, make_prediction: MakePrediction) -> None:
    """On files of a converter: same frame of reference, and corners that meet within half a px of the map."""
    folder = shared_data / "slides" / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    with open_slide(folder, mpp=0.5) as slide:
        p = make_prediction(slide, tile_px=224, hot=7)
    data = dicom_map(folder, p, tile_map(p, find_map(p, "attention")))
    d, found = pydicom.dcmread(io.BytesIO(data)), _total_matrix(data)
    levels = [pydicom.dcmread(f, stop_before_pixels=True) for f in folder.iterdir()]
    source = max((x for x in levels if x.ImageType[2] == "VOLUME"), key=lambda x: x.TotalPixelMatrixRows)
    assert d.FrameOfReferenceUID == source.FrameOfReferenceUID
    downsample = 32 if name == "dicom-cmu" else 16  # a power of two; the coarsest stored level
    assert found.shape == (-(-p.size0[1] // downsample), -(-p.size0[0] // downsample))
    assert found[p.coords[7, 1] // downsample + 3, p.coords[7, 0] // downsample + 3] == found.max()
    corners = np.array([(0.0, 0.0), (found.shape[1], found.shape[0])])
    apart = np.abs(_level0_places(data, source, corners) - corners * downsample).max()
    assert apart < (1e-3 if name == "dicom-cmu" else downsample / 2)  # dicom-lung says all levels begin at one point
