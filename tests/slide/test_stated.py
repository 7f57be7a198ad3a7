"""Size and hash that a manifest gives are held against the slide's file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wsi_ips.errors import ManifestError, UnreadableSlideError
from wsi_ips.manifest import load_manifest
from wsi_ips.slide.stated import check_stated

DATA = b"pixels" * 1000


def test_fault_085_a_byte_flipped_on_the_way_is_found_by_the_manifests_hash(tmp_path: Path) -> None:
    """The right file passes; one flipped bit and one byte too few are E_CHECKSUM, with what was found and the cure."""
    path = tmp_path / "a.svs"
    path.write_bytes(DATA)
    hashes = {"sha256": hashlib.sha256(DATA).hexdigest(), "md5": hashlib.md5(DATA).hexdigest()}
    check_stated(str(path), hashes | {"size_bytes": str(len(DATA))})
    check_stated(f"file://{path}", hashes)
    check_stated(str(tmp_path / "gone.svs"), hashes)  # opening it says so
    path.write_bytes(DATA[:3000] + bytes([DATA[3000] ^ 1]) + DATA[3001:])
    for name in hashes:
        with pytest.raises(UnreadableSlideError, match=rf"E_CHECKSUM: a.svs: its {name} is .*copy the file again") as found:
            check_stated(str(path), {name: hashes[name]})
        assert str(tmp_path) not in str(found.value)
    check_stated(str(path), hashes, read_all=False)  # a look before the run reads no gigabytes
    path.write_bytes(DATA[:-1])
    with pytest.raises(UnreadableSlideError, match=r"holds 5999 bytes, the manifest's size_bytes says 6000"):
        check_stated(str(path), {"size_bytes": "6000"}, read_all=False)
    with pytest.raises(UnreadableSlideError, match="single local file"):
        check_stated(str(tmp_path), {"sha256": hashes["sha256"]})


def test_fault_085_the_manifests_columns_are_read_and_checked(tmp_path: Path) -> None:
    """`sha256`, `md5`, `size_bytes`, and `size` in a GDC manifest; a cell that is none of it is a problem of the row."""
    digest = "AB" * 32
    (tmp_path / "m.csv").write_text(f"slide_path,sha256,size_bytes,size\na.svs,{digest},07,3 cm\nb.svs,,,\n")
    a, b = load_manifest(tmp_path / "m.csv", check_files=False).records
    assert (a.stated, b.stated) == ({"sha256": digest.lower(), "size_bytes": "07"}, {})
    assert a.carried == {"size": "3 cm"}
    (tmp_path / "gdc.txt").write_text(f"id\tfilename\tmd5\tsize\n3430898b-02c2-47dd-91e5-c8022177fb6a\ta.svs\t{'0' * 32}\t12\n")
    (g,) = load_manifest(tmp_path / "gdc.txt", check_files=False).records
    assert g.stated == {"md5": "0" * 32, "size_bytes": "12"}
    (tmp_path / "bad.csv").write_text("slide_path,sha256,size_bytes\na.svs,abc,1e5\n")
    with pytest.raises(ManifestError, match=r"line 2, column 'sha256': 'abc' is not a SHA-256") as found:
        load_manifest(tmp_path / "bad.csv", check_files=False)
    assert "column 'size_bytes': '1e5' is not a number of bytes" in str(found.value)
