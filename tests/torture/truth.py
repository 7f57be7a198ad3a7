"""What a slide's file holds at each place, told by other programs than ours: the reference of "no invented pixel".

The directory is read by tifffile or pydicom, and each stored tile decoded strictly: a decoder that meets damaged or missing
bytes raises, where a lenient one fills in grey or the tile before. So a px that a slide shows is one of these:

stored   the strict decoder gets the same px out of the very bytes of that place. A byte flipped inside a tile can leave
         a valid stream that decodes to other px: they are what the file says now, and nobody's invention.
missing  the file states zero bytes there, the px are white, and the slide counts them.
failed   the slide refuses to read there.
made up  anything else; px for which the strict decoder finds none, first of all.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import simplejpeg
import tifffile

from wsi_ips.errors import TileReadError
from wsi_ips.slide.reader import Slide

__all__ = ["ForeignTrouble", "compare"]

_PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"  # the element's tag, its type, a length that is not stated
_ITEM = b"\xfe\xff\x00\xe0"


class ForeignTrouble(Exception):
    """The other program cannot follow the file."""


class _Stored(NamedTuple):
    left: int
    top: int
    width: int
    height: int
    pixels: np.ndarray | None  # None: zero bytes
    trouble: str = ""  # of the strict decoder


def compare(path: Path, slide: Slide) -> list[str]:
    """Compare level 0 of a slide with its file: one of the words above for each stored tile, in raster order.

    Raises:
        ForeignTrouble: nothing to compare with.
    """
    found = []
    width, height = slide.levels[0].width, slide.levels[0].height
    for one in _stored(path, width, height):
        w, h = min(one.width, width - one.left), min(one.height, height - one.top)
        try:
            region = slide.read_region(one.left, one.top, 0, w, h)
        except TileReadError:
            found.append("failed")
            continue
        if one.pixels is not None:
            found.append("stored" if np.array_equal(region.pixels, one.pixels[:h, :w]) else "made up")
        elif one.trouble:
            found.append("made up")
        else:
            found.append("missing" if region.n_missing == w * h and (region.pixels == 255).all() else "made up")
    return found


def _stored(path: Path, width: int, height: int) -> Iterator[_Stored]:
    return _of_dicom(path) if path.suffix == ".dcm" else _of_tiff(path, width, height)


def _of_tiff(path: Path, width: int, height: int) -> Iterator[_Stored]:
    data = path.read_bytes()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = next(p for p in tiff.pages if (p.imagewidth, p.imagelength) == (width, height) and p.is_tiled)
            side, tall, kind = int(page.tilewidth), int(page.tilelength), int(page.compression)
            places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    except Exception as error:
        raise ForeignTrouble(f"tifffile: {type(error).__name__} {error}") from error
    across = -(-width // side)
    for number, (offset, n) in enumerate(places[: across * -(-height // tall)]):
        at = (number % across * side, number // across * tall, side, tall)
        stream = data[offset : offset + n]
        yield _Stored(*at, None) if n == 0 else _decoded(at, stream, (tall, side, 3), is_jpeg=kind == 7)


def _of_dicom(path: Path) -> Iterator[_Stored]:
    data = path.read_bytes()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        side, tall, width = int(dataset.Columns), int(dataset.Rows), int(dataset.TotalPixelMatrixColumns)
        table = io.BytesIO(data[data.index(_PIXEL_DATA) + len(_PIXEL_DATA) :])  # frame by frame, for a file may end in one
        offsets = pydicom.encaps.parse_basic_offsets(table) or [0]
    except Exception as error:
        raise ForeignTrouble(f"pydicom: {type(error).__name__} {error}") from error
    if len(offsets) != int(dataset.NumberOfFrames):
        raise ForeignTrouble(f"pydicom: {len(offsets)} offsets for {dataset.NumberOfFrames} frames")
    across, first = -(-width // side), table.tell()
    for number, offset in enumerate(offsets):
        at = (number % across * side, number // across * tall, side, tall)
        item = table.getvalue()[first + offset :]
        n = int.from_bytes(item[4:8], "little")
        whole = item[:4] == _ITEM and len(item) >= 8 + n
        yield _decoded(at, item[8 : 8 + n], (tall, side, 3), is_jpeg=True) if whole else _Stored(*at, None, "no whole frame")


def _decoded(at: tuple[int, int, int, int], stream: bytes, shape: tuple[int, int, int], *, is_jpeg: bool) -> _Stored:
    try:
        pixels = simplejpeg.decode_jpeg(stream) if is_jpeg else np.frombuffer(zlib.decompress(stream), np.uint8).reshape(shape)
    except (ValueError, zlib.error) as error:
        return _Stored(*at, None, str(error) or "no px")
    return _Stored(*at, pixels) if pixels.shape == shape else _Stored(*at, None, f"{pixels.shape} px")
