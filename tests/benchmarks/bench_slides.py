"""Slides of any number of tiles, written in seconds: tissue tiles of a painted slide, repeated.

`write_kind` writes the kinds of file that readers meet, each with the same painted tissue, a border of glass, levels a
quarter as wide, and edges that no file tile fills:

420, 422, 444   YCbCr JPEG with that chroma subsampling, file tiles of 256 px
rgb             RGB JPEG as Aperio writes it: tables in the directory, no marker that tells the colours, component ids 0 to 2
240             YCbCr 4:2:0, file tiles of 240 px
jp2k            JPEG 2000 of RGB as Aperio writes it (compression 33005)
deflate, lzw    lossless; lzw with horizontal differences
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile

from wsi_ips.slide.reader import Slide
from wsi_ips.synthetic import PaletteSource, PyramidPlan, SlideRecipe, paint_slide, write_pyramid
from wsi_ips.tiles.tilegrid import TileGrid

KINDS = ("420", "422", "444", "rgb", "240", "jp2k", "deflate", "lzw")
_QUALITY = 88  # 13 to 18 kB a tile of 256 px, as scanners have it
_RGB_QUALITY = 70  # 20 kB: as Aperio's own default
_STEP, _N_LEVELS = 4, 3
_GLASS = 243
_CUT_PX = 77  # of the last column and row of file tiles, beyond the slide's edge


def tissue_palette(n: int = 48, tile_px: int = 256) -> np.ndarray:
    """(n + 1, tile_px, tile_px, 3) uint8: one tile of glass, then n of tissue."""
    pixels = paint_slide(SlideRecipe(5, has_lesion=True)).pixels
    rng = np.random.default_rng(0)
    tiles = [np.full((tile_px, tile_px, 3), _GLASS, np.uint8)]
    while len(tiles) <= n:
        y, x = rng.integers(0, pixels.shape[0] - tile_px), rng.integers(0, pixels.shape[1] - tile_px)
        tile = pixels[y : y + tile_px, x : x + tile_px]
        if (tile.mean(axis=2) < 215).mean() > 0.9:
            tiles.append(tile)
    return np.stack(tiles)


def rows_of_tiles(slide: Slide, first0: int, read_px: int, size_px: int, n_tiles: int) -> TileGrid:
    """Lay up to n_tiles tiles in rows over a slide, from (first0, first0) on, read_px apart, away from the far edges.

    They are read at level 0 and, where the file's coding allows, shrunk by the decoder.
    """
    sides = slide.levels[0].width, slide.levels[0].height
    xs0, ys0 = (np.arange(first0, side - read_px - 256, read_px) for side in sides)
    coords = np.stack(np.meshgrid(xs0, ys0), axis=-1).reshape(-1, 2)[:n_tiles]
    shrink = max((s for s in getattr(slide, "shrinks", lambda level: (1,))(0) if s <= read_px // size_px), default=1)
    return TileGrid(coords, np.ones(len(coords), np.float32), (read_px, read_px), 0, (read_px, read_px), size_px, shrink)


def write_tiled_slide(path: Path, n_tiles: int, tile_px: int, palette: np.ndarray, mpp: float = 0.5) -> None:
    """Write a slide that holds about n_tiles tissue tiles of tile_px level-0 px, wider than high, with a glass border."""
    area = n_tiles * tile_px * tile_px
    columns = max(3, round(math.sqrt(area * 1.4) / 256)) + 2
    rows = max(3, round(area / ((columns - 2) * 256 * 256))) + 2
    index = _index(rows, columns, len(palette))
    plan = PyramidPlan(columns * 256, rows * 256, step=4, n_levels=3)
    write_pyramid(path, PaletteSource(palette, index), plan, mpp=mpp)


def write_gigapixel_slide(path: Path, columns: int = 500, rows: int = 502, n_palette: int = 96) -> None:
    """Write a slide of 128,000 x 128,512 px, 251,000 tiles of 256 px, tissue in every one; about 4 GB, in a minute.

    The coarser levels are made of blocks of 4 x 4 and 16 x 16 tiles, so the palette is laid in blocks that recur.
    """
    palette = tissue_palette(n_palette)
    rng = np.random.default_rng(2)
    blocks = rng.integers(1, len(palette), (256, 16, 16))
    chosen = rng.integers(0, len(blocks), (-(-rows // 16), -(-columns // 16)))
    index = blocks[chosen].transpose(0, 2, 1, 3).reshape(chosen.shape[0] * 16, -1)[:rows, :columns]
    plan = PyramidPlan(columns * 256, rows * 256, step=_STEP, n_levels=4, quality=_QUALITY)
    write_pyramid(path, PaletteSource(palette, np.ascontiguousarray(index)), plan, mpp=0.5)


class _Kind(NamedTuple):
    """How a kind of file stores its tiles."""

    encode: Callable[[np.ndarray], bytes]
    tags: dict[str, Any]  # for tifffile
    tile_px: int = 256
    aperio: str = ""  # what an Aperio description says of the compression


def write_kind(path: str | Path, kind: str, n_tiles: int = 3500, mpp: float = 0.5, n_palette: int = 96) -> None:
    """Write a slide of one kind with about n_tiles file tiles of tissue.

    Args:
        path: the file, `.svs` for the kinds of Aperio by custom; the content decides.
        kind: one of `KINDS`.
        n_tiles: file tiles of tissue at level 0.
        mpp: µm per level-0 px.
        n_palette: different tiles of tissue.
    """
    how = _kinds()[kind]
    side = how.tile_px
    columns = max(3, round(math.sqrt(n_tiles * 1.3))) + 2
    rows = max(3, round(n_tiles / (columns - 2))) + 2
    palette = tissue_palette(n_palette, side)
    index = _index(rows, columns, len(palette))
    width, height = columns * side - _CUT_PX, rows * side - _CUT_PX
    encoded = [how.encode(tile) for tile in palette]
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        _write_level(out, how, (encoded[i] for i in index.ravel()), width, height, mpp, 0)
        small = _quarter(palette, index)
        for level in range(1, _N_LEVELS):
            small = small[: height // _STEP**level, : width // _STEP**level]
            tiles = (how.encode(tile) for tile in _cut(small, side))
            _write_level(out, how, tiles, small.shape[1], small.shape[0], mpp, level)
            small = cv2.resize(small, None, fx=1 / _STEP, fy=1 / _STEP, interpolation=cv2.INTER_AREA)


def _index(rows: int, columns: int, n_palette: int) -> np.ndarray:
    index = np.zeros((rows, columns), np.int64)
    index[1:-1, 1:-1] = np.random.default_rng(1).integers(1, n_palette, (rows - 2, columns - 2))
    return index


def _kinds() -> dict[str, _Kind]:
    ycbcr = {
        name: _Kind(partial(_ycbcr_jpeg, sampling=name), {"photometric": "ycbcr", "compression": "jpeg", "subsampling": by})
        for name, by in (("420", (2, 2)), ("422", (2, 1)), ("444", (1, 1)))
    }
    tables, _ = _split_jpeg(_rgb_jpeg(np.zeros((256, 256, 3), np.uint8)))
    return {
        **ycbcr,
        "240": ycbcr["420"]._replace(tile_px=240),
        "rgb": _Kind(lambda tile: _split_jpeg(_rgb_jpeg(tile))[1],
                     {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"},
                      "subsampling": (1, 1), "jpegtables": tables}, 256, f"JPEG/RGB Q={_RGB_QUALITY}"),
        "jp2k": _Kind(_jpeg2000, {"photometric": "rgb", "compression": 33005}, 256, "J2K/KDU Q=70"),
        "deflate": _Kind(lambda tile: zlib.compress(tile.tobytes(), 6), {"photometric": "rgb", "compression": "deflate"}),
        "lzw": _Kind(_lzw, {"photometric": "rgb", "compression": "lzw", "predictor": True}),
    }  # fmt: skip


def _write_level(
    out: tifffile.TiffWriter, how: _Kind, tiles: Iterator[bytes], width: int, height: int, mpp: float, level: int
) -> None:
    per_cm = 1e4 / mpp / _STEP**level
    about = {"description": f"wsi-ips synthetic {width}x{height}"}
    if how.aperio:
        size = f"{width}x{height} ({how.tile_px}x{how.tile_px})"
        about["description"] = f"Aperio Image Library v11.2.1 \r\n{size} {how.aperio}|AppMag = 20|MPP = {mpp:g}"
    out.write(
        tiles, shape=(height, width, 3), dtype=np.uint8, tile=(how.tile_px, how.tile_px), **how.tags, **about,
        subfiletype=1 if level and not how.aperio else 0, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
        metadata=None, software=False,
    )  # fmt: skip


def _quarter(palette: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Lay the palette out at level 1: (h, w, 3) uint8."""
    side = palette.shape[1] // _STEP
    small = np.stack([cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in palette])
    rows, columns = index.shape
    return small[index].transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)


def _cut(pixels: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Cut file tiles in raster order; the last px are repeated to their edge."""
    height, width = pixels.shape[:2]
    pixels = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield np.ascontiguousarray(pixels[y : y + side, x : x + side])


def _ycbcr_jpeg(tile: np.ndarray, sampling: str) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(tile, quality=_QUALITY, colorspace="RGB", colorsubsampling=sampling)
    return data


def _rgb_jpeg(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=_RGB_QUALITY, colorspace="RGB", outcolorspace="RGB", subsampling="444"))


def _jpeg2000(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, level=38, codecformat="j2k", colorspace="SRGB", mct=False, reversible=False))


def _lzw(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.lzw_encode(imagecodecs.delta_encode(tile, axis=1).tobytes()))


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG into tables alone and an abbreviated stream whose components are named 0, 1, 2, as libtiff names RGB."""
    tables, frame, at = b"", b"", 2
    while True:
        marker, length = struct.unpack(">BH", data[at + 1 : at + 4])
        segment = bytearray(data[at : at + 2 + length])
        at += 2 + length
        if marker in (0xDB, 0xC4):
            tables += segment
        elif marker == 0xC0:  # frame: its components are described from byte 10 on, 3 bytes each
            segment[10:19:3] = bytes(range(3))
            frame += segment
        elif marker == 0xDA:  # scan: from byte 5 on, 2 bytes each
            segment[5:11:2] = bytes(range(3))
            return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + frame + segment + data[at:]
        elif not 0xE0 <= marker <= 0xEF:  # JFIF's and Adobe's markers tell the colours, and are left out
            raise ValueError(f"a JPEG marker {marker:#x} that has no place here")
