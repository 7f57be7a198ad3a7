"""File tiles from their stored bytes to RGB, strictly: what is damaged raises, and no px are made up.

LZW holds no checksum: a wrong code is found where it is none, or where the tile ends up too short, as in OpenSlide.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from wsi_ips.slide.jpegstream import whole_stream
from wsi_ips.slide.streamsize import HEAD_BYTES, frame_size

__all__ = ["APERIO_JPEG2000", "JPEG", "LOSSLESS", "decode_jpeg", "decode_jpeg2000", "decode_lossless"]

# compressions of TIFF
JPEG = 7
LOSSLESS = (5, 8, 32946)  # LZW, deflate and its older number
APERIO_JPEG2000 = 33005  # RGB; 33003 is YCbCr, which OpenSlide converts in a way of its own

_LZW = 5
_DIFFERENCES = 2  # predictor: each px less the one left of it


def decode_jpeg(data: bytes, head: bytes, shrink: int, out: np.ndarray) -> None:
    """Decode a JPEG stream into (h, w, 3) uint8; a warning of the decoder (cut short, bad code) is an error.

    Args:
        data: what the file holds.
        head: what every stream of the level begins with.
        shrink: 1, 2, 4 or 8.
        out: written.

    Raises:
        ValueError, IndexError: no such stream, or one of another size.
    """
    height, width = out.shape[:2]
    stream, at_least = whole_stream(data, head), {}
    if shrink > 1:
        at_least = {"min_height": height, "min_width": width}
        stated = simplejpeg.decode_jpeg_header(stream)[:2]  # the decoder takes any scale that gives this many px
        if stated != (height * shrink, width * shrink):
            raise ValueError(f"its stream states {stated[1]} x {stated[0]} px instead of {width * shrink} x {height * shrink}")
    found = simplejpeg.decode_jpeg(stream, buffer=out, **at_least)
    if found.shape != out.shape:
        raise ValueError(f"its stream holds {found.shape[1]} x {found.shape[0]} px instead of {width} x {height}")


def decode_jpeg2000(data: bytes, out: np.ndarray) -> None:
    """Decode a JPEG 2000 codestream into (h, w, 3) uint8.

    Raises:
        ValueError, RuntimeError: cut short, damaged, or of another size.
    """
    import imagecodecs  # slow to import, and few slides need it

    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("the stream has no end mark: it was cut short")  # the decoder would fill in grey
    if (stated := frame_size(data[:HEAD_BYTES])) != (out.shape[1], out.shape[0]):  # the decoder makes room for what is stated
        raise ValueError(f"its stream states {stated} px instead of {out.shape[1]} x {out.shape[0]}")
    found = imagecodecs.jpeg2k_decode(data)
    if found.shape != out.shape or found.dtype != np.uint8:
        raise ValueError(f"its stream holds {found.shape} {found.dtype} instead of {out.shape}")
    out[...] = found


def decode_lossless(data: bytes, compression: int, predictor: int, out: np.ndarray) -> None:
    """Unpack LZW, or a zlib stream, whose checksum is held, into (h, w, 3) uint8.

    Args:
        data: what the file holds.
        compression: of `LOSSLESS`.
        predictor: 1, or 2 for horizontal differences.
        out: written.

    Raises:
        ValueError, RuntimeError: cut short, damaged, or of another size.
    """
    import imagecodecs

    unpack = imagecodecs.lzw_decode if compression == _LZW else imagecodecs.deflate_decode
    found = np.asarray(unpack(data, out=out.reshape(-1).data))
    if found.size != out.size:
        raise ValueError(f"its stream holds {found.size} bytes instead of {out.size}")
    if predictor == _DIFFERENCES:
        imagecodecs.delta_decode(out, axis=1, out=out)
