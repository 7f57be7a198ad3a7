"""Spoilt slides, each made of a sound one by what its name says: `svs-lie-017` is the 17th lie in the header of the SVS.

The name is the seed, so a name and the sound slides give the same bytes again:

    spoil("svs-lie-017", sound_slides(pixels, folder))

Kinds: `flip1` and `flip20` flip bytes anywhere, `data` flips some inside stored tiles, `zeros` blanks a block as a copy
with holes does, `cut` ends the file early, `tail` takes a few bytes off its end, `lie` gives a header field an extreme,
`swap` exchanges two blocks, `grow` puts junk behind. `junk` is the beginning of some format's file and noise after it.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import simplejpeg
import tifffile
from dicomfile import write_wsi

__all__ = ["JUNK", "SIDE_PX", "Sound", "mutant_names", "sound_slides", "spoil"]

SIDE_PX = 128  # of a stored tile
MPP = 0.5
_COUNTS = {"flip1": 16, "flip20": 16, "data": 14, "zeros": 14, "cut": 16, "tail": 6, "lie": 30, "swap": 8, "grow": 3}
_APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (128x128) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5000"
_EXTREMES = (0, 1, 2, 3, 5, 7, 15, 16, 17, 64, 127, 129, 255, 256, 4095, 8192, 8193, 32768, 65535, 65536, 2_000_000, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Sound:
    """A slide as it was before."""

    data: bytes
    ending: str
    tiles: tuple[tuple[int, int], ...]  # offset and bytes of the stored tiles of all levels
    fields: tuple[tuple[int, int], ...]  # offset and bytes of what a lie replaces
    order: str  # < or >


def sound_slides(pixels: np.ndarray, folder: Path) -> dict[str, Sound]:
    """Write the four sound slides: an SVS and a pyramid in JPEG, a big-endian one in deflate, a DICOM file.

    Args:
        pixels: (H, W, 3) uint8 RGB, tissue for the most part.
        folder: for one file in between.
    """
    height, width = pixels.shape[:2]
    svs = _tiff(pixels, description=_APERIO.format(w=width, h=height), compression=7)
    write_wsi(folder / "sound.dcm", pixels, spacing_mm=(MPP / 1000, MPP / 1000), frame_px=SIDE_PX, is_jpeg=True)
    dicom = (folder / "sound.dcm").read_bytes()
    (folder / "sound.dcm").unlink()
    return {
        "svs": _of_tiff(svs, ".svs"),
        "tif": _of_tiff(_tiff(pixels, compression=7), ".tif"),
        "lossless": _of_tiff(_tiff(pixels, compression=8, bigtiff=True, byteorder=">"), ".tif"),
        "dicom": _of_dicom(dicom),
    }


def mutant_names() -> list[str]:
    """Give the names of all 500."""
    names = []
    for base in ("svs", "tif", "lossless", "dicom"):
        for kind, n in _COUNTS.items():
            names += [f"{base}-{kind}-{i:03d}" for i in range(n // 2 if base == "lossless" else n)]
    return names + [f"{format}-junk-{i:03d}" for i in range(7) for format in JUNK][: 500 - len(names)]


def spoil(name: str, sound: dict[str, Sound]) -> tuple[bytes, str]:
    """Make a mutant by its name: its bytes, and the ending of its file."""
    base, kind, _ = name.split("-")
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    if kind == "junk":
        ending, head = JUNK[base]
        return head + rng.bytes(int(rng.integers(0, 40_000))), ending
    one = sound[base]
    return bytes(_KINDS[kind](rng, bytearray(one.data), one)), one.ending


def _tiff(pixels: np.ndarray, compression: int, description: str | None = None, bigtiff: bool = False, byteorder: str = "<") -> bytes:
    """Two levels of tiles; JPEG streams carry their own tables."""
    out = io.BytesIO()
    coding = {"compression": 7, "photometric": "ycbcr", "subsampling": (2, 2)} if compression == 7 else {"compression": "zlib", "photometric": "rgb"}
    with tifffile.TiffWriter(out, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for level in range(2):
            data = np.ascontiguousarray(pixels[:: 4**level, :: 4**level])
            tiles = _jpegs(data) if compression == 7 else data
            per_cm = 1e4 / MPP / 4**level
            writer.write(tiles, shape=data.shape, dtype=np.uint8, tile=(SIDE_PX, SIDE_PX), metadata=None, subfiletype=min(level, 1),
                         description=description if level == 0 else None, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **coding)  # fmt: skip
    return out.getvalue()


def _jpegs(pixels: np.ndarray) -> Iterator[bytes]:
    height, width = pixels.shape[:2]
    for y in range(0, height, SIDE_PX):
        for x in range(0, width, SIDE_PX):
            tile = pixels[y : y + SIDE_PX, x : x + SIDE_PX]
            tile = np.pad(tile, ((0, SIDE_PX - tile.shape[0]), (0, SIDE_PX - tile.shape[1]), (0, 0)), mode="edge")
            yield simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=90, colorsubsampling="420")


def _of_tiff(data: bytes, ending: str) -> Sound:
    tiles, fields = [], []
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        wide = 8 if tiff.is_bigtiff else 4
        for page in tiff.pages:
            tiles += list(zip(page.dataoffsets, page.databytecounts, strict=True))
            for tag in page.tags:  # 2 bytes of tag, 2 of type, the count, the value or its place
                fields += [(tag.offset, 2), (tag.offset + 2, 2), (tag.offset + 4, wide), (tag.offset + 4 + wide, wide), (tag.offset + 4 + wide, 2)]
                if tag.valueoffset > tag.offset + 4 + wide:
                    fields += [(tag.valueoffset + i, 4) for i in range(0, min(tag.count * 4, 40), 4)]
        fields += [(tiff.pages[0].offset, 2), (4, 4)]
        return Sound(data, ending, tuple(tiles), tuple(fields), tiff.byteorder)


def _of_dicom(data: bytes) -> Sound:
    dataset = pydicom.dcmread(io.BytesIO(data))
    at, tiles = 0, []
    for frame in pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames):
        at = data.index(frame, at)
        tiles.append((at, len(frame)))
    fields, end = [], tiles[0][0]
    for element in dataset:
        start, n = element.file_tell or 0, min(8, len(str(element.value)))
        if 0 < start < end:
            fields += [(start, max(2, n)), (start - 2, 2), (start - 4, 4), (start - 8, 4)]  # the value, its length, its kind, its tag
    return Sound(data, ".dcm", tuple(tiles), tuple(fields), "<")


def _flip(rng: np.random.Generator, data: bytearray, places: np.ndarray) -> bytearray:
    for at in places:
        data[int(at)] ^= int(rng.integers(1, 256))
    return data


def _flip_in_tiles(rng: np.random.Generator, data: bytearray, one: Sound) -> bytearray:
    at, n = one.tiles[int(rng.integers(len(one.tiles)))]
    return _flip(rng, data, at + rng.integers(0, n, int(rng.choice([1, 1, 2, 8]))))


def _zeros(rng: np.random.Generator, data: bytearray, one: Sound) -> bytearray:
    n = int(rng.choice([64, 512, 4096, 16384]))
    at = int(rng.integers(len(data)))
    data[at : at + n] = bytes(len(data[at : at + n]))
    return data


def _lie(rng: np.random.Generator, data: bytearray, one: Sound) -> bytearray:
    at, n = one.fields[int(rng.integers(len(one.fields)))]
    n = min(n, 8)
    value = int(rng.choice(_EXTREMES)) % 256**n
    data[at : at + n] = value.to_bytes(n, "little" if one.order == "<" else "big")
    return data


def _swap(rng: np.random.Generator, data: bytearray, one: Sound) -> bytearray:
    (a, n), (b, m) = (one.tiles[int(i)] for i in rng.choice(len(one.tiles), 2, replace=False))
    n = min(n, m, int(rng.choice([16, 256, 1 << 20])))
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]
    return data


_KINDS = {
    "flip1": lambda rng, data, one: _flip(rng, data, rng.integers(0, len(data), 1)),
    "flip20": lambda rng, data, one: _flip(rng, data, rng.integers(0, len(data), 20)),
    "data": _flip_in_tiles,
    "zeros": _zeros,
    "cut": lambda rng, data, one: data[: int(rng.integers(1, len(data)))],
    "tail": lambda rng, data, one: data[: -int(rng.integers(1, 200))],
    "lie": _lie,
    "swap": _swap,
    "grow": lambda rng, data, one: data + rng.bytes(int(rng.integers(1, 5000))),
}


def _vendor_tiff(description: str = "", big: bool = False, tags: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    """A directory that a vendor's reader would take up, and tiles where noise will be."""
    text = description.encode() + b"\0"
    entries = [(256, 4, 640), (257, 4, 384), (258, 3, 8), (259, 3, 7), (262, 3, 6), (277, 3, 3), (322, 4, 128), (323, 4, 128), (324, 4, 600), (325, 4, 900), *tags]
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0" + struct.pack("<I", 8)
    wide, count = ("<HHQQ", "<Q") if big else ("<HHII", "<H")
    n = len(entries) + 1
    at = len(head) + struct.calcsize(count) + n * struct.calcsize(wide) + (8 if big else 4)
    body = [(270, 2, at, len(text)), *((tag, kind, value, 1) for tag, kind, value in entries)]
    packed = b"".join(struct.pack(wide, tag, kind, n_values, value) for tag, kind, value, n_values in sorted(body))
    return head + struct.pack(count, n) + packed + struct.pack("<Q" if big else "<I", 0) + text


_VMS = b"[Virtual Microscope Specimen]\r\nNoLayers=1\r\nNoJpegColumns=1\r\nNoJpegRows=1\r\nImageFile=a.jpg\r\nMapFile=b.jpg\r\nOptimisationFile=c.opt\r\n"
JUNK = {
    "mirax": (".mrxs", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1"), "ndpi": (".ndpi", _vendor_tiff("", tags=((65420, 4, 1), (65421, 4, 20)))),
    "vms": (".vms", _VMS), "vmu": (".vmu", _VMS.replace(b"[Virtual", b"[Uncompressed Virtual")),
    "scn": (".scn", _vendor_tiff('<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection/></scn>', big=True)),
    "bif": (".bif", _vendor_tiff("level=0 mag=40 quality=95", big=True, tags=((700, 7, 16),))), "czi": (".czi", b"ZISRAWFILE" + bytes(22)),
    "philips": (".tiff", _vendor_tiff('<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"/>')), "trestle": (".tif", _vendor_tiff("Objective Name=20x;")),
    "sakura": (".svslide", b"SQLite format 3\0\x10\0\1\1\0\x40\x20\x20"), "png": (".svs", b"\x89PNG\r\n\x1a\n"), "jp2": (".jp2", b"\0\0\0\x0cjP  \r\n\x87\n"),
    "dicm": (".dcm", bytes(128) + b"DICM"), "noise": (".svs", b""),
}  # fmt: skip
