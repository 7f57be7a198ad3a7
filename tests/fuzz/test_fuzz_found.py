"""What fuzzing has found, one test a defect: each ended in an error that was not this package's own, or followed a lead out."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from wsi_ips.errors import ModelError, SlideError, UnreadableSlideError
from wsi_ips.slide.mirax import check_mirax
from wsi_ips.slide.proving import prove_direct
from wsi_ips.slide.tiffheader import read_tiff_header
from wsi_ips.tiles.polygons import read_polygons


@pytest.mark.parametrize("inside", [7, True, "Polygon", {"a": 1}])
def test_a_collection_of_no_list_is_refused(tmp_path: Path, inside: object) -> None:
    """`geometries` that are a number or a text are named as such."""
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps({"type": "GeometryCollection", "geometries": inside}))
    with pytest.raises(SlideError, match=r"E_MASK: m.geojson, element 1: expected a list"):
        read_polygons(path)


@pytest.mark.parametrize("lines", ["FILE_COUNT = ²", "FILE_COUNT = " + "9" * 5000, "FILE_COUNT = 1\nFILE_0 = " + "x" * 300, "FILE_COUNT=1\nFILE_0=a\0b"])
def test_odd_counts_and_names_in_a_mirax_index(tmp_path: Path, lines: str) -> None:
    """A count that is no number, one of 5,000 digits, a name no system takes: parts are missing, whatever it says."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text(f"[DATAFILE]\n{lines}\n")
    with pytest.raises(UnreadableSlideError, match="E_PARTS"):
        check_mirax(tmp_path / "a.mrxs")


@pytest.mark.parametrize("ending", [".geojson", ".geojson.gz"])
def test_a_small_mask_takes_little_memory(tmp_path: Path, ending: str) -> None:
    """Room is made for what is there, not for all that would be allowed: in a full process that is the end of the slide."""
    text = json.dumps({"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}).encode()
    path = tmp_path / f"m{ending}"
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    read_polygons(path)
    tracemalloc.start()
    try:
        read_polygons(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


class _Judge:
    """Would say of the px what the slide's library says."""

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        out[...] = 90
        return 0

    def close(self) -> None:
        pass


def test_tiles_beyond_the_image_are_no_tiles(tmp_path: Path) -> None:
    """A file that lists more tiles than its image has is probed, and read, at those it has."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((64, 96, 3), 90, np.uint8), tile=(32, 32), photometric="rgb", compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[257].overwrite(32)  # the second row of tiles lies below the image now
    data = path.read_bytes()
    header = read_tiff_header(io.BytesIO(data), len(data), "a.tif")
    assert (header.primary.n_tiles, len(header.primary.offsets)) == (3, 6)
    direct = prove_direct(path, header, "generic-tiff", [(96, 32)], _Judge)
    assert direct is not None
    out = np.empty((32, 96, 3), np.uint8)
    assert direct.read(out, 0, 0, 0) == 0
    assert (out == 90).all()
    direct.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"architecture": "hf-hub:a/b"}, "no such timm model"), ({"architecture": "local-dir:/"}, "no such timm model"),
     ({"kwargs": {"checkpoint_path": "w.pt"}}, "are not taken"), ({"kwargs": {"channels": "many"}}, "cannot be built"),
     ({"in_channels": None}, "not a valid"), ({"input_size_px": -1}, "does not take tiles"), ({"mean": 3}, "not a valid")],
)  # fmt: skip
def test_a_bundle_that_cannot_be_meant_names_its_file(tmp_path: Path, tiny_bundle: Path, change: dict[str, Any], words: str) -> None:
    """P12: a configuration opens no other file and asks no network; what is wrong with it says in which file."""
    from wsi_ips.model.bundle import load_bundle

    folder = tmp_path / "model"
    shutil.copytree(tiny_bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder": config["encoder"] | change}))
    with pytest.raises(ModelError, match=words) as refusal:
        load_bundle(folder)
    assert str(folder / "config.json") in str(refusal.value)
