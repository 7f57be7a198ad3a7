"""Which files the fast path reads: headers of a kind that tests have proven, after it agreed with OpenSlide on this file.

Proven kinds: Aperio and generic tiled TIFF as OpenSlide knows them, 8-bit, three samples a px, one plane, and
  * JPEG (compression 7), baseline, RGB or YCbCr, chroma 4:4:4, 4:2:2 or 4:2:0;
  * Aperio's JPEG 2000 in RGB (33005);
  * deflate and LZW of RGB, with or without horizontal differences;
and DICOM in baseline JPEG whose tiles are all there in raster order, with the same samplings (`dicomframes`).
Other vendors place tiles by rules of their own (overlaps, several areas, tiles that stand for others), and stay with
OpenSlide. The choice is made once, before the first tile of a pass.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from wsi_ips.errors import TileReadError, UnreadableSlideError
from wsi_ips.slide.dicomframes import dicom_levels
from wsi_ips.slide.directtiles import DirectTiles, StoredLevel
from wsi_ips.slide.jpegstream import shrinks_of
from wsi_ips.slide.tiffheader import Ifd, TiffHeader
from wsi_ips.slide.tilecodes import APERIO_JPEG2000, JPEG, LOSSLESS

__all__ = ["Judge", "prove_direct"]

_VENDORS = ("aperio", "generic-tiff")
_MAX_TABLES = 1 << 16
_PROBES = 4  # file tiles compared on level 0; two on the others
_PART_PX = 96
_NEARLY = 6.0  # mean difference where OpenSlide interpolates between px; a wrong colour space is 49


class Judge(Protocol):
    """What decides: a handle of OpenSlide."""

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        """Read RGB on white; see `Handle.read`."""

    def close(self) -> None:
        """Close it."""


def prove_direct(
    file: Path, header: TiffHeader | None, vendor: str, level_sizes: list[tuple[int, int]], judge: Callable[[], Judge]
) -> DirectTiles | None:
    """Open the fast path for a file, if it may be used.

    Args:
        file: local.
        header: its directory, already checked against the file's size; None where it is no TIFF.
        vendor: as OpenSlide calls it.
        level_sizes: (width, height) px of OpenSlide's levels.
        judge: opens a handle of OpenSlide.

    Raises:
        UnreadableSlideError: damage that would end the process of the library that reads it.

    Returns:
        None where the header is of no proven kind, or where a tile differs from OpenSlide's.
    """
    if not hasattr(os, "pread"):
        return None
    paths, levels = [file], list[StoredLevel]()
    try:
        if vendor == "dicom":
            paths, levels = dicom_levels(file, level_sizes)
        elif header is not None and vendor in _VENDORS:
            levels = _tiff_levels(file, header, vendor, level_sizes)
        if not levels:
            return None
        direct = DirectTiles([str(p) for p in paths], file.name, levels)
    except UnreadableSlideError:
        raise
    except OSError:  # a file of the series went away: its library has a sentence for that
        return None
    with contextlib.closing(_Court(judge)) as court, contextlib.ExitStack() as unless_proven:
        unless_proven.callback(direct.close)
        if all(_agrees(direct, level, i, levels[0], court) for i, level in enumerate(levels)):
            unless_proven.pop_all()
            return direct
    return None


class _Court:
    """A judge that is replaced after it erred: it would answer nothing any more."""

    def __init__(self, judge: Callable[[], Judge]) -> None:
        self._open = judge
        self._judge: Judge | None = None

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> bool:
        """Read; False where it cannot."""
        self._judge = self._judge or self._open()
        try:
            self._judge.read(out, x0, y0, level)
        except TileReadError:
            self.close()
            return False
        return True

    def close(self) -> None:
        """Close the present judge."""
        judge, self._judge = self._judge, None
        if judge is not None:
            judge.close()


def _tiff_levels(file: Path, header: TiffHeader, vendor: str, level_sizes: list[tuple[int, int]]) -> list[StoredLevel]:
    """Find the images of all levels; none where one of them is of no proven kind."""
    with file.open("rb") as stream:
        read_bytes = lambda at, n: (stream.seek(at), stream.read(n))[1]  # noqa: E731
        levels = [_level(header, size, vendor, i, read_bytes) for i, size in enumerate(level_sizes)]
    known = [level for level in levels if level is not None]
    return known if len(known) == len(levels) else []


def _level(
    header: TiffHeader, size: tuple[int, int], vendor: str, number: int, read_bytes: Callable[[int, int], bytes]
) -> StoredLevel | None:
    """Find the image of a level, if there is just one and it is of a proven kind."""
    found = [i for i in header.ifds[: header.n_chain] if i.is_tiled and (i.width, i.height) == size]
    if len(found) != 1:
        return None
    ifd = found[0]
    if not _is_plain(ifd) or (ifd.compression == APERIO_JPEG2000 and vendor != "aperio"):
        return None
    counts = ifd.byte_counts[: ifd.n_tiles]
    missing = counts == 0
    if missing.all() or (vendor == "aperio" and number and missing.any()):
        return None  # OpenSlide fills such tiles of Aperio's coarser levels from the finer ones
    first = int(np.argmax(counts))
    tables_at, n_tables = ifd.jpeg_tables
    if int(counts[first]) > 8 * ifd.tile_width * ifd.tile_height + _MAX_TABLES or n_tables > _MAX_TABLES:
        return None
    stream = read_bytes(int(ifd.offsets[first]), int(counts[first]))
    if ifd.compression == APERIO_JPEG2000:
        return StoredLevel.of(ifd, b"", (1,)) if stream.startswith(b"\xff\x4f\xff\x51") else None
    if ifd.compression in LOSSLESS:
        return StoredLevel.of(ifd, b"", (1,))
    tables = read_bytes(tables_at, n_tables) if n_tables else b"\xff\xd8\xff\xd9"
    shrinks = shrinks_of(stream, (ifd.tile_width, ifd.tile_height))
    if not shrinks or tables[:2] != b"\xff\xd8" or tables[-2:] != b"\xff\xd9":
        return None
    return StoredLevel.of(ifd, tables, shrinks)


def _is_plain(ifd: Ifd) -> bool:
    is_known = ifd.photometric == 2 and ifd.compression in (APERIO_JPEG2000, *LOSSLESS) and ifd.predictor in (1, 2)
    is_known = is_known or (ifd.photometric in (2, 6) and ifd.compression == JPEG)
    return is_known and ifd.samples == 3 and set(ifd.bits) == {8} and ifd.planar == 1 and ifd.sample_format in (1, 4)


def _agrees(direct: DirectTiles, level: StoredLevel, number: int, level0: StoredLevel, court: _Court) -> bool:
    """Compare the file tiles with most bytes, which hold most to get wrong, and the first one."""
    downsample = (level0.width / level.width + level0.height / level.height) / 2.0
    n = min(_PROBES if number == 0 else 2, len(level.byte_counts))
    chosen = [0, *np.argpartition(level.byte_counts, -n)[-n:].tolist()]
    found = [_is_same(direct, level, number, tile, downsample, court) for tile in dict.fromkeys(chosen)]
    # a coarse level that is damaged at every probe says nothing either; what it holds is decoded strictly, or fails
    return False not in found and (True in found or number > 0)


def _is_same(
    direct: DirectTiles, level: StoredLevel, number: int, tile: int, downsample: float, court: _Court
) -> bool | None:
    """Compare one file tile; None where it cannot be decoded strictly, whatever OpenSlide makes of it."""
    row, column = divmod(tile, level.across)
    left, top = column * level.tile_width, row * level.tile_height
    # where OpenSlide interpolates it takes ten times as long: part of a tile is enough to know colours and place
    most = _PART_PX if number else level.tile_width + level.tile_height
    shape = (min(level.tile_height, level.height - top, most), min(level.tile_width, level.width - left, most), 3)
    ours, theirs = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    x0, y0 = round(left * downsample), round(top * downsample)
    try:
        direct.read(ours, left, top, number)
        is_read = True
    except TileReadError:
        is_read = False
    if not is_read:
        return None  # damage, which OpenSlide may fill in: no reason to let it read this file
    if not court.read(theirs, x0, y0, number):
        return False
    is_exact = all(math.isclose(at0 / downsample, at, abs_tol=1e-9) for at0, at in ((x0, left), (y0, top)))
    if is_exact:
        return bool(np.array_equal(ours, theirs))
    return float(np.abs(ours.astype(np.int16) - theirs).mean()) <= _NEARLY
