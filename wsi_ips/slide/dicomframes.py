"""Where the frames of a DICOM slide's levels lie: enough to decode them strictly, which OpenSlide does not.

A frame is an item: eight bytes of tag and length, then a whole JPEG stream. Taken are levels of one file each whose frames
are all there in raster order (TILED_FULL, one focal plane, one optical path, no concatenation) in baseline JPEG; the
table of offsets is used where there is one, else the items are followed.

Source: DICOM PS3.5 A.4 (encapsulated pixel data, offset tables), PS3.3 C.7.6.17 (TILED_FULL), C.8.12.4.
"""

from __future__ import annotations

import struct
from io import RawIOBase
from pathlib import Path

import numpy as np

from wsi_ips.slide.dicom import UNDEFINED, DicomFile, elements, read_dicom_file, series_files
from wsi_ips.slide.directtiles import StoredLevel
from wsi_ips.slide.jpegstream import ITEM, shrinks_of, stream_head
from wsi_ips.slide.tilecodes import JPEG

__all__ = ["dicom_levels"]

_BASELINE = "1.2.840.10008.1.2.4.50"
_IS_RGB = {"RGB": True, "YBR_FULL_422": False, "YBR_FULL": False}
_PIXEL_DATA = (0x7FE0, 0x0010)
_HEADER_BYTES = 8 << 20  # looked at in search of the px: colour profiles lie before them
_MAX_FRAME_BYTES = 1 << 24
_MAX_FRAMES = 1 << 22
_ITEM_BYTES = 8  # tag and length
_NO_TABLES = b"\xff\xd8\xff\xd9"


def dicom_levels(file: Path, level_sizes: list[tuple[int, int]]) -> tuple[list[Path], list[StoredLevel]]:
    """Find the frames of every level of a series.

    Args:
        file: one of the series.
        level_sizes: (width, height) px of OpenSlide's levels.

    Returns:
        The levels' files, and the levels in the given order; nothing where one of them is of no proven kind.
    """
    own = read_dicom_file(file)
    family = [f for f in [own, *series_files(file)] if f is not None and f.is_volume]
    paths: list[Path] = []
    levels: list[StoredLevel] = []
    for size in level_sizes:
        found = [f for f in family if (f.width, f.height) == size]
        level = _level(found[0], len(levels)) if len(found) == 1 else None
        if level is None:
            return [], []
        paths.append(found[0].path)
        levels.append(level)
    return paths, levels


def _level(said: DicomFile, number: int) -> StoredLevel | None:
    width, height = said.frame_px
    if said.syntax != _BASELINE or said.photometric not in _IS_RGB or said.organization != "TILED_FULL" or not width * height:
        return None
    if (said.samples, said.bits) != (3, 8) or said.n_frames != -(-said.width // width) * -(-said.height // height):
        return None
    if said.n_frames > _MAX_FRAMES:
        return None
    with said.path.open("rb", buffering=0) as f:  # items lie far apart
        table = _frames(f, said.n_frames)
        if table is None:
            return None
        offsets, counts = table
        if counts.min() <= _ITEM_BYTES or counts.max() > min(_MAX_FRAME_BYTES, 8 * width * height + (1 << 16)):
            return None
        f.seek(int(offsets[0]) + _ITEM_BYTES)
        shrinks = shrinks_of(f.read(int(counts[0]) - _ITEM_BYTES), (width, height))
    if not shrinks:
        return None
    head = stream_head(_NO_TABLES, is_rgb=_IS_RGB[said.photometric])
    return StoredLevel(said.width, said.height, width, height, offsets, counts, JPEG, head, shrinks, file=number, has_items=True)


def _frames(f: RawIOBase, n_frames: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the items of the frames: (n_frames,) int64 offsets and bytes, headers included; None where it is not so plain."""
    head = f.read(_HEADER_BYTES)
    try:
        start = next(start for tag, start, length in elements(head) if tag == _PIXEL_DATA and length == UNDEFINED)
    except (StopIteration, struct.error, IndexError):
        return None
    n_table = _item_bytes(f, start)
    if n_table is None or n_table not in (0, 4 * n_frames):
        return None
    first = start + _ITEM_BYTES + n_table
    if n_table:
        f.seek(start + _ITEM_BYTES)
        table = f.read(n_table)
        offsets = first + np.frombuffer(table, "<u4").astype(np.int64) if len(table) == n_table else np.zeros(0, np.int64)
    else:
        offsets = _followed(f, first, n_frames)
    if len(offsets) != n_frames or offsets[0] != first or (np.diff(offsets) <= 0).any():
        return None
    last = _item_bytes(f, int(offsets[-1]))  # its header alone says where it ends; where that is gone, it is read in vain
    return offsets, np.diff(offsets, append=offsets[-1] + _ITEM_BYTES + (last or 1))


def _followed(f: RawIOBase, at: int, n_frames: int) -> np.ndarray:
    """Follow items from one to the next: offsets of as many as there are, at most one more than wanted."""
    offsets: list[int] = []
    while len(offsets) <= n_frames and (n := _item_bytes(f, at)) is not None:
        offsets.append(at)
        at += _ITEM_BYTES + n
    return np.array(offsets, np.int64)


def _item_bytes(f: RawIOBase, at: int) -> int | None:
    """Length an item states; None where there is none."""
    f.seek(at)
    header = f.read(_ITEM_BYTES)
    return int.from_bytes(header[4:], "little") if len(header) == _ITEM_BYTES and header[:4] == ITEM else None
