"""A few elements of a DICOM header, read with limits: enough to choose the file of a folder that OpenSlide is given.

OpenSlide finds the other files of a series by itself, but has to be shown one of the right series, and opens a lone
low-resolution file without a word. Nothing about the patient is read.

Source: DICOM PS3.5 (explicit and implicit VR little endian), PS3.3 C.8.12.4 (VL whole slide microscopy image).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.limits import MAX_LEVEL0_PX, MAX_LEVELS, MAX_SIDE_PX, MAX_TEXT_BYTES, MAX_TILE_PX

__all__ = ["UNDEFINED", "DicomFile", "check_dicom", "choose_from_folder", "elements", "read_dicom_file", "series_files"]

_LIMIT = 256 << 10  # bytes looked at; the elements wanted come before pixels, colour profile and per-frame groups
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
_IMPLICIT = "1.2.840.10008.1.2"
UNDEFINED = 0xFFFFFFFF
_ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class of the levels of a slide
_WANTED = {(0x0002, 0x0010), (0x0008, 0x0008), (0x0008, 0x0016), (0x0020, 0x000E), (0x0020, 0x9311), (0x0028, 0x0002), (0x0028, 0x0004),
           (0x0028, 0x0008), (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0100), (0x0048, 0x0006), (0x0048, 0x0007)}  # fmt: skip
_MAX_FILES = 2_000


class DicomFile(NamedTuple):
    """What a DICOM file says of itself; empty or 0 where it says nothing."""

    path: Path
    series: str  # SeriesInstanceUID
    image_type: tuple[str, ...]  # ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
    samples: int  # per px
    bits: int
    photometric: str
    width: int  # of the whole level, px
    height: int
    sop_class: str = ""
    frame_px: tuple[int, int] = (0, 0)  # width and height of a tile
    longest: int = 0  # bytes that the longest element before the pixels states
    syntax: str = ""  # UID of how the px are stored
    organization: str = ""  # of the tiles: TILED_FULL lists all in raster order
    n_frames: int = 0

    @property
    def is_volume(self) -> bool:
        """Whether it is a level of the slide rather than label, overview or thumbnail, or a map of it."""
        return "VOLUME" in self.image_type and self.sop_class in ("", _WHOLE_SLIDE)

    @property
    def is_resampled(self) -> bool:
        """Whether it says that it was made from a finer level."""
        return self.is_volume and self.image_type[-1] == "RESAMPLED"


def read_dicom_file(path: Path) -> DicomFile | None:
    """Read the few elements wanted; None where the file is no DICOM file or its header cannot be followed."""
    try:
        with path.open("rb") as f:
            data = f.read(132)
            if data[128:] != b"DICM":
                return None
            data += f.read(_LIMIT - len(data))
    except OSError:
        return None
    values: dict[tuple[int, int], bytes] = {}
    lengths = [0]
    # the header may go on beyond the limit, or be broken; OpenSlide judges it
    with contextlib.suppress(struct.error, IndexError):
        _read_elements(data, values, lengths)
    text = {key: value.rstrip(b" \0").decode("ascii", "replace") for key, value in values.items()}
    number = {key: int.from_bytes(value, "little") for key, value in values.items() if len(value) in (2, 4)}
    image_type = text.get((0x0008, 0x0008), "")
    return DicomFile(
        path, text.get((0x0020, 0x000E), ""), tuple(p.strip() for p in image_type.split("\\")) if image_type else (),
        number.get((0x0028, 0x0002), 0), number.get((0x0028, 0x0100), 0), text.get((0x0028, 0x0004), ""),
        number.get((0x0048, 0x0006), 0), number.get((0x0048, 0x0007), 0), text.get((0x0008, 0x0016), ""),
        (number.get((0x0028, 0x0011), 0), number.get((0x0028, 0x0010), 0)), max(lengths), text.get((0x0002, 0x0010), ""),
        text.get((0x0020, 0x9311), ""), int(n_frames) if (n_frames := text.get((0x0028, 0x0008), "").strip()).isdecimal() else 0,
    )  # fmt: skip


def series_files(path: Path) -> list[DicomFile]:
    """Read the other files of the same series in the folder of a DICOM file, by name."""
    own = read_dicom_file(path)
    if own is None or not own.series:
        return []
    try:
        around = _folder(path.parent)
    except OSError:  # a folder that may be entered and not listed; OpenSlide will not find more there
        return []
    return [f for f in around if f.series == own.series and f.path.name != path.name]


def choose_from_folder(folder: Path) -> Path:
    """Choose the file of a folder that OpenSlide is given: the largest level of its only series of levels.

    Raises:
        UnreadableSlideError: `E_NOT_A_FILE`, no DICOM level there, or levels of several slides.
    """
    name = folder.name
    try:
        volumes = [f for f in _folder(folder) if f.is_volume]
    except OSError as error:
        raise UnreadableSlideError("E_MISSING", f"{name}: the folder cannot be read ({error.strerror})") from error
    if not volumes:
        message = f"{name}: a folder without DICOM slide levels; list a slide file, or a folder of one DICOM series"
        raise UnreadableSlideError("E_NOT_A_FILE", message)
    series = sorted({f.series for f in volumes})
    best = [max((f for f in volumes if f.series == s), key=lambda f: f.width * f.height) for s in series]
    if len(best) > 1:
        listed = ", ".join(f"{f.path.name} ({f.width} x {f.height} px)" for f in sorted(best)[:5])
        message = f"{name}: the folder holds {len(best)} DICOM slides; list one file of the wanted one: {listed}"
        raise UnreadableSlideError("E_NOT_A_FILE", message)
    return best[0].path


def check_dicom(path: Path) -> tuple[str, ...]:
    """Refuse pixels that are no brightfield colour; warn of a series without its finest level.

    Returns:
        Sentences for notes of code `E_PARTS`.

    Raises:
        UnreadableSlideError: `E_PIXEL_FORMAT`; `E_ABSURD`, numbers that no slide has.
    """
    own = read_dicom_file(path)
    if own is None:
        return ()
    family = [f for f in [own, *series_files(path)] if f.is_volume]
    _refuse_absurd(path.name, [own, *family])
    for f in family:
        if (f.samples, f.bits) not in ((3, 8), (0, 0)):
            found = f"{f.samples} samples of {f.bits} bits a pixel ({f.photometric})"
            message = f"{path.name}: found {found}; wsi-ips reads brightfield slides: 8-bit RGB"
            raise UnreadableSlideError("E_PIXEL_FORMAT", message)
    if family and all(f.is_resampled for f in family):
        finest = max(family, key=lambda f: f.width * f.height)
        return (
            f"its finest level of {finest.width} x {finest.height} px says it was made from a finer one, "
            "which is not there: files of the series may be missing",
        )
    return ()


def _refuse_absurd(name: str, files: list[DicomFile]) -> None:
    """Hold the headers of a series against the limits of `limits`."""
    found = ""
    for f in files:
        if max(f.width, f.height) > MAX_SIDE_PX or f.width * f.height > MAX_LEVEL0_PX:
            found = f"a level of {f.width} x {f.height} px"
        elif f.is_volume and max(f.frame_px) > MAX_TILE_PX:
            found = f"tiles of {f.frame_px[0]} x {f.frame_px[1]} px"
        elif f.longest > MAX_TEXT_BYTES:
            found = f"an element of {f.longest} bytes before its pixels"
    if len({(f.width, f.height) for f in files}) > MAX_LEVELS:
        found = f"more than {MAX_LEVELS} levels"
    if found:
        raise UnreadableSlideError("E_ABSURD", f"{name}: not a usable DICOM slide: it states {found}")


def _folder(folder: Path) -> list[DicomFile]:
    paths = sorted(p for p in folder.iterdir() if p.is_file())[:_MAX_FILES]
    return [f for f in map(read_dicom_file, paths) if f is not None]


def elements(data: bytes) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Walk the top level of a DICOM file: the tag of an element, where its value starts, and its length, 2**32 - 1 for unstated.

    Raises:
        struct.error, IndexError: a header that cannot be followed, or goes on beyond `data`.
    """
    position, is_explicit = 132, True
    while position + 8 <= len(data):
        tag: tuple[int, int] = struct.unpack_from("<HH", data, position)
        start, length = _value(data, position, is_explicit or tag[0] == 0x0002)
        yield tag, start, length
        if tag == (0x0002, 0x0010):  # the syntax of what comes after this group
            is_explicit = data[start : start + length].rstrip(b"\0 ") != _IMPLICIT.encode()
        position = _skip_undefined(data, start, is_explicit, 0) if length == UNDEFINED else start + length


def _read_elements(data: bytes, values: dict[tuple[int, int], bytes], lengths: list[int]) -> None:
    """Walk the top level up to group 0048; fill in the wanted values, and what lengths are stated."""
    for tag, start, length in elements(data):
        if tag[0] > 0x0048:
            break
        if length != UNDEFINED:
            lengths.append(length)
            if tag in _WANTED:
                values[tag] = data[start : start + min(length, 1024)]


def _value(data: bytes, position: int, is_explicit: bool) -> tuple[int, int]:
    """Where an element's value starts, and its length."""
    group = struct.unpack_from("<H", data, position)[0]
    if group == 0xFFFE or not is_explicit:
        return position + 8, struct.unpack_from("<I", data, position + 4)[0]
    if data[position + 4 : position + 6] in _LONG_VRS:
        return position + 12, struct.unpack_from("<I", data, position + 8)[0]
    return position + 8, struct.unpack_from("<H", data, position + 6)[0]


def _skip_undefined(data: bytes, position: int, is_explicit: bool, depth: int) -> int:
    """Skip a sequence or item without stated length; returns the position after its end mark."""
    if depth > 32:
        raise IndexError("sequences nested too deeply")
    while True:
        tag = struct.unpack_from("<HH", data, position)
        start, length = _value(data, position, is_explicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            return start
        position = _skip_undefined(data, start, is_explicit, depth + 1) if length == UNDEFINED else start + length
