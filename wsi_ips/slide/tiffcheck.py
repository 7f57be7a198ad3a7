"""Whether a TIFF file is a slide this package reads, and with which library; decided from the header alone.

The rule, by format (`choose_reader`):
  * OME-TIFF (its XML in the first description): TiffSlide; OpenSlide does not know sub-image pyramids.
  * 32-bit big-endian ("MM", byte 42): TiffSlide; OpenSlide 4.0.1 does not follow its directory pointer.
  * compression none, LZW, deflate, JPEG, or Aperio's JPEG 2000 (33003, 33005): OpenSlide.
  * compression JPEG 2000 (33004, 34712), WebP (34927, 50001), Zstandard (50000): TiffSlide.
  * anything remote: TiffSlide.
TiffSlide returns pixels for damaged JPEG tiles where OpenSlide raises; so a format is TiffSlide's only where OpenSlide
does not know it, and what the header can tell (ends too early, offsets missing) is refused here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.limits import MAX_LEVEL0_PX, MAX_LEVELS
from wsi_ips.slide.tiffheader import Ifd, TiffHeader, truncated
from wsi_ips.untrusted import may_define_entities

__all__ = ["check_tiff", "choose_reader", "is_ome", "missing_mask", "tiles_under"]

_OPENSLIDE_COMPRESSIONS = {1, 5, 7, 8, 32946, 33003, 33005}
_TIFFSLIDE_COMPRESSIONS = {33004, 34712, 34927, 50000, 50001}
_WANTED = "wsi-ips reads brightfield slides: 8-bit RGB"
_PHOTOMETRIC = {0: "grey", 1: "grey", 3: "palette colour", 4: "mask", 5: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*"}
_4_GIB = 1 << 32


def is_ome(header: TiffHeader) -> bool:
    """Tell OME-TIFF: its first description is OME-XML."""
    text = header.ifds[0].description[:4096]
    return "<OME" in text and "openmicroscopy.org" in text


def choose_reader(header: TiffHeader, name: str, *, is_remote: bool) -> Literal["openslide", "tiffslide"]:
    """Choose the library by format.

    Raises:
        UnreadableSlideError: neither decodes this compression (`E_UNSUPPORTED`).
    """
    compression = header.primary.compression
    if compression not in _OPENSLIDE_COMPRESSIONS | _TIFFSLIDE_COMPRESSIONS:
        message = (
            f"{name}: TIFF compression {compression} is not supported; "
            "convert it, e.g. `vips tiffsave in out.tif --tile --pyramid --compression jpeg`"
        )
        raise UnreadableSlideError("E_UNSUPPORTED", message)
    is_unknown_to_openslide = is_ome(header) or header.is_classic_big_endian or compression in _TIFFSLIDE_COMPRESSIONS
    return "tiffslide" if is_remote or is_unknown_to_openslide else "openslide"


def check_tiff(header: TiffHeader, name: str) -> None:
    """Refuse what cannot be read whole and right.

    Raises:
        UnreadableSlideError: `E_PIXEL_FORMAT`, `E_UNTILED`, `E_ABSURD`, `E_TRUNCATED`.
    """
    _check_xml(header, name)
    _check_sizes(header, name)
    _check_pixels(header, name)
    if not header.primary.is_tiled and not header.is_ndpi:
        ifd = header.primary
        message = (
            f"{name}: {ifd.width} x {ifd.height} px in strips instead of tiles, which cannot be read piecewise; "
            "convert it once: `vips tiffsave in out.tif --tile --pyramid --compression jpeg`"
        )
        raise UnreadableSlideError("E_UNTILED", message)
    if header.is_ndpi and header.file_size >= _4_GIB:
        return  # its 64-bit offsets are stored in a way of Hamamatsu's own; OpenSlide judges those
    for ifd in header.ifds:
        _check_storage(ifd, header, name)


def missing_mask(ifd: Ifd, left_px: int, top_px: int, width_px: int, height_px: int) -> np.ndarray | None:
    """Find the px of a rectangle whose tiles were never written (zero bytes).

    Args:
        ifd: a tiled image.
        left_px, top_px, width_px, height_px: the rectangle, px of this image, inside it.

    Returns:
        (height_px, width_px) bool, or None where nothing is missing.
    """
    if width_px < 1 or height_px < 1 or len(ifd.byte_counts) == 0:
        return None
    tiles = tiles_under(ifd, left_px, top_px, width_px, height_px)
    if (ifd.byte_counts[tiles] > 0).all():
        return None
    columns = np.arange(left_px, left_px + width_px) // ifd.tile_width
    rows = np.arange(top_px, top_px + height_px) // ifd.tile_height
    return ifd.byte_counts[rows[:, None] * ifd.tiles_across + columns[None, :]] == 0


def tiles_under(ifd: Ifd, left_px: int, top_px: int, width_px: int, height_px: int) -> np.ndarray:
    """Number the tiles a rectangle touches, cut to the image: (n,) int64, rising."""
    right, bottom = min(left_px + width_px, ifd.width), min(top_px + height_px, ifd.height)
    columns = np.arange(left_px // ifd.tile_width, -(-right // ifd.tile_width))
    rows = np.arange(top_px // ifd.tile_height, -(-bottom // ifd.tile_height))
    return (rows[:, None] * ifd.tiles_across + columns[None, :]).ravel()


def _check_xml(header: TiffHeader, name: str) -> None:
    for ifd in header.ifds:
        if may_define_entities(ifd.description) or may_define_entities(ifd.xmp):
            message = f"{name}: the XML in its description defines entities, which no scanner does; it is refused"
            raise UnreadableSlideError("E_ABSURD", message)


def _check_sizes(header: TiffHeader, name: str) -> None:
    ifd, n_levels = header.primary, len({(i.width, i.height) for i in header.ifds if i.is_tiled})
    if ifd.width * ifd.height > MAX_LEVEL0_PX:
        raise UnreadableSlideError("E_ABSURD", f"{name}: states a level 0 of {ifd.width} x {ifd.height} px")
    if n_levels > MAX_LEVELS:
        raise UnreadableSlideError("E_ABSURD", f"{name}: states {n_levels} levels, at most {MAX_LEVELS} are read")


def _check_pixels(header: TiffHeader, name: str) -> None:
    ifd = header.primary
    same = [i for i in header.ifds[: header.n_chain] if (i.width, i.height) == (ifd.width, ifd.height)]
    if ifd.samples == 1 and len(same) > 1:
        found = f"{len(same)} single-channel images of {ifd.width} x {ifd.height} px (multichannel fluorescence?)"
    else:
        found = _odd_pixels(ifd)
    if found:
        raise UnreadableSlideError("E_PIXEL_FORMAT", f"{name}: found {found}; {_WANTED}")


def _odd_pixels(ifd: Ifd) -> str:
    """Name what is unusual about the samples; empty for 8-bit RGB(A) and YCbCr."""
    kind = _PHOTOMETRIC.get(ifd.photometric, "RGB" if ifd.photometric in (2, 6) else "unknown colour")
    bits = max(ifd.bits)
    if ifd.sample_format == 3:
        return f"{bits}-bit float samples ({kind})"
    if bits != 8 or min(ifd.bits) != 8 or ifd.sample_format not in (1, 4):
        return f"{bits}-bit {'signed ' if ifd.sample_format == 2 else ''}samples ({kind})"
    if ifd.photometric not in (2, 6):
        return f"{bits}-bit {kind} (TIFF photometric {ifd.photometric})"
    if ifd.samples not in (3, 4):
        return f"{ifd.samples} samples a pixel"
    if ifd.planar != 1:
        return "colour channels in separate planes"
    return ""


def _check_storage(ifd: Ifd, header: TiffHeader, name: str) -> None:
    what = f"image {ifd.number} ({ifd.width} x {ifd.height} px)"
    n_parts = min(len(ifd.offsets), len(ifd.byte_counts))
    if ifd.is_tiled:
        planes = ifd.samples if ifd.planar == 2 else 1
        needed = ifd.n_tiles * planes
        if n_parts < needed:
            message = f"{name}: not a usable TIFF file: its {what} needs {needed} tiles, the directory lists {n_parts}"
            raise UnreadableSlideError("E_ABSURD", message)
    if n_parts == 0:
        return
    offsets, counts = ifd.offsets[:n_parts].astype(np.float64), ifd.byte_counts[:n_parts].astype(np.float64)
    ends = np.where(counts > 0, offsets + counts, 0.0)
    if ends.max() > header.file_size:
        # the largest end over all images is what the whole file needs
        raise truncated(name, header.file_size, _needed_bytes(header), what)


def _needed_bytes(header: TiffHeader) -> int:
    ends = [0]
    for ifd in header.ifds:
        n = min(len(ifd.offsets), len(ifd.byte_counts))
        if n:
            sums = [int(a) + int(b) for a, b in zip(ifd.offsets[:n], ifd.byte_counts[:n], strict=True) if b]
            ends.append(max(sums, default=0))
    return max(ends)
