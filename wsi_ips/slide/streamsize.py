"""How large an image the first bytes of a compressed tile state, before a decoder makes room for it.

A tile of 128 px may hold a stream that states 65,500 x 65,500: some decoders believe it and ask for 12 GB. Nothing is
decoded here; a stream whose size is not among its first bytes says None, and is left to the decoder.

Source: ITU-T T.81 B.2.2 (JPEG), T.800 A.5.1 (JPEG 2000), RFC 9649 (WebP).
"""

from __future__ import annotations

import struct

__all__ = ["HEAD_BYTES", "frame_size"]

HEAD_BYTES = 4096  # of a tile that are looked at
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # between SOF0 and SOF15, and not one of them


def frame_size(head: bytes) -> tuple[int, int] | None:
    """Read (width, height), px, of a JPEG, JPEG 2000 (codestream or JP2) or WebP stream from its first bytes.

    >>> frame_size(bytes.fromhex("ffd8ffc0001108ffdcffdc0301220002110103110100"))
    (65500, 65500)
    """
    try:
        if head[:2] == b"\xff\xd8":
            return _jpeg(head)
        codestream = head.find(b"\xff\x4f\xff\x51") if head[:4] == b"\xff\x4f\xff\x51" or head[4:8] == b"jP  " else -1
        if codestream >= 0:
            right, bottom, left, top = struct.unpack_from(">4I", head, codestream + 8)
            return right - left, bottom - top
        return _webp(head) if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None
    except (struct.error, IndexError):
        return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    while head[at] == 0xFF:
        kind, length = head[at + 1], struct.unpack_from(">H", head, at + 2)[0]
        if 0xC0 <= kind <= 0xCF and kind not in _NO_FRAME:
            height, width = struct.unpack_from(">2H", head, at + 5)
            return width, height
        at += 2 + length
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<2H", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
