"""OpenSlide and TiffSlide behind the protocol, and an in-memory slide; foreign errors stop here.

A backend opens a file, says what the library says of it, and reads RGB on white of a rectangle that lies inside the
scan. All else is common: clipping to the bounds, colour, handles, errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openslide
from openslide import lowlevel
from PIL import ImageCms

from wsi_ips.errors import TileReadError, UnreadableSlideError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.limits import MAX_ICC_BYTES
from wsi_ips.slide.regions import composite_on_white, premultiplied_on_white
from wsi_ips.slide.streamsize import HEAD_BYTES, frame_size
from wsi_ips.slide.tiffcheck import missing_mask, tiles_under
from wsi_ips.slide.tiffheader import Ifd, TiffHeader

__all__ = ["ArraySlide", "Backend", "Description", "OpenSlideBackend", "TiffSlideBackend", "clean_text"]

_JPEG = 7  # TIFF compression
_IMAGES = (_JPEG, 33003, 33004, 33005, 34712, 34927, 50001)  # compressions whose streams state the size of an image
_KEPT_PX = 1024 * 1024  # of what a handle was last asked for; larger places are made each time
_CACHE_BYTES = 32 << 20  # decoded tiles, shared by the handles of a slide


_KNOWN_REASONS = (
    ("Couldn't get image flavor", "E_UNSUPPORTED",
     "this DICOM file states no ImageType, so OpenSlide cannot tell level from label; export or convert it again"),
    ("No pyramid levels found", "E_PARTS",
     "only label, overview or thumbnail of a DICOM slide is here; copy the other files of its series beside it"),
)  # fmt: skip


def clean_text(text: object, path: str = "") -> str:
    """Make a foreign message fit to show: one line, printable, without folders."""
    line = " ".join((str(text).replace(path, "") if path else str(text)).split())
    line = re.sub(r"\S*[/\\]\S*[/\\]\S*", "(path)", line)
    return "".join(c if c.isprintable() else "?" for c in line)[:300].strip(" :") or "no reason given"


@dataclass(frozen=True)
class Description:
    """What a library says of a file it has opened."""

    reader: str  # "openslide 4.0.1"
    vendor: str
    level_sizes: list[tuple[int, int]]  # (width, height) px in the file's order
    bounds: Box0 | None
    properties: Mapping[str, Any]  # the library's own; nothing of it is passed on unchecked


class Handle(Protocol):
    """An open file of a backend; used by one thread at a time."""

    def describe(self) -> Description:
        """Say what the library says."""

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        """Read a rectangle of a level of the file.

        Args:
            out: (h, w, 3) uint8, C-contiguous; becomes RGB, white where the file holds nothing.
            x0, y0: its corner, level-0 px.
            level: of the file.

        Returns:
            Px that the file does not hold.

        Raises:
            TileReadError: px that cannot be decoded (`E_TILE`).
        """

    def icc_profile(self) -> bytes | None:
        """Read the colour profile; None where the file has none."""

    def close(self) -> None:
        """Close the file."""


class Backend(Protocol):
    """Opens one slide, any number of times."""

    def open(self) -> Handle:
        """Open one more handle.

        Raises:
            UnreadableSlideError: the library refuses the file.
        """


class OpenSlideBackend:
    """OpenSlide, for everything local that it knows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache = openslide.OpenSlideCache(_CACHE_BYTES)

    def open(self) -> _OpenSlideHandle:
        """Open one more handle; `E_UNSUPPORTED` with OpenSlide's reason where it refuses."""
        try:
            slide = openslide.OpenSlide(self._path)
            slide.set_cache(self._cache)
        except (openslide.OpenSlideError, OSError) as error:
            raise _refused(self._path.name, "OpenSlide", error, str(self._path)) from error
        return _OpenSlideHandle(slide, self._path)


class _OpenSlideHandle:
    def __init__(self, slide: openslide.OpenSlide, path: Path) -> None:
        self._slide, self._path = slide, path
        self._argb = np.empty(0, np.uint32)

    def describe(self) -> Description:
        try:
            properties = {}
            for key in self._slide.properties:
                with contextlib.suppress(KeyError, UnicodeDecodeError):  # damaged text is listed, but cannot be had
                    properties[key] = self._slide.properties[key]
            sizes = [(int(w), int(h)) for w, h in self._slide.level_dimensions]
        except openslide.OpenSlideError as error:
            raise _refused(self._path.name, "OpenSlide", error, str(self._path)) from error
        vendor = properties.get("openslide.vendor", "")
        reader = f"openslide {openslide.__library_version__}"
        return Description(reader, vendor, sizes, _bounds(properties, "openslide"), properties)

    def icc_profile(self) -> bytes | None:
        return _profile_bytes(self._slide, self._path.name)

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        height_px, width_px = out.shape[:2]
        argb = self._argb if self._argb.size >= height_px * width_px else np.empty(height_px * width_px, np.uint32)
        if argb.size <= _KEPT_PX:
            self._argb = argb
        argb = argb[: height_px * width_px].reshape(height_px, width_px)
        try:
            # into our own memory: by way of Pillow a tile costs half as much again
            place = argb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            lowlevel._read_region(self._slide._osr, place, x0, y0, level, width_px, height_px)
        except openslide.OpenSlideError as error:
            raise _unread(self._path.name, x0, y0, level, error, str(self._path)) from error
        return premultiplied_on_white(argb, out)

    def close(self) -> None:
        self._slide.close()


class TiffSlideBackend:
    """TiffSlide, for TIFF compressions and layouts OpenSlide does not know, and for remote files.

    Args:
        source: local path or fsspec URI.
        header: the file's own directory, for tiles that were never written (TiffSlide makes them black).
    """

    def __init__(self, source: str, name: str, header: TiffHeader) -> None:
        self._source, self._name, self._header = source, name, header

    def open(self) -> _TiffSlideHandle:
        """Open one more handle; `E_UNSUPPORTED` with TiffSlide's reason where it refuses."""
        import tiffslide  # slow to import, and few slides need it

        try:
            slide = tiffslide.TiffSlide(self._source)
            return _TiffSlideHandle(slide, self._name, self._header, f"tiffslide {tiffslide.__version__}")
        except MemoryError:
            raise
        except Exception as error:  # it passes on whatever tifffile, zarr and fsspec raise
            raise _refused(self._name, "TiffSlide", error, self._source) from error


class _TiffSlideHandle:
    def __init__(self, slide: Any, name: str, header: TiffHeader, reader: str) -> None:
        self._slide, self._name, self._header, self._reader = slide, name, header, reader
        self._sizes = [(int(w), int(h)) for w, h in slide.level_dimensions]
        self._ifds = [_ifd_of_size(header, size) for size in self._sizes]

    def describe(self) -> Description:
        properties = dict(self._slide.properties)
        vendor = str(properties.get("tiffslide.vendor") or "generic-tiff")
        return Description(self._reader, vendor, self._sizes, _bounds(properties, "tiffslide"), properties)

    def icc_profile(self) -> bytes | None:
        return _profile_bytes(self._slide, self._name)

    def read(self, out: np.ndarray, x0: int, y0: int, level: int) -> int:
        height_px, width_px = out.shape[:2]
        width0, height0 = self._sizes[0]
        width, height = self._sizes[level]
        downsample = (width0 / width + height0 / height) / 2.0
        left, top = int(x0 / downsample + 0.5), int(y0 / downsample + 0.5)
        corner0 = (_corner_for(left, downsample), _corner_for(top, downsample))
        try:
            self._check_streams(self._ifds[level], left, top, width_px, height_px)
            pixels = self._slide.read_region(corner0, level, (width_px, height_px), as_array=True)
        except MemoryError:
            raise
        except Exception as error:  # tifffile and imagecodecs raise a dozen kinds for broken tiles
            raise _unread(self._name, x0, y0, level, error) from error
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (height_px, width_px) or pixels.shape[2] not in (3, 4):
            raise _unread(self._name, x0, y0, level, f"got {pixels.shape} {pixels.dtype} instead of 8-bit RGB")
        rgba = np.full((height_px, width_px, 4), 255, np.uint8)
        rgba[..., : pixels.shape[2]] = pixels
        stored_w, stored_h = max(0, min(width_px, width - left)), max(0, min(height_px, height - top))
        rgba[stored_h:], rgba[:, stored_w:] = 0, 0  # beyond the level TiffSlide pads with black
        ifd = self._ifds[level]
        gone = None if ifd is None else missing_mask(ifd, left, top, stored_w, stored_h)
        if gone is not None:
            rgba[:stored_h, :stored_w][gone] = 0
        region = composite_on_white(rgba)
        out[...] = region.pixels
        return region.n_missing

    def _check_streams(self, ifd: Ifd | None, left_px: int, top_px: int, width_px: int, height_px: int) -> None:
        """Refuse tiles that state a larger image than they may hold, which the decoder behind TiffSlide makes room for,
        and JPEG tiles cut short, whose rest it fills with grey, and says nothing.
        """
        if ifd is None or ifd.compression not in _IMAGES:
            return
        stream = self._slide.ts_tifffile.filehandle
        for tile in tiles_under(ifd, left_px, top_px, width_px, height_px):
            start, size = int(ifd.offsets[tile]), int(ifd.byte_counts[tile])
            if size == 0:
                continue
            stream.seek(start)
            stated = frame_size(stream.read(min(size, HEAD_BYTES)))
            if stated is not None and (stated[0] > ifd.tile_width or stated[1] > ifd.tile_height):
                raise ValueError(f"tile {tile} states {stated[0]} x {stated[1]} px")
            stream.seek(start + size - min(size, 16))
            if ifd.compression == _JPEG and not stream.read(min(size, 16)).rstrip(b"\0").endswith(b"\xff\xd9"):
                raise ValueError(f"tile {tile} has no end mark: it was cut short")

    def close(self) -> None:
        self._slide.close()


def _corner_for(index_px: int, downsample: float) -> int:
    """Find the level-0 px that TiffSlide, which rounds down, maps to a px of a level."""
    corner0 = math.ceil(index_px * downsample)
    return corner0 if int(corner0 / downsample) == index_px else corner0 + 1


def _profile_bytes(slide: Any, name: str) -> bytes | None:
    stated = str(slide.properties.get("openslide.icc-size") or "0")
    if stated.isdecimal() and int(stated) > MAX_ICC_BYTES:
        raise UnreadableSlideError("E_ABSURD", f"{name}: its colour profile states {stated} bytes")
    try:
        profile = slide.color_profile
    except (ImageCms.PyCMSError, OSError) as error:
        message = f"{name}: its colour profile is damaged; read it with icc 'none'"
        raise UnreadableSlideError("E_PIXEL_FORMAT", message) from error
    return None if profile is None else profile.tobytes()


def _ifd_of_size(header: TiffHeader, size: tuple[int, int]) -> Ifd | None:
    return next((i for i in header.ifds if i.is_tiled and (i.width, i.height) == size), None)


def _bounds(properties: Mapping[str, Any], prefix: str) -> Box0 | None:
    values = [properties.get(f"{prefix}.bounds-{key}") for key in ("x", "y", "width", "height")]
    try:
        numbers = [float(v) for v in values if v is not None]
    except ValueError:
        return None
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers):
        return None
    return Box0(*(int(n) for n in numbers))


def _refused(name: str, library: str, error: object, path: str) -> UnreadableSlideError:
    reason = clean_text(error, path)
    for words, code, sentence in _KNOWN_REASONS:
        if words in reason:
            return UnreadableSlideError(code, f"{name}: {sentence}")
    message = f"{name}: {library} cannot open it: {reason}; export it again, or convert it to pyramidal TIFF"
    return UnreadableSlideError("E_UNSUPPORTED", message)


def _unread(name: str, x0: int, y0: int, level: int, error: object, path: str = "") -> TileReadError:
    message = f"{name}: pixels at level-0 px ({x0}, {y0}) of level {level} cannot be decoded: {clean_text(error, path)}"
    return TileReadError("E_TILE", message)
