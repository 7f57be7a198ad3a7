"""A level of a whole slide in DICOM, written by hand with all that viewers ask for and a patient who is nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

pydicom = pytest.importorskip("pydicom")

__all__ = ["TURNED", "write_wsi"]

TURNED = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)  # as most scanners have it: a row runs down the slide's y
_ROOT = "1.2.826.0.1.3680043.8.498.77"
_SPACING = (0.00026, 0.00025)  # mm between rows, between columns


def _item(**attributes: Any) -> Any:
    item = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, scheme: str, meaning: str) -> Any:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _frames(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut into (n, side, side, 3) frames, on white at the edges."""
    height, width = (-(-n // side) * side for n in pixels.shape[:2])
    padded = np.full((height, width, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = padded.reshape(height // side, side, width // side, side, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


def write_wsi(
    path: Path, pixels: np.ndarray, *, number: int = 1, downsample: int = 1, orientation: tuple[float, ...] = TURNED,
    spacing_mm: tuple[float, float] = _SPACING, frame_px: int = 256, is_jpeg: bool = False,
) -> Any:  # fmt: skip
    """Write a level of a slide by hand: TILED_FULL, its first px where level 0 has the middle of it; in JPEG 4:2:2 on wish."""
    spacing = [s * downsample for s in spacing_mm]
    shift = (downsample - 1) / 2
    row, column = np.reshape(orientation, (2, 3))
    origin = np.array([21.5, 40.25, 0.0]) + shift * (row * spacing_mm[1] + column * spacing_mm[0])
    wsi = pydicom.Dataset()
    wsi.SOPClassUID, wsi.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", f"{_ROOT}.3.{number}"
    wsi.StudyInstanceUID, wsi.SeriesInstanceUID, wsi.FrameOfReferenceUID = f"{_ROOT}.1", f"{_ROOT}.2", f"{_ROOT}.4"
    wsi.update(
        _item(
            PatientName="Doe^Jane", PatientID="P-17", PatientBirthDate="19500102", PatientSex="F", StudyID="S1",
            StudyDate="20200304", StudyTime="101112", AccessionNumber="A-9", ReferringPhysicianName="", Modality="SM",
            SeriesNumber=1, InstanceNumber=number, ContentDate="20200305", ContentTime="131415.5",
            AcquisitionDateTime="20200305131400", Manufacturer="drawn", ManufacturerModelName="by hand",
            DeviceSerialNumber="1", SoftwareVersions="1", PositionReferenceIndicator="SLIDE_CORNER",
            ImageType=["ORIGINAL" if downsample == 1 else "DERIVED", "PRIMARY", "VOLUME", "NONE" if downsample == 1 else "RESAMPLED"],
            DimensionOrganizationType="TILED_FULL", VolumetricProperties="VOLUME", BurnedInAnnotation="NO",
            SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422" if is_jpeg else "RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7,
            PixelRepresentation=0, Rows=frame_px, Columns=frame_px, LossyImageCompression="01" if is_jpeg else "00", AcquisitionContextSequence=[],
            TotalPixelMatrixColumns=pixels.shape[1], TotalPixelMatrixRows=pixels.shape[0], TotalPixelMatrixFocalPlanes=1,
            ImagedVolumeWidth=pixels.shape[1] * spacing[1], ImagedVolumeHeight=pixels.shape[0] * spacing[0],
            ImagedVolumeDepth=0.001, ImageOrientationSlide=list(orientation), NumberOfOpticalPaths=1,
            FocusMethod="AUTO", ExtendedDepthOfField="NO", SpecimenLabelInImage="NO", ContainerIdentifier="C-1",
            IssuerOfTheContainerIdentifierSequence=[], ContainerTypeCodeSequence=[_code("433466003", "SCT", "Microscope slide")],
        )
    )  # fmt: skip
    frames = _frames(pixels, frame_px)
    wsi.NumberOfFrames = len(frames)
    wsi.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=f"{_ROOT}.5")]
    wsi.TotalPixelMatrixOriginSequence = [
        _item(XOffsetInSlideCoordinateSystem=f"{origin[0]:.9f}", YOffsetInSlideCoordinateSystem=f"{origin[1]:.9f}")
    ]
    wsi.SpecimenDescriptionSequence = [
        _item(SpecimenIdentifier="X-3", SpecimenUID=f"{_ROOT}.6", IssuerOfTheSpecimenIdentifierSequence=[],
              SpecimenPreparationSequence=[])
    ]  # fmt: skip
    wsi.OpticalPathSequence = [
        _item(OpticalPathIdentifier="0", IlluminationTypeCodeSequence=[_code("111744", "DCM", "Brightfield illumination")],
              IlluminationColorCodeSequence=[_code("414298005", "SCT", "Full Spectrum")])
    ]  # fmt: skip
    measures = _item(SliceThickness="0.001", PixelSpacing=[f"{s:.9f}" for s in spacing])
    frame_type = _item(FrameType=wsi.ImageType)
    wsi.SharedFunctionalGroupsSequence = [
        _item(PixelMeasuresSequence=[measures], WholeSlideMicroscopyImageFrameTypeSequence=[frame_type])
    ]
    wsi.file_meta = pydicom.dataset.FileMetaDataset()
    wsi.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit if is_jpeg else pydicom.uid.ExplicitVRLittleEndian
    wsi.PixelData = frames.tobytes()
    if is_jpeg:
        streams = [simplejpeg.encode_jpeg(np.ascontiguousarray(f), quality=90, colorsubsampling="422") for f in frames]
        wsi.PixelData = pydicom.encaps.encapsulate(streams)
        wsi["PixelData"].VR = "OB"
    wsi.save_as(path, enforce_file_format=True)
    return wsi
