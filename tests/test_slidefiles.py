"""Folders of slides: each slide once, under an id that can name files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.manifest import find_slides, load_manifest, write_manifest
from wsi_ips.slidefiles import is_slide_id, safe_id


def test_a_folder_becomes_a_manifest_that_loads(tmp_path: Path) -> None:
    """Slides once each, sorted, MIRAX by its main file, DICOM by its folder, no hidden files or run folders."""
    slides = tmp_path / "slides"
    names = ["a/x.svs", "b/x.svs", "b/x.tif", "x.SVS", "=m.svs", "TCGA-AA-1234-01Z.svs", "n (1).ndpi", "m.mrxs"]
    names += ["m/Slidedat.ini", "m/y.tif", "._x.svs", ".h/z.svs", "d/1.dcm", "d/2.dcm"]
    names += ["run/run.json", "run/predictions.csv", "run/h.tif"]
    for name in names:
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        (slides / name).write_bytes(b"x")
    n = write_manifest(slides, tmp_path / "out" / "m.csv")
    manifest = load_manifest(tmp_path / "out" / "m.csv")
    assert n == len(manifest) == 9
    assert manifest.notes == ()
    places = {os.path.relpath(r.slide_path, slides): r.slide_id for r in manifest}
    assert places == {
        "=m.svs": "_m", "TCGA-AA-1234-01Z.svs": "TCGA-AA-1234-01Z", "a/x.svs": "a_x", "b/x.svs": "x_svs",
        "b/x.tif": "x_tif", "d": "d", "m.mrxs": "m", "n (1).ndpi": "n _1_", "x.SVS": "slides_x",
    }  # fmt: skip
    text = (tmp_path / "out" / "m.csv").read_text()
    assert text.splitlines()[0] == "slide_path,slide_id,patient_id,label,mpp,split"
    assert "../slides/TCGA-AA-1234-01Z.svs,TCGA-AA-1234-01Z,TCGA-AA-1234,,," in text
    with pytest.raises(ConfigError, match="exists already"):
        write_manifest(slides, tmp_path / "out" / "m.csv")


def test_fault_049_a_file_name_like_a_formula_does_not_start_its_cell(tmp_path: Path) -> None:
    """Beside the manifest itself such a name is written with ./ in front, and still found."""
    (tmp_path / "=1+1.svs").write_bytes(b"x")
    write_manifest(tmp_path, tmp_path / "m.csv")
    assert "\n./=1+1.svs,_1+1," in (tmp_path / "m.csv").read_text()
    assert load_manifest(tmp_path / "m.csv").records[0].slide_path == str(tmp_path / "=1+1.svs")


def test_a_folder_without_slides_is_refused(tmp_path: Path) -> None:
    """An empty manifest would be an empty run that succeeds."""
    with pytest.raises(ManifestError, match="no slides found"):
        write_manifest(tmp_path, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    with pytest.raises(ConfigError, match="is not a folder"):
        find_slides(tmp_path / "no")


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """Linked folders are followed once."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.svs").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [p.name for p in find_slides(tmp_path)] == ["x.svs"]


def test_names_of_many_folders_become_unique_ids(tmp_path: Path) -> None:
    """However deep names agree, ids differ, also from each other's new names."""
    for name in ("a/b/x.svs", "c/b/x.svs", "b_x.svs", "q/B_X.tif", "q/b_x.ome.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert write_manifest(tmp_path, tmp_path / "m.csv") == len(load_manifest(tmp_path / "m.csv")) == 5


def test_fault_028_two_formats_under_one_name_are_two_slides(tmp_path: Path) -> None:
    """a.svs and a.tif get ids of their own in a written manifest, so that neither's results are the other's."""
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, tmp_path / "m.csv")
    assert {Path(r.slide_path).name: r.slide_id for r in load_manifest(tmp_path / "m.csv")} == {"a.svs": "a_svs", "a.tif": "a_tif"}


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=250))
def test_made_ids_are_always_valid(text: str) -> None:
    """Whatever a file is called, the id made from it can name files; a valid id is left alone."""
    assert is_slide_id(safe_id(text))
    assert safe_id(text) == text or not is_slide_id(text)


def test_real_slides_are_listed_once_each(shared_data: Path, tmp_path: Path) -> None:
    """DICOM series by folder, or by first file where a folder holds two; MIRAX once; everything listed exists."""
    write_manifest(shared_data / "slides", tmp_path / "m.csv")
    ids = {r.slide_id for r in load_manifest(tmp_path / "m.csv")}
    assert {"dicom-cmu", "dicom-lung", "boxes_0", "sm_image", "Mirax2-Fluorescence-2", "test3-DAPI-2-_387_"} <= ids
    assert not any(i.startswith(("boxes_1", "Data0")) for i in ids)
