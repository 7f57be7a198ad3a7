"""The TIFF directory read once, with limits, before any decoder sees the file.

Decoders trust a header: one that states a tile side of 2^20 makes them ask for terabytes, a loop keeps them busy for
ever. This parser reads only small tags, bounds every count by the file's size, and fails with numbers. It judges
nothing beyond "can this be a directory": whether the pixels are wanted is decided in `tiffcheck`. The limits: `limits`.

Source: TIFF 6.0 (Adobe, 1992) for the layout; the BigTIFF design of libtiff for 64-bit offsets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.limits import (
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    MAX_ICC_BYTES,
    MAX_IMAGES,
    MAX_SIDE_PX,
    MAX_TEXT_BYTES,
    MAX_TILE_PX,
    MAX_TILES,
)

__all__ = ["Ifd", "TiffHeader", "is_tiff", "read_tiff_header", "truncated"]


_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INT_CODES = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_NDPI_TAG, _NDPI_FOCUS = 65_420, 65_424
_ASCII, _XMP = 2, 700


class _Entry(NamedTuple):
    kind: int
    n_values: int
    offset: int  # of the values, from the start of the file
    n_bytes: int


@dataclass(frozen=True)
class Ifd:
    """One image of a TIFF file, as far as it matters here."""

    number: int
    width: int
    height: int
    tile_width: int  # 0 where the image is made of strips
    tile_height: int
    bits: tuple[int, ...]  # a sample
    samples: int
    sample_format: int  # 1 unsigned integer, 3 float
    photometric: int
    compression: int
    planar: int
    description: str
    xmp: str
    resolution: tuple[float, float]  # px per unit; 0 where not given
    resolution_unit: int  # 1 none, 2 inch, 3 centimetre
    offsets: np.ndarray  # (n,) uint64, of tiles or strips in the file
    byte_counts: np.ndarray  # (n,) uint64, 0 where a tile was never written
    icc: tuple[int, int]  # offset and bytes of the colour profile, (0, 0) without
    predictor: int = 1  # 2: each px is stored less the one left of it
    jpeg_tables: tuple[int, int] = (0, 0)  # offset and bytes of the tables that its JPEG streams share
    focus: int = 0  # Hamamatsu: which focal plane, 0 in the middle

    @property
    def is_tiled(self) -> bool:
        """Whether it is made of tiles."""
        return self.tile_width > 0

    @property
    def tiles_across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def n_tiles(self) -> int:
        """Tiles that cover the image; what a file lists beyond them belongs to no px."""
        return self.tiles_across * -(-self.height // self.tile_height)


@dataclass(frozen=True)
class TiffHeader:
    """All images of a TIFF file: those of the chain first, then the sub-images of the chain's members."""

    ifds: tuple[Ifd, ...]
    n_chain: int
    is_ndpi: bool
    is_classic_big_endian: bool  # "MM", 32-bit offsets
    file_size: int

    @property
    def primary(self) -> Ifd:
        """The largest image of the chain, the first of equals: level 0."""
        return max(self.ifds[: self.n_chain], key=lambda i: i.width * i.height)


def is_tiff(head: bytes) -> bool:
    """Tell a TIFF or BigTIFF from its first four bytes."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff_header(stream: BinaryIO, file_size: int, name: str) -> TiffHeader:
    """Read the directory chain and the sub-directories of its members.

    Raises:
        UnreadableSlideError: `E_TRUNCATED` where a part lies beyond the file's end, `E_ABSURD` for loops and numbers
            no slide has, `E_NOT_A_SLIDE` where there is no image at all.
    """
    return _Parser(stream, file_size, name).read()


class _Parser:
    def __init__(self, stream: BinaryIO, file_size: int, name: str) -> None:
        self.stream, self.size, self.name = stream, file_size, name
        self.n_read = 0
        head = self.bytes_at(0, 8, "header")
        self.order = "<" if head[:2] == b"II" else ">"
        self.is_big = head[2:4] in (b"+\0", b"\0+")
        self.is_ndpi = False
        self.seen: set[int] = set()

    def read(self) -> TiffHeader:
        offset = self.number_at(8, "Q") if self.is_big else self.number_at(4, "I")
        chain: list[Ifd] = []
        subs: list[int] = []
        while offset:
            ifd, offset, sub_offsets = self.directory(offset, len(chain))
            chain.append(ifd)
            subs += sub_offsets
        sub_ifds: list[Ifd] = []
        for sub_offset in subs:
            sub_ifds.append(self.directory(sub_offset, len(chain) + len(sub_ifds))[0])
        if not chain:
            raise UnreadableSlideError("E_NOT_A_SLIDE", f"{self.name}: a TIFF file without any image")
        is_classic_big = self.order == ">" and not self.is_big
        return TiffHeader(tuple(chain + sub_ifds), len(chain), self.is_ndpi, is_classic_big, self.size)

    def bytes_at(self, offset: int, n_bytes: int, what: str) -> bytes:
        if offset + n_bytes > self.size:
            raise truncated(self.name, self.size, offset + n_bytes, what)
        self.n_read += n_bytes
        if self.n_read > MAX_HEADER_BYTES:  # directories may share their values: a small file can state any number
            raise self.absurd(f"its directories state more than {MAX_HEADER_BYTES >> 20} MiB of values")
        self.stream.seek(offset)
        data = self.stream.read(n_bytes)
        if len(data) < n_bytes:
            raise truncated(self.name, offset + len(data), offset + n_bytes, what)
        return data

    def number_at(self, offset: int, code: str) -> int:
        raw = self.bytes_at(offset, struct.calcsize("<" + code), "directory pointer")
        return int(struct.unpack(self.order + code, raw)[0])

    def directory(self, offset: int, number: int) -> tuple[Ifd, int, list[int]]:
        """Read one directory; also the offset of the next and of its sub-directories."""
        if offset in self.seen:
            raise self.absurd(f"its directory {number} points back to an earlier one (a loop)")
        if len(self.seen) >= MAX_IMAGES:
            raise self.absurd(f"it holds more than {MAX_IMAGES} directories")
        self.seen.add(offset)
        entries, end = self.entries(offset, number)
        self.is_ndpi = self.is_ndpi or _NDPI_TAG in entries
        next_offset = self.number_at(end, "Q" if self.is_big or self.is_ndpi else "I")
        ifd = self.image(entries, number)
        sub_offsets = [int(v) for v in self.integers(entries, 330, number)[:MAX_IMAGES]]
        return ifd, next_offset, [v for v in sub_offsets if v]

    def entries(self, offset: int, number: int) -> tuple[dict[int, _Entry], int]:
        count_bytes, entry_bytes, inline = (8, 20, 8) if self.is_big else (2, 12, 4)
        n_entries = self.number_at(offset, "Q" if self.is_big else "H")
        if n_entries > MAX_ENTRIES:
            raise self.absurd(f"its directory {number} states {n_entries} entries")
        start = offset + count_bytes
        raw = self.bytes_at(start, n_entries * entry_bytes, f"directory {number}")
        entries: dict[int, _Entry] = {}
        code = self.order + ("HHQ" if self.is_big else "HHI")
        for i in range(n_entries):
            tag, kind, count = struct.unpack_from(code, raw, i * entry_bytes)
            n_bytes = _TYPE_BYTES.get(kind, 0) * count
            value_at = start + i * entry_bytes + entry_bytes - inline
            if n_bytes > inline:
                pointer = struct.unpack_from(self.order + ("Q" if self.is_big else "I"), raw, value_at - start)[0]
                value_at = int(pointer)
            if (kind == _ASCII or tag == _XMP) and n_bytes > MAX_TEXT_BYTES:
                raise self.absurd(f"the text in tag {tag} of its directory {number} states {n_bytes} bytes")
            entries[tag] = _Entry(kind, count, value_at, n_bytes)
        return entries, start + n_entries * entry_bytes

    def image(self, entries: dict[int, _Entry], number: int) -> Ifd:
        one = lambda tag, default: self.first(self.integers(entries, tag, number), default)  # noqa: E731
        width, height = one(256, 0), one(257, 0)
        tile_width, tile_height = one(322, 0), one(323, 0)
        if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
            raise self.absurd(f"its image {number} states a size of {width} x {height} px")
        is_tiled = tile_width > 0 or tile_height > 0
        if is_tiled and not (0 < tile_width <= MAX_TILE_PX and 0 < tile_height <= MAX_TILE_PX):
            raise self.absurd(f"its image {number} states tiles of {tile_width} x {tile_height} px")
        icc, tables = entries.get(34675), entries.get(347)
        if icc is not None and icc.n_bytes > MAX_ICC_BYTES:
            raise self.absurd(f"its colour profile states {icc.n_bytes} bytes")
        return Ifd(
            number=number, width=width, height=height, tile_width=tile_width, tile_height=tile_height,
            bits=tuple(int(b) for b in self.integers(entries, 258, number)[:16]) or (1,),
            samples=one(277, 1), sample_format=one(339, 1), photometric=one(262, -1),
            compression=one(259, 1), planar=one(284, 1), description=self.text(entries, number, 270, "description"),
            xmp=self.text(entries, number, 700, "XMP"),
            resolution=(self.ratio(entries, 282), self.ratio(entries, 283)), resolution_unit=one(296, 2),
            offsets=self.integers(entries, 324 if is_tiled else 273, number),
            byte_counts=self.integers(entries, 325 if is_tiled else 279, number),
            icc=(icc.offset, icc.n_bytes) if icc is not None else (0, 0),
            predictor=one(317, 1), jpeg_tables=(tables.offset, tables.n_bytes) if tables is not None else (0, 0),
            focus=one(_NDPI_FOCUS, 0) if self.is_ndpi else 0,
        )  # fmt: skip

    def integers(self, entries: dict[int, _Entry], tag: int, number: int) -> np.ndarray:
        entry = entries.get(tag)
        if entry is None or entry.kind not in _INT_CODES or entry.n_values == 0:
            return np.zeros(0, np.uint64)
        if entry.n_values > MAX_TILES:
            raise self.absurd(f"tag {tag} of its image {number} states {entry.n_values} values")
        data = self.bytes_at(entry.offset, entry.n_bytes, f"tag {tag} of image {number}")
        values = np.frombuffer(data, self.order + _INT_CODES[entry.kind])
        return values.astype(np.int64 if values.dtype.kind == "i" else np.uint64)

    @staticmethod
    def first(values: np.ndarray, default: int) -> int:
        return int(values[0]) if len(values) else default

    def text(self, entries: dict[int, _Entry], number: int, tag: int, name: str) -> str:
        entry = entries.get(tag)
        if entry is None or entry.kind not in (1, 2, 7):
            return ""
        if entry.n_bytes > MAX_TEXT_BYTES:
            raise self.absurd(f"the {name} of its image {number} states {entry.n_bytes} bytes")
        raw = self.bytes_at(entry.offset, entry.n_bytes, f"{name} of image {number}")
        return raw.rstrip(b"\0").decode("utf-8", "replace")

    def ratio(self, entries: dict[int, _Entry], tag: int) -> float:
        entry = entries.get(tag)
        if entry is None or entry.kind not in (5, 11, 12) or entry.n_values < 1:
            return 0.0
        code = {5: "II", 11: "f", 12: "d"}[entry.kind]
        raw = self.bytes_at(entry.offset, struct.calcsize("<" + code), f"tag {tag}")
        values = struct.unpack(self.order + code, raw)
        if entry.kind == 5:
            return values[0] / values[1] if values[1] else 0.0
        return float(values[0])

    def absurd(self, what: str) -> UnreadableSlideError:
        return UnreadableSlideError("E_ABSURD", f"{self.name}: not a usable TIFF file: {what}")


def truncated(name: str, found: int, needed: int, what: str) -> UnreadableSlideError:
    """Build the error for a file that ends before its directory says it does."""
    message = (
        f"{name}: the file ends too early: it has {found} bytes, its {what} needs at least {needed}; "
        "copy or download it again"
    )
    return UnreadableSlideError("E_TRUNCATED", message)
