"""JPEG streams of file tiles, as bytes: what their colours mean, put where every decoder looks; their frame; their end.

What a JPEG stream in a TIFF means is said by the file's tags, not by the stream: Aperio writes RGB without any marker.
So every stream gets an Adobe marker (APP14) with the colour space of the photometric tag, and loses markers of its own.

Source: ITU-T T.81 for segments, T.872 for APP14; TIFF Technical Note 2 for tables apart from their streams; DICOM PS3.5 A.4
for items.
"""

from __future__ import annotations

__all__ = ["ITEM", "is_whole", "joined_items", "sampling_of", "shrinks_of", "stream_head", "whole_stream"]

ITEM = b"\xfe\xff\x00\xe0"  # a frame's tag in DICOM

_SHRINKS: dict[tuple[tuple[int, int], ...], tuple[int, ...]] = {
    ((1, 1), (1, 1), (1, 1)): (1, 2, 4, 8),
    ((2, 1), (1, 1), (1, 1)): (1, 2),  # beyond, decoders shrink chroma another way
    ((2, 2), (1, 1), (1, 1)): (1, 2, 4, 8),
}
_ADOBE = {is_rgb: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([0 if is_rgb else 1]) for is_rgb in (0, 1)}


def stream_head(tables: bytes, *, is_rgb: bool) -> bytes:
    """Make what every stream of a level begins with; `tables` is what the tag JPEGTables holds."""
    return b"\xff\xd8" + _ADOBE[is_rgb] + _without_markers(tables)[2:-2]


def whole_stream(data: bytes, head: bytes) -> bytes:
    """Join a file tile's bytes and its level's head to a stream that means the same to every decoder.

    Raises:
        ValueError, IndexError: these are no segments.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError(f"the stream begins with {data[:2].hex()} instead of ffd8")
    start = _after_markers(data, 2)
    scan = _scan_at(data, start)
    if data.find(b"\xff\xee", start, scan) >= 0 or data.find(b"\xff\xe0", start, scan) >= 0:
        data, start = _without_markers(data), 2  # markers between the tables would speak after ours
    return b"".join((head, memoryview(data)[start:]))


def is_whole(stream: bytes, at: int = 2) -> bool:
    """Tell whether a stream's scan, looked for from a place on, ends with the end mark, zeros aside, and not before.

    >>> is_whole(bytes.fromhex("ffd8ffda1234ffd900")), is_whole(bytes.fromhex("ffd8ffda1234"))
    (True, False)
    """
    scan = _scan_at(stream, at)
    end = stream.find(b"\xff\xd9", scan)  # a scan's own bytes never look like it
    return scan >= 0 and end >= 0 and not stream[end + 2 :].strip(b"\0")


def sampling_of(stream: bytes) -> tuple[tuple[int, int], ...] | None:
    """Read the sampling factors (horizontal, vertical) of each component of a baseline JPEG of 8 bits; None for others.

    >>> sampling_of(bytes.fromhex("ffd8ffc0001108001000100301220002110103110100"))
    ((2, 2), (1, 1), (1, 1))
    """
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        kind, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if kind in (0xC0, 0xC1) and stream[at + 4] == 8:
            factors = stream[at + 11 : at + 2 + length : 3]
            return tuple((f >> 4, f & 15) for f in factors)
        if kind == 0xDA or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xCC)):
            return None
        at += 2 + length
    return None


def shrinks_of(stream: bytes, size_px: tuple[int, int]) -> tuple[int, ...]:
    """Factors by which the decoder shrinks tiles of a size as averaging would; () for streams of no proven kind.

    >>> shrinks_of(bytes.fromhex("ffd8ffc0001108001000100301220002110103110100"), (240, 252))
    (1, 2, 4)
    """
    factors = sampling_of(stream)
    return tuple(s for s in _SHRINKS.get(factors or (), ()) if size_px[0] % s == 0 and size_px[1] % s == 0)


def joined_items(data: bytes) -> bytes:
    """Take the stream out of a DICOM frame's items, of which there is nearly always one.

    Raises:
        ValueError: these are none, or they do not fill the frame's place.

    >>> joined_items(ITEM + bytes.fromhex("02000000ffd8") + ITEM + bytes.fromhex("02000000ffd9")).hex()
    'ffd8ffd9'
    """
    parts, at = [], 0
    while data[at : at + 4] == ITEM:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at + 8 : end])
        at = end
    if at != len(data) or not parts:
        raise ValueError("the frame's items do not fill the place that the file gives it")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _scan_at(data: bytes, at: int) -> int:
    """Find the scan that segments from a place on lead to; -1 where they lead to none."""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 1 if data[at + 1] == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return at if data[at : at + 2] == b"\xff\xda" else -1


def _after_markers(data: bytes, at: int) -> int:
    """Find the end of the APPn and comment segments that begin at a place."""
    while data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return at


def _without_markers(data: bytes) -> bytes:
    """Leave the APPn and comment segments out of a stream's tables, up to its scan."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if not (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))
