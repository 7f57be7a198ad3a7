"""Which resolution is believed, in which order, and how a file is known again."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from wsi_ips.errors import MppError
from wsi_ips.geometry import Mpp
from wsi_ips.slide.metadata import MppClaim, aperio_fields, find_mpp, fingerprint, number, ome_claims

VENDOR = MppClaim("vendor", 0.25, 0.25)
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'


def test_the_manifest_goes_first_then_the_claims_in_order() -> None:
    """The first believable source wins and is named."""
    assert find_mpp("a", 0.5, [VENDOR], 40)[0] == Mpp(0.5, 0.5, "manifest")
    assert find_mpp("a", None, [VENDOR, MppClaim("tiff", 0.5, 0.5)], 40)[0] == Mpp(0.25, 0.25, "vendor")
    assert find_mpp("a", None, [], 20)[0] == Mpp(0.5, 0.5, "nominal (objective power)")


@pytest.mark.parametrize("bad", [0.0, -0.5, 0.049, 10.1, math.inf, math.nan, 1e300, 800_000.0, 352.8])
def test_fault_031_an_unbelievable_claim_is_passed_over(bad: float) -> None:
    """The next source is asked; one bad axis spoils the claim; alone it is an error that says what was found."""
    assert find_mpp("a", None, [MppClaim("vendor", bad, bad), VENDOR], None)[0].source == "vendor"
    assert find_mpp("a", None, [MppClaim("ome", bad, 0.3), VENDOR], None)[0] == Mpp(0.25, 0.25, "vendor")
    with pytest.raises(MppError, match=r"E_MPP: a.svs: .*column 'mpp' of the manifest"):
        find_mpp("a.svs", None, [MppClaim("vendor", bad, bad)], None)


@pytest.mark.parametrize("given", [0.0, -1.0, 20.0, math.nan, math.inf])
def test_fault_031_a_manifest_value_that_cannot_be_meant_is_an_error(given: float) -> None:
    """A wrong cell is never replaced by the file's own value."""
    with pytest.raises(MppError, match="E_MPP"):
        find_mpp("a", given, [VENDOR], None)


def test_fault_034_axes_more_than_5_percent_apart_are_noted() -> None:
    """Both are used; the reader is told."""
    mpp, notes = find_mpp("a", None, [MppClaim("tiff", 0.25, 0.27)], None)
    assert (mpp.x, mpp.y) == (0.25, 0.27)
    assert [n.code for n in notes] == ["E_MPP_DISAGREES"]
    assert find_mpp("a", None, [MppClaim("tiff", 0.25, 0.26)], None)[1] == ()


@pytest.mark.parametrize(("um", "n_notes"), [(0.25, 0), (0.32, 0), (0.33, 1), (0.18, 1), (0.5, 1)])
def test_fault_033_resolution_and_objective_are_compared(um: float, n_notes: int) -> None:
    """Up to 1.3x apart is normal (40x is 0.25 µm), up to 2.2x a note."""
    notes = find_mpp("a", None, [MppClaim("vendor", um, um)], 40)[1]
    assert [n.code for n in notes] == ["E_MPP_DISAGREES"] * n_notes


def test_fault_033_over_2_2x_from_the_objective_is_refused_unless_given() -> None:
    """Wrong by 10 is refused; the manifest may insist."""
    with pytest.raises(MppError, match="40x objective"):
        find_mpp("a", None, [MppClaim("vendor", 2.5, 2.5)], 40)
    mpp, notes = find_mpp("a", 2.5, [VENDOR], 40)
    assert mpp.source == "manifest"
    assert [n.code for n in notes] == ["E_MPP_DISAGREES"]


def test_fault_032_numbers_and_aperio_pairs() -> None:
    """Decimal comma, spaces, and text that is no number."""
    assert number("0,25") == 0.25
    assert math.isnan(number("n/a"))
    assert math.isnan(number(None))
    fields = aperio_fields("Aperio Image Library v1\r\n1x1 |AppMag = 20|MPP = 0,4990|Left = 1=2")
    assert fields == {"AppMag": "20", "MPP": "0,4990", "Left": "1=2"}
    assert aperio_fields("something |MPP = 3") == {}


def test_fault_056_ome_units_and_objective() -> None:
    """The unit is honoured, µm is the default, entities are never expanded."""
    objective = '<Instrument><Objective NominalMagnification="40"/></Instrument>'
    sizes = 'PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.0005" PhysicalSizeYUnit="mm"'
    text = OME.format(f"{objective}<Image><Pixels {sizes}/></Image>")
    claim, power = ome_claims('<?xml version="1.0" encoding="UTF-8"?>' + text)
    assert (claim.x, claim.y) == pytest.approx((0.25, 0.5))
    assert power == 40.0
    claim, power = ome_claims(OME.format('<Image><Pixels PhysicalSizeX="0.3" PhysicalSizeY="0.3"/></Image>'))
    assert (claim.x, claim.y, power) == (0.3, 0.3, None)
    assert math.isnan(ome_claims('<!DOCTYPE x [<!ENTITY a "0.3">]>' + OME.format(""))[0].x)
    assert math.isnan(ome_claims("<OME broken")[0].x)
    deep = '<a><Image><Pixels PhysicalSizeX="0.3" PhysicalSizeY="0.3"/></Image></a>'
    assert math.isnan(ome_claims(OME.format("<a>" * 100_000 + deep + "</a>" * 100_000))[0].x)


def test_a_fingerprint_knows_a_file_again(tmp_path: Path) -> None:
    """Same content, same fingerprint, wherever it lies; another size, start, middle or end, another one."""
    data = bytearray(os.urandom(3_000_000))
    path = tmp_path / "a.svs"
    path.write_bytes(data)
    first = fingerprint(path)
    shutil.copy(path, tmp_path / "b.svs")
    assert fingerprint(tmp_path / "b.svs") == first == json.loads(json.dumps(first))
    assert first["size"] == len(data)
    assert "sampled" in first["method"]
    for at in (0, 333_400, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert fingerprint(path)["sha256"] != first["sha256"]
    path.write_bytes(data + b"x")
    assert fingerprint(path)["sha256"] != first["sha256"]


def test_a_mirax_fingerprint_covers_its_folder(tmp_path: Path) -> None:
    """A data file that grows changes the slide."""
    index = tmp_path / "a.mrxs"
    index.write_bytes(b"index")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"1234")
    first = fingerprint(index)
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"12345")
    assert fingerprint(index) != first


def test_a_strict_fingerprint_covers_every_byte_of_every_file(tmp_path: Path) -> None:
    """A byte between the samples, or in a data file of the same size, changes it; the sampled one does not see them."""
    index, data = tmp_path / "a.vms", tmp_path / "a-0.jpg"
    index.write_bytes(b"[Virtual Microscope Specimen]\nImageFile=a-0.jpg\n")
    data.write_bytes(bytes(2_000_000))
    sampled, strict = fingerprint(index), fingerprint(index, strict=True)
    assert sampled["size"] == strict["size"] == index.stat().st_size + 2_000_000
    assert "full" in strict["method"]
    data.write_bytes(bytes(100_000) + b"x" + bytes(1_899_999))
    assert fingerprint(index) == sampled
    assert fingerprint(index, strict=True)["sha256"] != strict["sha256"]
    alone = fingerprint(data, strict=True)
    data.write_bytes(bytes(2_000_000))
    assert fingerprint(data, strict=True)["sha256"] != alone["sha256"]
