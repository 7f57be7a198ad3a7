"""The fast path: file tiles of TIFF (JPEG, JPEG 2000, deflate, LZW) and DICOM (JPEG), decoded straight into their place.

OpenSlide spends most of its time on composing and converting, not on decoding. Here the directory is known (`tiffheader`, `dicomframes`),
the bytes of a file tile come by one `pread`, and the decoder writes into the caller's batch. A wanted tile that straddles
several file tiles is put together from a bounded cache of decoded ones (`tilecache`), so that neighbours decode each file
tile once. Px are those of OpenSlide, to the last bit, on levels whose downsample is whole; on others OpenSlide
interpolates between px, and this reader takes the nearest. `proving` lets a file in; see there.

Other decoders may have the streams themselves (`DirectTiles.stream`), made ready as for our own: see `jpegstream`.

Frames: px of a level (suffix `_px` or none), file tiles by number in raster order.
Source: TIFF 6.0 and its Technical Note 2 (JPEG).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.slide.jpegstream import is_whole, joined_items, stream_head, whole_stream
from wsi_ips.slide.tiffheader import Ifd
from wsi_ips.slide.tilecache import TileCache
from wsi_ips.slide.tilecodes import JPEG, LOSSLESS, decode_jpeg, decode_jpeg2000, decode_lossless
from wsi_ips.stages import StageClock

__all__ = ["DirectTiles", "StoredLevel"]

_RGB = 2  # photometric; 6 is YCbCr
_WHITE = 255


@dataclass(frozen=True)
class StoredLevel:
    """One level of the file, ready to be read."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: np.ndarray  # (n,) int64
    byte_counts: np.ndarray  # (n,) int64, 0 where a tile was never written
    compression: int
    head: bytes  # JPEG: what every stream begins with
    shrinks: tuple[int, ...]
    predictor: int = 1
    file: int = 0  # which of the slide's files holds it
    has_items: bool = False  # each stream lies in a DICOM item, which offset and bytes count in
    across: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "across", -(-self.width // self.tile_width))

    @classmethod
    def of(cls, ifd: Ifd, tables: bytes, shrinks: tuple[int, ...]) -> StoredLevel:
        """Prepare an image of the file; `tables` is what its tag JPEGTables holds."""
        head = stream_head(tables, is_rgb=ifd.photometric == _RGB) if ifd.compression == JPEG else b""
        offsets, counts = (values[: ifd.n_tiles].astype(np.int64) for values in (ifd.offsets, ifd.byte_counts))
        return cls(ifd.width, ifd.height, ifd.tile_width, ifd.tile_height, offsets, counts, ifd.compression, head, shrinks,
                   ifd.predictor)  # fmt: skip


class _SharedFile:
    """A file that threads read from at any place; closing waits for the last of them.

    A number closed under a reader may be another file's by the time it reads.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._is_closed = True  # until it is open
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._is_closed = False
        self._n_users = 1  # the owner

    def __del__(self) -> None:
        self.close()  # of a slide that nobody closed

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Read bytes; fewer where the file ends."""
        with self._lock:
            if self._is_closed:
                raise OSError("the slide is closed")
            self._n_users += 1
        try:
            return os.pread(self._number, n_bytes, offset)
        finally:
            self._leave()

    def close(self) -> None:
        """Close the file when its last reader is done; again is nothing."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._n_users -= 1
            if not self._n_users:
                os.close(self._number)


class DirectTiles:
    """Reads rectangles of levels; safe for several threads, keeps no state that an error could spoil.

    Args:
        paths: of the files; opened once.
        name: for messages.
        levels: in the order of the slide's levels.
    """

    def __init__(self, paths: Sequence[str], name: str, levels: list[StoredLevel]) -> None:
        self._name, self._levels = name, levels
        with contextlib.ExitStack() as opened:
            self._files = [opened.enter_context(contextlib.closing(_SharedFile(path))) for path in paths]
            opened.pop_all()
        self._cache = TileCache()
        self._scratch = threading.local()
        self.clock: StageClock | None = None

    @property
    def decoder(self) -> str:
        """The decoder and its version."""
        package = "simplejpeg" if self._levels[0].compression == JPEG else "imagecodecs"
        return f"{package} {version(package)}"

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Factors by which the decoder shrinks."""
        return self._levels[level].shrinks

    def read(self, out: np.ndarray, left: int, top: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle that lies inside a level.

        Args:
            out: (h, w, 3) uint8, C-contiguous.
            left, top: its corner, px of the level; multiples of `shrink`.
            level: of the file.
            shrink: px of the level along each side that become one.

        Returns:
            Px of the level that the file does not hold; they are white.

        Raises:
            TileReadError: a file tile cannot be decoded (`E_TILE`).
        """
        lv = self._levels[level]
        height, width = out.shape[:2]
        tile_h, tile_w = lv.tile_height // shrink, lv.tile_width // shrink
        left, top = left // shrink, top // shrink
        if height == tile_h and width == tile_w and left % tile_w == 0 and top % tile_h == 0:
            number = top // tile_h * lv.across + left // tile_w
            if lv.byte_counts[number]:
                self._decode(lv, number, shrink, out)
                return 0
        return self._assemble(out, left, top, level, shrink)

    def stored(self, level: int) -> tuple[int, int, int] | None:
        """Width and height of a level's file tiles, px, and bytes of its longest stream; None where they are no JPEG."""
        lv = self._levels[level]
        longest = int(lv.byte_counts.max()) + len(lv.head)
        return (lv.tile_width, lv.tile_height, longest) if lv.compression == JPEG else None

    def stream(self, left: int, top: int, level: int) -> bytes:
        """Give the JPEG stream of a whole file tile as any decoder takes it; empty where the file holds none.

        Args:
            left, top: corner of a file tile, px of the level.
            level: of the file, in JPEG.

        Raises:
            TileReadError: its bytes are cut short (`E_TILE`); what else is wrong with them, decoders must find.
        """
        lv = self._levels[level]
        number = top // lv.tile_height * lv.across + left // lv.tile_width
        if not lv.byte_counts[number]:
            return b""
        started = time.perf_counter()
        try:
            stream = whole_stream(self._bytes(lv, number), lv.head)
            if not is_whole(stream, len(lv.head)):
                raise ValueError("the stream does not end with its end mark")  # not all decoders would say
        except (ValueError, OSError, IndexError) as error:
            raise self._failure(lv, number, error) from error
        if self.clock is not None:
            self.clock.add("read", time.perf_counter() - started)
        return stream

    def forget(self) -> None:
        """Give back the memory of decoded file tiles."""
        self._cache.clear()

    def close(self) -> None:
        """Close the files, as soon as no thread reads from them."""
        for file in self._files:
            file.close()
        self._cache.clear()

    def _assemble(self, out: np.ndarray, left: int, top: int, level: int, shrink: int) -> int:
        """Put a rectangle together from file tiles; all in px of the shrunk level."""
        lv = self._levels[level]
        height, width = out.shape[:2]
        tile_h, tile_w = lv.tile_height // shrink, lv.tile_width // shrink
        lines = out.reshape(height, width * 3)  # rows of bytes: copied a run at a time
        missing = 0
        for row in range(top // tile_h, -(-(top + height) // tile_h)):
            y = row * tile_h - top  # of the file tile in `out`
            y0, y1 = max(0, y), min(height, y + tile_h)
            for column in range(left // tile_w, -(-(left + width) // tile_w)):
                x = column * tile_w - left
                x0, x1 = max(0, x), min(width, x + tile_w)
                number = row * lv.across + column
                target = lines[y0:y1, 3 * x0 : 3 * x1]
                if not lv.byte_counts[number]:
                    target[...] = _WHITE
                    missing += (y1 - y0) * (x1 - x0)
                    continue
                is_whole = x1 - x0 == tile_w and y1 - y0 == tile_h
                self._paste(target, (y0 - y, x0 - x), (level, number, shrink), is_whole=is_whole)
        return missing * shrink * shrink

    def _paste(self, target: np.ndarray, corner: tuple[int, int], key: tuple[int, int, int], *, is_whole: bool) -> None:
        """Copy part of a file tile; a part leaves the tile in the cache, for a neighbour wants the rest."""
        level, number, shrink = key
        lv = self._levels[level]
        shape = (lv.tile_height // shrink, lv.tile_width // shrink, 3)
        if is_whole and key not in self._cache:
            pixels = self._own_scratch(shape)
            self._decode(lv, number, shrink, pixels)
        else:
            pixels = self._cache.get(key, shape, lambda pixels: self._decode(lv, number, shrink, pixels))
        started = time.perf_counter() if self.clock is not None else 0.0
        (height, n_bytes), (y, x) = target.shape, corner
        target[...] = pixels.reshape(pixels.shape[0], -1)[y : y + height, 3 * x : 3 * x + n_bytes]
        if self.clock is not None:
            self.clock.add("copy", time.perf_counter() - started)

    def _own_scratch(self, shape: tuple[int, int, int]) -> np.ndarray:
        found: np.ndarray | None = getattr(self._scratch, "pixels", None)
        if found is None or found.shape != shape:
            found = self._scratch.pixels = np.empty(shape, np.uint8)
        return found

    def _decode(self, lv: StoredLevel, number: int, shrink: int, out: np.ndarray) -> None:
        """Read and decode a file tile, (tile_height / shrink, tile_width / shrink, 3) uint8."""
        clock = self.clock
        started = time.perf_counter() if clock is not None else 0.0
        try:
            data = self._bytes(lv, number)
            middle = time.perf_counter() if clock is not None else 0.0
            if lv.compression == JPEG:
                decode_jpeg(data, lv.head, shrink, out)
            elif lv.compression in LOSSLESS:
                decode_lossless(data, lv.compression, lv.predictor, out)
            else:
                decode_jpeg2000(data, out)
        except (ValueError, OSError, IndexError, RuntimeError) as error:
            raise self._failure(lv, number, error) from error
        if clock is not None:
            clock.add("read", middle - started)
            clock.add("decode", time.perf_counter() - middle)

    def _bytes(self, lv: StoredLevel, number: int) -> bytes:
        n_bytes = int(lv.byte_counts[number])
        data = self._files[lv.file].read_at(int(lv.offsets[number]), n_bytes)
        if len(data) < n_bytes:
            raise ValueError(f"{len(data)} of {n_bytes} bytes")
        return joined_items(data) if lv.has_items else data

    def _failure(self, lv: StoredLevel, number: int, error: Exception) -> TileReadError:
        row, column = divmod(number, lv.across)
        scale = self._levels[0].width / lv.width
        x0, y0 = round(column * lv.tile_width * scale), round(row * lv.tile_height * scale)
        where = f"pixels at level-0 px ({x0}, {y0}) of the level of {lv.width} x {lv.height} px"
        reason = " ".join(str(error).split())[:200]
        return TileReadError("E_TILE", f"{self._name}: {where} cannot be decoded: {reason}")
