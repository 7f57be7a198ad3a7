"""Real files of nine kinds: each opens or is refused exactly as stated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import SlideError, TileReadError
from wsi_ips.slide.metadata import fingerprint
from wsi_ips.slide.reader import open_slide

APERIO = "aperio/CMU-1-Small-Region.svs"
DICOM_CMU = "dicom-cmu/1.2.826.0.1.3680043.8.498.48407760015771729984593744789552618416.dcm"
DICOM_LABEL = "dicom-cmu/1.2.826.0.1.3680043.8.498.25547727731242830391830454722824599650.dcm"
DICOM_LUNG_SMALL = "dicom-lung/1.2.826.0.1.3680043.8.498.65051915555750509988686022780227676465.dcm"
MIRAX = "mirax-incomplete/Mirax2-Fluorescence-2.mrxs"

# path, without mpp, with mpp 0.5, reader
EXPECTED = [
    (APERIO, "ok", "ok", "direct"),
    ("aperio/tcga-cr-7395-01a-01-ts1.svs", "E_MPP", "ok", "direct"),
    ("hamamatsu/test3-DAPI-2-(387).ndpi", "E_PIXEL_FORMAT", "E_PIXEL_FORMAT", ""),
    ("dicom-cmu", "ok", "ok", "direct"),
    (DICOM_CMU, "ok", "ok", "direct"),
    (DICOM_LABEL, "ok", "ok", "direct"),
    ("dicom-lung", "E_MPP", "ok", "direct"),
    (DICOM_LUNG_SMALL, "E_MPP", "ok", "direct"),
    ("dicom-small", "E_NOT_A_FILE", "E_NOT_A_FILE", ""),
    ("dicom-small/boxes_0.dcm", "ok", "ok", "direct"),
    ("dicom-small/boxes_1.dcm", "ok", "ok", "direct"),
    ("dicom-small/sm_image.dcm", "ok", "ok", "openslide"),
    (MIRAX, "E_PIXEL_FORMAT", "E_PIXEL_FORMAT", ""),
    ("ome/XYC_jpeg.ome.tiff", "E_MPP", "ok", "tiffslide"),
    ("ome/morphology_focus_0000.ome.tif", "E_PIXEL_FORMAT", "E_PIXEL_FORMAT", ""),
    ("qptiff/small_vectra.qptiff", "E_PIXEL_FORMAT", "E_PIXEL_FORMAT", ""),
    ("refused/broken.svs", "E_NOT_A_SLIDE", "E_NOT_A_SLIDE", ""),
    ("refused/small_dicom.dcm", "E_UNSUPPORTED", "E_UNSUPPORTED", ""),
    ("refused/unreadable.svs", "E_TILE", "E_TILE", "openslide"),
    ("tiff/CMU-1-Small-Region.jpeg.tiff", "E_MPP", "ok", "direct"),
    ("tiff/boxes.tiff", "E_MPP", "ok", "direct"),
    ("tiff/kidney-48-5.tif", "E_UNTILED", "E_UNTILED", ""),
    ("tiff", "E_NOT_A_FILE", "E_NOT_A_FILE", ""),
]


def outcome(path: Path, mpp: float | None) -> tuple[str, str]:
    """Open and read a corner of every level: ("ok" or the code, reader)."""
    reader = ""
    try:
        with open_slide(path, mpp) as slide:
            reader = slide.reader.split()[0]
            for level in range(len(slide.levels)):
                region = slide.read_region(slide.bounds.x0, slide.bounds.y0, level, 60, 40)
                assert region.pixels.shape == (40, 60, 3)
                assert region.n_missing == 0
    except SlideError as error:
        said = str(error)
        names_the_file_alone = path.name in said and str(path.parent) not in said
        return (error.code if names_the_file_alone else said), reader
    return "ok", reader


@pytest.mark.parametrize(("name", "alone", "with_mpp", "reader"), EXPECTED)
def test_each_real_file_ends_as_stated(shared_data: Path, name: str, alone: str, with_mpp: str, reader: str) -> None:
    """Code or ok, with and without a resolution from the manifest, and which library reads."""
    path = shared_data / "slides" / name
    assert outcome(path, None)[0] == alone
    assert outcome(path, 0.5) == (with_mpp, reader)


def test_every_file_of_the_folder_has_a_stated_end(shared_data: Path) -> None:
    """No file of the collection opens or fails without being in the table (parts of a slide aside)."""
    stated = {name for name, *_ in EXPECTED}
    found = [p.relative_to(shared_data / "slides") for p in (shared_data / "slides").rglob("*") if p.is_file()]
    others = {str(p) for p in found if str(p) not in stated}
    assert all(o.startswith(("dicom-lung/", "dicom-cmu/", MIRAX[:-5] + "/")) for o in others), others


def test_fault_027_a_mirax_without_its_files_names_them(shared_data: Path, tmp_path: Path) -> None:
    """A half-copied slide is refused before the first read, with the names of what is missing."""
    source = shared_data / "slides" / MIRAX
    index = tmp_path / source.name
    shutil.copy(source, index)
    folder = tmp_path / source.stem
    with pytest.raises(SlideError, match=rf"E_PARTS.*folder {folder.name}"):
        open_slide(index)
    folder.mkdir()
    with pytest.raises(SlideError, match=r"E_PARTS.*Slidedat.ini"):
        open_slide(index)
    ini = (source.with_suffix("") / "Slidedat.ini").read_text(encoding="utf-8-sig")
    (folder / "Slidedat.ini").write_text(ini.replace("SLIDE_TYPE_FLUORESCENCE", "SLIDE_TYPE_BRIGHTFIELD"))
    for part in source.with_suffix("").glob("*.dat"):
        (folder / part.name).symlink_to(part)
    with pytest.raises(SlideError, match=r"E_PARTS.*Data0005.dat, Data0006.dat in its folder.*25 files"):
        open_slide(index)


def test_fault_027_a_thumbnail_alone_asks_for_its_series(shared_data: Path, tmp_path: Path) -> None:
    """One DICOM file without the levels of its series is no slide."""
    shutil.copy(shared_data / "slides" / "dicom-small" / "boxes_1.dcm", tmp_path)
    with pytest.raises(SlideError, match=r"E_PARTS.*series"):
        open_slide(tmp_path / "boxes_1.dcm")


def test_fault_027_a_lone_coarse_dicom_level_is_noted(shared_data: Path, tmp_path: Path) -> None:
    """OpenSlide opens it in silence as a smaller slide; here it is said that a finer level existed."""
    shutil.copy(shared_data / "slides" / DICOM_LUNG_SMALL, tmp_path / "a.dcm")
    with open_slide(tmp_path / "a.dcm", mpp=8.0) as slide:
        assert [n.code for n in slide.notes] == ["E_PARTS"]
        assert slide.levels[0].width == 240


def test_svs_and_dicom_of_one_tissue_agree(shared_data: Path) -> None:
    """The same scan in two formats, read at the same place, looks the same."""
    with open_slide(shared_data / "slides" / APERIO) as a, open_slide(shared_data / "slides" / DICOM_CMU) as b:
        assert a.levels == b.levels
        assert a.mpp[:2] == b.mpp[:2]
        assert a.bounds == b.bounds
        one = a.read_region(901, 1203, 0, 300, 200).pixels.astype(int)
        off = {
            (dx, dy): np.abs(one - b.read_region(901 + dx, 1203 + dy, 0, 300, 200).pixels).mean()
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
        }
    # JPEG twice with halved chroma differs by 8 grey levels, a shift by one px by 18 or more
    assert off[0, 0] < 10 < sorted(off.values())[1]


def test_the_coordinate_grid_is_at_its_place(shared_data: Path) -> None:
    """Every 8x8 block of this picture encodes its own place: a window equals the part cut from the whole."""
    with open_slide(shared_data / "slides" / "ome" / "XYC_jpeg.ome.tiff", mpp=0.5) as slide:
        whole = slide.read_region(0, 0, 0, 512, 512).pixels
        window = slide.read_region(129, 203, 0, 210, 97).pixels
    assert (window == whole[203:300, 129:339]).all()


def test_a_broken_tile_stays_an_error(shared_data: Path) -> None:
    """The same question gets the same answer, from a fresh handle each time."""
    with open_slide(shared_data / "slides" / "refused" / "unreadable.svs") as slide:
        for _ in range(3):
            with pytest.raises(TileReadError, match=r"unreadable.svs: pixels at level-0 px \(0, 0\)"):
                slide.read_region(0, 0, 0, 16, 16)


def test_a_dicom_fingerprint_covers_its_series_alone(shared_data: Path, tmp_path: Path) -> None:
    """A missing sibling changes it, a file of another slide in the same folder does not."""
    folder = shared_data / "slides" / "dicom-small"
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(folder / name, tmp_path)
    whole = fingerprint(tmp_path / "boxes_0.dcm")
    shutil.copy(folder / "sm_image.dcm", tmp_path)
    assert fingerprint(tmp_path / "boxes_0.dcm") == whole
    (tmp_path / "boxes_1.dcm").unlink()
    assert fingerprint(tmp_path / "boxes_0.dcm") != whole
