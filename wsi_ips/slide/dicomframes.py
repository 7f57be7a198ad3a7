"""Where the frames of a DICOM slide's levels lie: enough to decode them strictly, which OpenSlide does not.

A frame is an item, rarely several: eight bytes of tag and length, then a whole JPEG stream. Taken are levels of one file each whose frames
are all there in raster order (TILED_FULL, one focal plane, one optical path, no concatenation) in baseline JPEG; the
table of offsets is used where there is a sound one, else the items are followed.

Source: DICOM PS3.5 A.4 (encapsulated pixel data, offset tables), PS3.3 C.7.6.17 (TILED_FULL), C.8.12.4.
"""

from __future__ import annotations

import contextlib
import os
import struct
from io import RawIOBase
from pathlib import Path

import numpy as np

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.dicom import UNDEFINED, DicomFile, elements, read_dicom_file, series_files
from wsi_ips.slide.directtiles import StoredLevel
from wsi_ips.slide.jpegstream import ITEM, joined_items, shrinks_of, stream_head
from wsi_ips.slide.tilecodes import JPEG

__all__ = ["dicom_levels"]

_BASELINE = "1.2.840.10008.1.2.4.50"
_IS_RGB = {"RGB": True, "YBR_FULL_422": False, "YBR_FULL": False}
_PIXEL_DATA = (0x7FE0, 0x0010)
_HEADER_BYTES = 8 << 20  # looked at in search of the px: colour profiles lie before them
_MAX_FRAME_BYTES = 1 << 24
_MAX_FRAMES = 1 << 22
_PROBES = 16
_MAX_FRAGMENTS = 256  # of the last frame
_ITEM_BYTES = 8  # tag and length
_NO_TABLES = b"\xff\xd8\xff\xd9"


def dicom_levels(file: Path, level_sizes: list[tuple[int, int]]) -> tuple[list[Path], list[StoredLevel]]:
    """Find the frames of every level of a series. An OSError is the caller's to judge.

    Args:
        file: one of the series.
        level_sizes: (width, height) px of OpenSlide's levels.

    Raises:
        UnreadableSlideError: `E_ABSURD`, a table of frames that leads out of the file and back.

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
        table = _frames(f, said.n_frames, said.path.name)
        if table is None:
            return None
        offsets, counts = table
        most = min(_MAX_FRAME_BYTES, 8 * width * height + (1 << 16))
        is_bad = (counts <= _ITEM_BYTES) | (counts > most)  # damage: these tiles alone cannot be read
        offsets[is_bad], counts[is_bad] = os.fstat(f.fileno()).st_size, 1
        shrinks = _shrinks(f, offsets, counts, said.frame_px)
    if not shrinks:
        return None
    head = stream_head(_NO_TABLES, is_rgb=_IS_RGB[said.photometric])
    return StoredLevel(said.width, said.height, width, height, offsets, counts, JPEG, head, shrinks, file=number, has_items=True)


def _shrinks(f: RawIOBase, offsets: np.ndarray, counts: np.ndarray, size_px: tuple[int, int]) -> tuple[int, ...]:
    """Factors by which the first of the longest frames that is sound can be shrunk; () where none of them is."""
    for i in (*np.argsort(-counts, kind="stable")[:_PROBES], 0):
        with contextlib.suppress(ValueError):
            if shrinks := shrinks_of(joined_items(os.pread(f.fileno(), int(counts[i]), int(offsets[i]))), size_px):
                return shrinks
    return ()


def _frames(f: RawIOBase, n_frames: int, name: str) -> tuple[np.ndarray, np.ndarray] | None:
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
    table = os.pread(f.fileno(), n_table, start + _ITEM_BYTES)
    offsets = first + np.frombuffer(table, "<u4", len(table) // 4).astype(np.int64) if n_table else _followed(f, first, n_frames)
    if len(offsets) != n_frames:
        return None
    if offsets[0] != first or (np.diff(offsets) <= 0).any():  # damaged, or of a file too large for its numbers
        _refuse_beyond(offsets, os.fstat(f.fileno()).st_size, name)
        return None
    return offsets, np.diff(offsets, append=_end(f, int(offsets[-1])))


def _refuse_beyond(offsets: np.ndarray, n_bytes: int, name: str) -> None:
    """Refuse a table that leads out of the file: the library that would read it ends the process there."""
    if (beyond := np.flatnonzero(offsets >= n_bytes)).size:
        found = f"frame {beyond[0] + 1} at byte {offsets[beyond[0]]} of {n_bytes}, and others after it before that"
        raise UnreadableSlideError("E_ABSURD", f"{name}: its table of frames is damaged, it has {found}; copy or export it again")


def _followed(f: RawIOBase, at: int, n_frames: int) -> np.ndarray:
    """Follow items from one to the next: offsets of as many as there are, at most one more than wanted."""
    offsets: list[int] = []
    while len(offsets) <= n_frames and (n := _item_bytes(f, at)) is not None:
        offsets.append(at)
        at += _ITEM_BYTES + n
    return np.array(offsets, np.int64)


def _end(f: RawIOBase, at: int) -> int:
    """Where the items of the last frame end; where its header is gone, a byte on, and it is read in vain."""
    end, n_items = at, 0
    while n_items < _MAX_FRAGMENTS and (n := _item_bytes(f, end)) is not None:
        end, n_items = end + _ITEM_BYTES + n, n_items + 1
    return end if end > at else at + 1


def _item_bytes(f: RawIOBase, at: int) -> int | None:
    """Length an item states; None where there is none."""
    header = os.pread(f.fileno(), _ITEM_BYTES, at)
    return int.from_bytes(header[4:], "little") if len(header) == _ITEM_BYTES and header[:4] == ITEM else None
