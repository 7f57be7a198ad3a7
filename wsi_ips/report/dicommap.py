"""A map as a DICOM parametric map: the numbers themselves, in the frame of reference of a DICOM slide.

Only a slide that is DICOM itself has a frame of reference, a study and a specimen that a map could belong to.

A viewer sees one more series of the study, "attention of model 0123456789ab", modality OT, of floating-point tiles.
Every value is what the pictures show (attention x N, evidence as a difference of logit, percentile, rank), by an
identity mapping, without units. A px under which no tile has a value is 0 and Float Pixel Padding Value is 0: NaN is
allowed by the standard but drawn by few viewers. Attention, percentile and rank are never 0; in a map of evidence a
tile of exactly no influence cannot be told from one that was not used, and the map `selected` tells which were.

Frames: level-0 px (suffix `0`); px of the map; mm of the slide coordinate system, in which DICOM gives the centre of
the first px of a matrix. Source: DICOM PS3.3 A.75 (parametric map), C.8.12.14 (tile organization).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsi_ips import __version__
from wsi_ips.errors import ConfigError, UnreadableSlideError
from wsi_ips.geometry import Box0
from wsi_ips.minimums import refuse_too_old
from wsi_ips.report.heatmap import raster_of_tiles, raster_size
from wsi_ips.report.maps import TileMap, list_maps
from wsi_ips.report.provenance import file_said
from wsi_ips.report.readout import RESEARCH_USE
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.dicom import choose_from_folder, read_dicom_file, series_files

__all__ = ["dicom_map"]

_MAX_PX = 16_000_000
_PX_PER_TILE = 4  # at least, so that a tile's edge shows
_FRAME_PX = 256
_SERIES_NUMBER = 9001  # far from those of scanners, which count from 1
_NAMESPACE = uuid.UUID("6f1c3a52-9a57-5d0e-8f0b-3f4f1f9f7c11")  # any constant, but always the same
_PROCESSING = "109102"  # DCM, "Processing Equipment": the library that wrote the file, and when
_EMPTY_IF_ABSENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                    "StudyTime")  # fmt: skip


class _Grid(NamedTuple):
    """Where the map's px lie."""

    downsample: float  # level-0 px per px of the map
    spacing_mm: tuple[float, float]  # between rows, between columns
    origin_mm: tuple[float, float, float]  # centre of the first px


def dicom_map(slide_path: str | os.PathLike[str], prediction: SlidePrediction, tiles: TileMap) -> bytes:
    """Write a map as a DICOM Parametric Map instance of the slide's study.

    The patient, study and specimen modules are copied from the slide's file, as the standard demands of a derived
    instance: the map carries what the slide carries of the patient, and nothing else. The same slide, prediction and
    map give the same bytes: UIDs are hashes, dates are the slide's.

    One px of the map is `downsample` level-0 px: that of the coarsest stored level that leaves a step between tiles
    at least 4 px, whose stated place is then taken too, since viewers pair a map with a level; where there is none, a
    power of two. Spacing is the file's own, also where the manifest gave another µm per px.

    Args:
        slide_path: the slide, a DICOM file or the folder of its series.
        prediction: made from that slide.
        tiles: the map.

    Returns:
        A DICOM file: float32, TILED_FULL, explicit VR little endian.

    Raises:
        ConfigError: the slide is no DICOM slide or not that of the prediction, its file lacks what a map refers to, or
            highdicom is not installed.
    """
    name, paths = _volume_files(slide_path)
    pydicom = _import_highdicom()[1]
    try:
        source, *levels = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
        _check_same(name, source, prediction)
        grid = _place(source, levels, prediction)
        return _write(source, grid, _values(prediction, tiles, grid.downsample), prediction, tiles)
    except ConfigError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{name}: its DICOM header does not allow a parametric map ({error})") from error


def _import_highdicom() -> tuple[Any, Any]:
    try:
        import highdicom
        import pydicom
    except ImportError as error:
        raise ConfigError('DICOM maps need highdicom: pip install "wsi-ips[dicom]"') from error
    refuse_too_old()
    return highdicom, pydicom


def _volume_files(slide_path: str | os.PathLike[str]) -> tuple[str, list[Path]]:
    """Name the slide and find the files of its levels, finest first."""
    path = Path(slide_path)
    foreign = f"{path.name}: a DICOM map belongs to a DICOM slide, and this is none; take another format of map"
    try:
        file = choose_from_folder(path) if path.is_dir() else path
    except UnreadableSlideError as error:
        raise ConfigError(f"{foreign} ({error.message})") from error
    own = read_dicom_file(file)
    if own is None:
        raise ConfigError(foreign)
    volumes = [f for f in [own, *series_files(file)] if f.is_volume]
    if not volumes:
        raise ConfigError(f"{path.name}: a DICOM file without a level of a slide (ImageType VOLUME) in its series")
    return path.name, [f.path for f in sorted(volumes, key=lambda f: (-f.width * f.height, f.path.name))]


def _check_same(name: str, source: Any, p: SlidePrediction) -> None:
    found = (int(source.TotalPixelMatrixColumns), int(source.TotalPixelMatrixRows))
    if found != tuple(p.size0):
        raise ConfigError(
            f"{name}: level 0 has {found[0]} x {found[1]} px, the prediction was made from {p.size0[0]} x {p.size0[1]} px; "
            "give the slide that was classified"
        )


def _place(source: Any, levels: Sequence[Any], p: SlidePrediction) -> _Grid:
    """Choose the map's px, and where the first lies."""
    whole = Box0(0, 0, *p.size0)
    most = min(p.extent0) * (p.tile.size_px - p.tile.overlap_px) / p.tile.size_px / _PX_PER_TILE
    stored = [(d, level) for level in levels if (d := _downsample_of(level, source)) and d <= most]
    stored = [(d, level) for d, level in stored if math.prod(raster_size(whole, d)) <= _MAX_PX]
    if stored:
        downsample, level = max(stored, key=lambda pair: pair[0])
        return _Grid(downsample, _spacing(level), _origin(level))
    downsample = 2.0 ** max(0, math.floor(math.log2(max(most, 1.0))))
    while math.prod(raster_size(whole, downsample)) > _MAX_PX:
        downsample *= 2.0
    between_rows, between_columns = _spacing(source)
    along_row, along_column = np.reshape([float(v) for v in source.ImageOrientationSlide], (2, 3))
    # from the centre of a level-0 px to that of the map's px around it
    half = (downsample - 1.0) / 2.0
    origin = np.array(_origin(source)) + half * (along_row * between_columns + along_column * between_rows)
    return _Grid(downsample, (between_rows * downsample, between_columns * downsample), tuple(origin.tolist()))


def _downsample_of(level: Any, source: Any) -> float | None:
    """Tell a stored level's downsample by its spacing; None where it is not one number, or stated in another frame."""
    same = level.FrameOfReferenceUID == source.FrameOfReferenceUID
    same &= np.allclose(
        [float(v) for v in level.ImageOrientationSlide], [float(v) for v in source.ImageOrientationSlide]
    )
    (y, x), (y0, x0) = _spacing(level), _spacing(source)
    if not same or abs(y / y0 / (x / x0) - 1.0) > 1e-6 or x / x0 < 1.5:
        return None
    downsample = round(x / x0) if abs(x / x0 - round(x / x0)) < 1e-6 else x / x0
    short = abs(int(source.TotalPixelMatrixColumns) / downsample - int(level.TotalPixelMatrixColumns))
    return float(downsample) if short < 1.0 else None


def _spacing(image: Any) -> tuple[float, float]:
    between_rows, between_columns = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return float(between_rows), float(between_columns)


def _origin(image: Any) -> tuple[float, float, float]:
    item = image.TotalPixelMatrixOriginSequence[0]
    z = getattr(item, "ZOffsetInSlideCoordinateSystem", None)
    return float(item.XOffsetInSlideCoordinateSystem), float(item.YOffsetInSlideCoordinateSystem), float(z or 0.0)


def _values(p: SlidePrediction, tiles: TileMap, downsample: float) -> np.ndarray:
    """Lay the numbers out over the whole of level 0: (h, w) float32, 0 where no tile has one."""
    numbers = tiles.values if tiles.info.kind == "selected" else tiles.shown  # ranks: 1 was chosen first
    raster = raster_of_tiles(numbers, p.coords[tiles.rows], p.extent0, Box0(0, 0, *p.size0), downsample)
    return np.nan_to_num(raster, nan=0.0)


def _write(source: Any, grid: _Grid, values: np.ndarray, p: SlidePrediction, tiles: TileMap) -> bytes:
    hd, _ = _import_highdicom()
    label = _ascii(tiles.info.title if tiles.info.kind == "selected" else tiles.colouring.label)
    for keyword in _EMPTY_IF_ABSENT:
        if keyword not in source:
            setattr(source, keyword, "")
    seed = "/".join((source.SOPInstanceUID, p.model_hash, p.settings_hash, tiles.info.name))
    digest = hashlib.sha256(values.tobytes() + repr(grid).encode()).hexdigest()
    described = f"{_ascii(tiles.info.name)[:38]} of model {p.model_hash[:12]}"
    instance = hd.pm.ParametricMap(
        source_images=[source], pixel_array=values, series_instance_uid=_uid(seed, "series"), series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid(seed, digest), instance_number=1 + [i.name for i in list_maps(p)].index(tiles.info.name),
        manufacturer="wsi-ips", manufacturer_model_name="wsi-ips", software_versions=__version__,
        device_serial_number=p.model_hash[:12], contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(values, label, tiles)], voi_lut_transformations=[_window(tiles, values)],
        content_label=tiles.info.kind.upper()[:16], content_description=label[:64], series_description=described,
        pixel_measures=hd.PixelMeasuresSequence(grid.spacing_mm, slice_thickness=_thickness(source)),
        plane_positions=[hd.PlanePositionSequence(hd.CoordinateSystemNames.SLIDE, grid.origin_mm, (1, 1))],
        tile_pixel_array=True, tile_size=(_FRAME_PX, _FRAME_PX),
        dimension_organization_type=hd.DimensionOrganizationTypeValues.TILED_FULL,
    )  # fmt: skip
    instance.FloatPixelPaddingValue = 0.0
    instance.DerivationDescription = _ascii(
        f"wsi-ips {__version__}: {tiles.info.title}; {label}; {p.n_tiles} tiles, {len(p.selected)} used for the label; "
        f"model {p.model_hash}; settings {p.settings_hash}; 0 where no tile has a value; {file_said(p) or 'slide file not recorded'}; "
        f"{p.mpp.x:g} x {p.mpp.y:g} um per level-0 px from {p.mpp.source}; read by {p.reader}. {RESEARCH_USE}"
    )[:1024]
    _fix(instance, source, _uid(seed, "dimensions"))
    out = io.BytesIO()
    instance.save_as(out)
    return out.getvalue()


def _mapping(values: np.ndarray, label: str, tiles: TileMap) -> Any:
    """Say that a stored value is the value: attention is a saliency, evidence the activation of a class."""
    hd, pydicom = _import_highdicom()
    codes = pydicom.sr.codedict.codes
    signed = tiles.info.kind in ("evidence", "evidence_bag")
    return hd.pm.RealWorldValueMapping(
        lut_label=tiles.info.kind.upper()[:16], lut_explanation=label[:64], unit=codes.UCUM.NoUnits, slope=1.0, intercept=0.0,
        value_range=(float(values.min()), float(values.max())),
        quantity_definition=codes.DCM.ClassActivation if signed else codes.DCM.Saliency,
    )  # fmt: skip


def _window(tiles: TileMap, values: np.ndarray) -> Any:
    """Choose the grey values a viewer begins with: 0 to 10 x uniform for attention, so that slides compare."""
    colouring = tiles.colouring
    low, high = (0.0, 10.0) if colouring.is_log else (colouring.low, colouring.high)
    if tiles.info.kind == "selected":
        low, high = 0.0, max(1.0, float(values.max()))
    hd, _ = _import_highdicom()
    # LINEAR counts whole grey values, and allows no window narrower than one
    function = hd.VOILUTFunctionValues.LINEAR_EXACT
    return hd.VOILUTTransformation(
        window_center=(low + high) / 2.0, window_width=high - low, voi_lut_function=function
    )  # fmt: skip


def _fix(instance: Any, source: Any, dimensions_uid: str) -> None:
    """Replace the time of writing and random UIDs by the slide's times and by hashes."""
    instance.ContentDate = source.get("ContentDate") or source.get("StudyDate") or "19000101"
    instance.ContentTime = source.get("ContentTime") or source.get("StudyTime") or "000000"
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in instance:
            delattr(instance, keyword)
    for item in [*instance.DimensionOrganizationSequence, *instance.get("DimensionIndexSequence", [])]:
        item.DimensionOrganizationUID = dimensions_uid
    for item in instance.get("ContributingEquipmentSequence", []):
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == _PROCESSING and "ContributionDateTime" in item:
            del item.ContributionDateTime


def _thickness(source: Any) -> float | None:
    measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return float(measures.SliceThickness) if "SliceThickness" in measures else None


def _uid(*parts: str) -> str:
    """Make a UID that always follows from the same parts (PS3.5 B.2: a UUID under 2.25)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(parts)).int}"


def _ascii(text: str) -> str:
    """Keep to the characters of every DICOM character set."""
    return text.replace("×", "x").replace("  ", " ").encode("ascii", "replace").decode("ascii")
