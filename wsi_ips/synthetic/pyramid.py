"""Pyramidal tiled BigTIFF of any size in bounded memory, JPEG or lossless, in the form OpenSlide calls generic-tiff.

Levels are top-level directories, finest first, the coarser ones marked "reduced image"; µm per px stands in the
resolution tags. A source hands over encoded tiles level by level, so nothing here ever holds a level's pixels:
`StripSource` paints strips one tile high and spools the coarser levels through a temporary file; `PaletteSource`
repeats a few tiles by index, which writes 16 gigapixels (250,000 tiles) in about the time the disk needs.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Protocol

import cv2
import numpy as np
import simplejpeg
import tifffile

from wsi_ips.errors import ConfigError

__all__ = ["PaletteSource", "PyramidPlan", "StripSource", "TileSource", "array_source", "write_pyramid"]

_WHITE = 255  # what lies right of and below a palette's tiles at the coarser levels


class PyramidPlan(NamedTuple):
    """Shape of a pyramid."""

    width: int  # level-0 px
    height: int  # level-0 px
    tile_px: int = 256
    step: int = 2  # downsample from one level to the next
    n_levels: int = 4
    quality: int | None = 85  # JPEG; None keeps every px exactly (deflate)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level, px of that level (floor, as most scanners have it)."""
        factor = self.step**level
        return self.width // factor, self.height // factor

    def grid(self, level: int) -> tuple[int, int]:
        """Columns and rows of file tiles of a level."""
        width, height = self.size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)


class TileSource(Protocol):
    """Gives the file tiles of each level."""

    def levels(self, plan: PyramidPlan) -> Iterator[Iterator[bytes]]:
        """Yield per level, finest first, its tiles in raster order, each as `PyramidPlan.quality` asks."""


def write_pyramid(
    path: str | os.PathLike[str], source: TileSource, plan: PyramidPlan, *, mpp: float = 0.5, write_mpp: bool = True
) -> None:
    """Write a pyramid.

    Args:
        path: the file; a temporary one beside it is renamed when whole.
        source: its tiles.
        plan: its shape.
        mpp: µm per level-0 px.
        write_mpp: False leaves the resolution out, for slides whose mpp nobody knows.

    Raises:
        ConfigError: a level would have no pixels, the file's tiles are no multiple of 16 px, or the step does not
            divide them.
    """
    _check(plan)
    final = os.fspath(path)
    partial = f"{final}.part"
    try:
        with tifffile.TiffWriter(partial, bigtiff=True) as out:
            for level, tiles in enumerate(source.levels(plan)):
                width, height = plan.size(level)
                # each level's own px per cm; its true downsample differs from step**level by the floor
                per_cm = (1e4 / mpp * width / plan.width, 1e4 / mpp * height / plan.height)
                out.write(
                    tiles,
                    shape=(height, width, 3),
                    dtype=np.uint8,
                    tile=(plan.tile_px, plan.tile_px),
                    **_coding(plan),
                    subfiletype=1 if level else 0,
                    resolution=per_cm if write_mpp else None,
                    resolutionunit="CENTIMETER" if write_mpp else None,
                    metadata=None,
                    software="wsi-ips synthetic",
                )
        os.replace(partial, final)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


@dataclass(frozen=True)
class StripSource:
    """Level 0 painted strip by strip, from the top; the coarser levels follow by averaging.

    Memory: two strips a level, whatever the height. Encoded tiles of the coarser levels wait in a temporary file.
    """

    paint: Callable[[int, int], np.ndarray]
    """(y0, height) -> (height, width, 3) uint8 RGB of the rows from y0."""

    def levels(self, plan: PyramidPlan) -> Iterator[Iterator[bytes]]:
        """Yield per level its tiles; see `TileSource`."""
        with tempfile.TemporaryFile() as spool:
            chain = [_Level(plan, level, spool) for level in range(1, plan.n_levels)]
            yield self._finest(plan, chain)
            for level in chain:
                yield level.tiles()

    def _finest(self, plan: PyramidPlan, chain: list[_Level]) -> Iterator[bytes]:
        for y0 in range(0, plan.height, plan.tile_px):
            strip = self.paint(y0, min(plan.tile_px, plan.height - y0))
            _push(chain, strip, plan.step)
            if y0 + plan.tile_px >= plan.height:  # before the last tiles: nobody asks after them
                for i, level in enumerate(chain):
                    _push(chain[i + 1 :], level.flush(), plan.step)
            yield from _encode_strip(strip, plan)


def array_source(pixels: np.ndarray) -> StripSource:
    """Wrap an array (H, W, 3) uint8 as a source."""
    return StripSource(lambda y0, height: pixels[y0 : y0 + height])


@dataclass(frozen=True)
class PaletteSource:
    """A few tiles repeated by index; coarser levels are the true averages of what they cover.

    Equal blocks are encoded once, so a palette laid out in areas writes quickly. A step of 4 or more keeps the coarser
    levels cheap: level 1 then has a sixteenth of the tiles.
    """

    tiles: np.ndarray
    """(P, tile_px, tile_px, 3) uint8 RGB."""
    index: np.ndarray
    """(rows, columns) palette index of each level-0 file tile."""

    def levels(self, plan: PyramidPlan) -> Iterator[Iterator[bytes]]:
        """Yield per level its tiles; see `TileSource`."""
        columns, rows = plan.grid(0)
        if self.index.shape != (rows, columns) or self.tiles.shape[1:] != (plan.tile_px, plan.tile_px, 3):
            raise ConfigError(
                f"palette: index {self.index.shape} and tiles {self.tiles.shape} do not fit "
                f"{rows} rows x {columns} columns of {plan.tile_px} px"
            )
        encoded = [_encode(tile, plan.quality) for tile in self.tiles]
        yield (encoded[i] for i in self.index.ravel())
        for level in range(1, plan.n_levels):
            yield self._coarse(plan, level)

    def _coarse(self, plan: PyramidPlan, level: int) -> Iterator[bytes]:
        factor = plan.step**level
        side = max(1, plan.tile_px // factor)
        small = np.stack([cv2.resize(t, (side, side), interpolation=cv2.INTER_AREA) for t in self.tiles])
        across = plan.tile_px // side  # palette tiles along a file tile of this level
        columns, rows = plan.grid(level)
        padded = np.full((rows * across, columns * across), -1, np.int32)
        used = self.index[: rows * across, : columns * across]
        padded[: used.shape[0], : used.shape[1]] = used
        small = np.concatenate([small, np.full_like(small[:1], _WHITE)])  # index -1: outside the image
        known: dict[bytes, bytes] = {}
        for row in range(rows):
            for column in range(columns):
                block = padded[row * across : (row + 1) * across, column * across : (column + 1) * across]
                key = block.tobytes()
                if key not in known:
                    mosaic = small[block].transpose(0, 2, 1, 3, 4).reshape(plan.tile_px, plan.tile_px, 3)
                    if len(known) >= 4096:  # bounded: forget all rather than grow with the slide
                        known.clear()
                    known[key] = _encode(mosaic, plan.quality)
                yield known[key]


class _Level:
    """One coarser level while it is filled: rows wait until they make a strip of file tiles."""

    def __init__(self, plan: PyramidPlan, level: int, spool: IO[bytes]) -> None:
        self._plan = plan
        self._width, self._height = plan.size(level)
        self._spool = spool
        self._waiting: list[np.ndarray] = []
        self._places: list[tuple[int, int]] = []  # offset and length in the spool

    def add(self, rows: np.ndarray) -> np.ndarray | None:
        """Take rows (n, width, 3); return a strip one file tile high when one is full."""
        self._waiting.append(rows)
        if sum(len(r) for r in self._waiting) < self._plan.tile_px:
            return None
        return self.flush()

    def flush(self) -> np.ndarray:
        """Encode what waits and return it, (n, width, 3), perhaps of no rows."""
        strip = np.concatenate(self._waiting) if self._waiting else np.zeros((0, self._width, 3), np.uint8)
        self._waiting = []
        if len(strip):
            for tile in _encode_strip(strip, self._plan):
                self._places.append((self._spool.seek(0, os.SEEK_END), len(tile)))
                self._spool.write(tile)
        return strip

    def tiles(self) -> Iterator[bytes]:
        """Yield the encoded tiles in raster order."""
        for offset, length in self._places:
            self._spool.seek(offset)
            yield self._spool.read(length)


def _push(chain: list[_Level], strip: np.ndarray | None, step: int) -> None:
    for level in chain:
        if strip is None or len(strip) < step:  # rows short of one coarse row fall to the floor of `size`
            return
        strip = level.add(_shrink(strip, step))


def _shrink(strip: np.ndarray, step: int) -> np.ndarray:
    height, width = strip.shape[0] // step, strip.shape[1] // step
    whole = np.ascontiguousarray(strip[: height * step, : width * step])
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def _encode_strip(strip: np.ndarray, plan: PyramidPlan) -> Iterator[bytes]:
    side = plan.tile_px
    for x0 in range(0, strip.shape[1], side):
        tile = strip[:, x0 : x0 + side]
        if tile.shape[:2] != (side, side):
            # the last row and column repeated: a white margin would ring into the picture
            tile = np.pad(tile, ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)), mode="edge")
        yield _encode(tile, plan.quality)


def _coding(plan: PyramidPlan) -> dict[str, Any]:
    """Say in the file's tags what `_encode` makes."""
    if plan.quality is None:
        return {"photometric": "rgb", "compression": "deflate"}
    return {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg"}


def _encode(tile: np.ndarray, quality: int | None) -> bytes:
    """Encode (S, S, 3) uint8 as a standalone YCbCr 4:2:0 JPEG, or its bytes as a zlib stream."""
    if quality is None:
        return zlib.compress(np.ascontiguousarray(tile).tobytes(), 6)
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(tile), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _check(plan: PyramidPlan) -> None:
    if plan.tile_px % 16 or plan.tile_px % plan.step or plan.step < 2:
        raise ConfigError(f"pyramid: tiles of {plan.tile_px} px must be a multiple of 16 and of the step {plan.step}")
    if min(plan.size(plan.n_levels - 1)) < 1:
        raise ConfigError(f"pyramid: {plan.width} x {plan.height} px do not have {plan.n_levels} levels")
