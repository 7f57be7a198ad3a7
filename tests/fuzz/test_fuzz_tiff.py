"""Slide headers spoilt and made: the TIFF directory, what is read out of it, tiles by the fast path; DICOM and MIRAX headers.

No library decides here: who asks OpenSlide for the pixels, `proving`, gets a judge that says what the fast path says, or
says no.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile
from fuzzing import Document, fuzz, fuzz_test, try_some
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import EXTREMES, mutated

from wsi_ips.errors import TileReadError
from wsi_ips.slide.dicom import check_dicom, read_dicom_file
from wsi_ips.slide.dicomframes import dicom_levels
from wsi_ips.slide.directtiles import DirectTiles, StoredLevel
from wsi_ips.slide.jpegstream import is_whole, sampling_of
from wsi_ips.slide.kinds import local_file
from wsi_ips.slide.metadata import aperio_fields, find_mpp, fingerprint, ome_claims, tiff_claim
from wsi_ips.slide.mirax import check_mirax
from wsi_ips.slide.proving import prove_direct
from wsi_ips.slide.tiffcheck import check_tiff, choose_reader, is_ome, missing_mask
from wsi_ips.slide.tiffheader import TiffHeader, is_tiff, read_tiff_header

APERIO = "Aperio Image Library v1\r\n96x64 (32x32) JPEG/RGB|AppMag = 20|MPP = 0,4990"
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument><Objective NominalMagnification="20"/></Instrument>'
    '<Image><Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.5" SizeX="96" SizeY="64"/></Image></OME>'
)
MAX_PX = 4_000_000  # of a level that is read whole here
TAGS = (254, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 282, 283, 284, 296, 317, 322, 323, 324, 325, 330, 338, 339, 347, 34675, 65420)
VALUES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 64, 96, 255, 256, 8192, 8193, 65535, 65536, 100_000, 2_000_000, 2_000_001, 33003, 33005, 34712,
          2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)  # fmt: skip


def _tiff(**options: object) -> bytes:
    y, x = np.mgrid[0:64, 0:96]
    pixels, out = np.dstack([x * 2, y * 3, x + y]).astype(np.uint8), io.BytesIO()
    big = bool(options.pop("bigtiff", False))
    order = str(options.pop("byteorder", "<"))
    with tifffile.TiffWriter(out, bigtiff=big, byteorder=order) as writer:
        for level in range(2):
            extra = {"subfiletype": 1} if level else {}
            given = {"tile": (32, 32), "photometric": "rgb", "metadata": None, "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
            writer.write(pixels[:: 2**level, :: 2**level], **(given | extra | options))
    return out.getvalue()


TIFFS = (
    _tiff(compression="zlib"), _tiff(compression="lzw", predictor=2), _tiff(compression="jpeg", photometric="ycbcr", subsampling=(2, 2)),
    _tiff(compression="jpeg", description=APERIO), _tiff(compression="zlib", bigtiff=True), _tiff(compression="zlib", byteorder=">"),
    _tiff(compression=None), _tiff(compression="zlib", description=OME),
)  # fmt: skip
JPEG = simplejpeg.encode_jpeg(np.full((32, 32, 3), 90, np.uint8), colorsubsampling="420")


@st.composite
def _made_tiffs(draw: DrawFn) -> bytes:
    """A directory or three of plausible and odd entries, and some tiles behind."""
    order, big = draw(st.sampled_from("<>")), draw(st.booleans())
    entry, pointer, count = ("HHQ", "Q", "Q") if big else ("HHI", "I", "H")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42) + (struct.pack(order + "HH", 8, 0) if big else b"")
    body, inline = bytearray(JPEG + draw(st.binary(max_size=64))), struct.calcsize("<" + pointer)
    start = len(head) + inline
    wide, kinds = st.one_of(st.sampled_from(VALUES), st.integers(0, 4096)), st.sampled_from((1, 2, 3, 4, 4, 4, 5, 7, 12, 13, 16, 18, 99))
    plain = {256: 96, 257: 64, 258: 8, 259: 7, 262: 6, 277: 3, 322: 32, 323: 32, 324: start, 325: len(JPEG)}
    firsts = []
    for _ in range(draw(st.integers(1, 3))):
        entries = {tag: (4, 1, value) for tag, value in plain.items()} if draw(st.integers(0, 4)) else {}
        n = -(-96 // 32) * 2
        if entries and draw(st.booleans()):
            at = len(body)
            body += struct.pack(order + f"{n}I", *[start] * n) + struct.pack(order + f"{n}I", *[len(JPEG)] * n)
            entries |= {324: (4, n, start + at), 325: (4, n, start + at + 4 * n)}
        for tag in draw(st.lists(st.sampled_from(TAGS), max_size=4)):
            entries[tag] = (draw(kinds), draw(st.one_of(st.just(1), st.integers(0, 8), st.sampled_from(VALUES))), draw(wide))
        firsts.append(start + len(body))
        largest = (1 << 8 * inline) - 1
        body += struct.pack(order + count, len(entries))
        for tag, (kind, n_values, value) in sorted(entries.items()):
            body += struct.pack(order + entry + pointer, tag, kind, min(n_values, largest), min(value, largest))
        following = draw(st.sampled_from((0, 0, firsts[0], start + len(body) + inline, 2**31)))
        body += struct.pack(order + pointer, following)
    return head + struct.pack(order + pointer, draw(st.sampled_from(firsts))) + bytes(body)


def _dicom(has_table: bool) -> bytes:
    """A level of two frames in JPEG, with or without their offsets."""
    frames = [struct.pack("<HHI", 0xFFFE, 0xE000, len(JPEG) + len(JPEG) % 2) + JPEG + b"\0" * (len(JPEG) % 2)] * 2
    table = struct.pack("<2I", 0, len(frames[0])) if has_table else b""
    pixels = struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table + b"".join(frames) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        long = kind in (b"SQ", b"OB")
        length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + length + value

    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + element(8, 0x60, b"CS", b"SM") + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    return b"\0" * 128 + b"DICM" + b"".join((
        element(2, 0x10, b"UI", b"1.2.840.10008.1.2.4.50\0"), element(8, 8, b"CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        element(0x20, 0xE, b"UI", b"1.2.3"), element(0x20, 0x9311, b"CS", b"TILED_FULL"), element(0x28, 2, b"US", b"\3\0"),
        element(0x28, 4, b"CS", b"YBR_FULL_422"), element(0x28, 8, b"IS", b"2"), element(0x28, 0x10, b"US", b"\40\0"),
        element(0x28, 0x11, b"US", b"\40\0"), element(0x28, 0x100, b"US", b"\10\0"),
        element(0x48, 6, b"UL", b"\100\0\0\0"), element(0x48, 7, b"UL", b"\40\0\0\0"),
        struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF), pixels,
    ))  # fmt: skip


SLIDEDAT = (
    b"[GENERAL]\r\nSLIDE_ID = A\r\nSLIDE_VERSION = 01.02\r\n[HIERARCHICAL]\r\nHIER_COUNT = 1\r\nINDEXFILE = Index.dat\r\n[DATAFILE]\r\nFILE_COUNT = 2\r\n"
    b"FILE_0 = Data0000.dat\r\nFILE_1 = Data0001.dat\r\n"
)
documents = st.one_of(
    st.builds(Document, mutated(TIFFS), st.just(".tif")),
    st.builds(Document, mutated(TIFFS, most=2), st.just(".svs")),
    st.builds(Document, _made_tiffs(), st.just(".tif")),
    st.builds(Document, mutated((_dicom(True), _dicom(False)), (struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) * 50, b"\xff\xff\xff\xff")), st.just(".dcm")),
    st.builds(Document, mutated((SLIDEDAT,), (b"[DATAFILE]", b"\xff", b"\0", b"..\\..", b"=", "²".encode(), *EXTREMES)), st.just(".mrxs")),
)


class Judge:
    """Reads what the fast path reads, or nothing."""

    def __init__(self, direct: DirectTiles | None) -> None:
        self._direct = direct

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        if self._direct is None:
            raise TileReadError("E_TILE", "no")
        return self._direct.read(out, x0, y0, level)

    def close(self) -> None:
        pass


def _read_tiles(path: Path, header: TiffHeader) -> None:
    """Read all of each level that is tiled and not large, whatever it states of its pixels."""
    fit = [i for i in header.ifds[: header.n_chain] if i.is_tiled and len(i.offsets) == len(i.byte_counts) > 0]
    small = [i for i in fit if i.width * i.height <= MAX_PX and i.tile_width * i.tile_height <= MAX_PX]
    if not small:
        return
    with path.open("rb") as f:
        tables = [(f.seek(i.jpeg_tables[0]), f.read(min(i.jpeg_tables[1], 1 << 16)))[1] for i in small if i.jpeg_tables[0] < 1 << 60]
    direct = DirectTiles([str(path)], path.name, [StoredLevel.of(i, t, (1,)) for i, t in zip(small, tables, strict=False)])
    try:
        for number, ifd in enumerate(small[: len(tables)]):
            missing_mask(ifd, 0, 0, ifd.width, ifd.height)
            for top in range(0, ifd.height, ifd.tile_height):
                out = np.empty((min(ifd.tile_height, ifd.height - top), ifd.width, 3), np.uint8)
                try:
                    direct.read(out, 0, top, number)
                    direct.stream(0, top, number)
                except TileReadError:
                    break
    finally:
        direct.close()


def _check_tiff(path: Path, data: bytes) -> None:
    header = read_tiff_header(io.BytesIO(data), len(data), path.name)
    for ifd in header.ifds:
        aperio_fields(ifd.description), ome_claims(ifd.description)
    check_tiff(header, path.name)
    is_remote = choose_reader(header, path.name, is_remote=False) == "tiffslide" or is_ome(header)
    choose_reader(header, path.name, is_remote=is_remote)
    sizes = [(i.width, i.height) for i in header.ifds[: header.n_chain] if i.is_tiled]
    for vendor in ("aperio", "generic-tiff"):
        if (direct := prove_direct(path, header, vendor, sizes, lambda: Judge(None))) is not None:
            direct.close()
    _read_tiles(path, header)
    find_mpp(path.name, None, [tiff_claim(header), ome_claims(header.ifds[0].description)[0]], None)


def _check_frames(path: Path) -> None:
    """Read all tiles of a level whose frames are found."""
    own = read_dicom_file(path)
    paths, levels = dicom_levels(path, [(own.width, own.height)] if own is not None else [])
    if not levels:
        return
    (level,), direct = levels, DirectTiles([str(p) for p in paths], path.name, levels)
    for number in range(min(20, len(level.offsets))):
        row, column = divmod(number, level.across)
        with contextlib.suppress(TileReadError):
            direct.read(np.empty((level.tile_height, level.tile_width, 3), np.uint8), column * level.tile_width, row * level.tile_height, 0)
    direct.close()


@pytest.mark.parametrize("has_table", [True, False])
def test_the_frames_of_the_sound_document_are_found(tmp_path: Path, has_table: bool) -> None:
    """So that spoilt ones get as far."""
    path = tmp_path / "a.dcm"
    path.write_bytes(_dicom(has_table))
    paths, levels = dicom_levels(path, [(64, 32)])
    direct, out = DirectTiles([str(p) for p in paths], path.name, levels), np.empty((32, 64, 3), np.uint8)
    assert direct.read(out, 0, 0, 0) == 0
    assert abs(out.astype(int) - 90).max() <= 2


@pytest.fixture
def headers(tmp_path: Path) -> Callable[[Document], None]:
    """Does with a document what opening a slide does before a library sees it."""

    def header(document: Document) -> None:
        path = tmp_path / f"a{document.ending}"
        path.write_bytes(document.data)
        fingerprint(path) if document.data else None
        head = local_file(path)
        sampling_of(document.data[:4096]), is_whole(document.data[:4096])
        if is_tiff(head):
            _check_tiff(path, document.data)
        elif document.ending == ".mrxs":
            folder = tmp_path / "a"
            folder.mkdir(exist_ok=True)
            (folder / "Slidedat.ini").write_bytes(document.data)
            check_mirax(path)
        elif head[128:132] == b"DICM":
            check_dicom(path)
            _check_frames(path)

    return header


def test_some_spoilt_headers(headers: Callable[[Document], None]) -> None:
    """A few of what is below."""
    try_some(headers, documents, 100)


@fuzz_test
def test_spoilt_headers(headers: Callable[[Document], None]) -> None:
    """A header, or a refusal of the slide; tiles, or a `TileReadError`."""
    fuzz(headers, documents)
