"""From a path to an open slide: what is it, may it be read, by whom, at which resolution.

Everything that can be known without a decoder is asked first: the kind of file, its beginning, its directory, its
parts. Only then a library opens it.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide

from wsi_ips.errors import Note, TileReadError, UnreadableSlideError
from wsi_ips.slide.backends import Backend, Description, Handle, OpenSlideBackend, TiffSlideBackend, clean_text
from wsi_ips.slide.dicom import check_dicom, choose_from_folder
from wsi_ips.slide.fileslide import FileSlide
from wsi_ips.slide.icc import SrgbTransform
from wsi_ips.slide.kinds import is_vms, kind_of_content, local_file
from wsi_ips.slide.limits import MAX_LEVEL0_PX, MAX_LEVELS, MAX_SIDE_PX
from wsi_ips.slide.metadata import MppClaim, aperio_fields, find_mpp, number, objective_power, ome_claims, tiff_claim
from wsi_ips.slide.mirax import check_mirax, check_vms
from wsi_ips.slide.proving import prove_direct
from wsi_ips.slide.tiffcheck import check_tiff, choose_reader, is_ome
from wsi_ips.slide.tiffheader import TiffHeader, is_tiff, read_tiff_header

__all__ = ["Wish", "open_any"]

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(::|://)")  # two letters at least: C:// is a Windows drive
_DARK = 40  # of 255; brightfield glass is above 180
_MAX_OVERVIEW_PX = 16_000_000


class Wish(NamedTuple):
    """How a slide is wanted; see `reader.open_slide`."""

    mpp: float | None
    icc: str
    reader: str  # auto or library


def open_any(path: str, wish: Wish) -> FileSlide:
    """Open a local slide or a URI; see `reader.open_slide`."""
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    header: TiffHeader | None
    if _URI.match(path):
        name, header = _remote_header(path)
        check_tiff(header, name)
        choose_reader(header, name, is_remote=True)
        return _open(name, TiffSlideBackend(path, name, header), header, wish)
    file = Path(path)
    name = file.name
    if file.is_dir():
        file = choose_from_folder(file)
    head = local_file(file)
    notes: tuple[Note, ...] = ()
    header = None
    if is_tiff(head):
        with file.open("rb") as f:
            header = read_tiff_header(f, file.stat().st_size, name)
        check_tiff(header, name)
        if choose_reader(header, name, is_remote=False) == "tiffslide":
            return _open(name, TiffSlideBackend(path, name, header), header, wish)
    elif file.suffix.lower() == ".mrxs":
        check_mirax(file)
    elif head[128:132] == b"DICM":
        notes = tuple(Note("E_PARTS", sentence) for sentence in check_dicom(file))
    elif is_vms(head):
        check_vms(file)
    else:
        _refuse_foreign(file, head)
    return _open(name, OpenSlideBackend(file), header, wish, notes, file)


def _refuse_foreign(file: Path, head: bytes) -> None:
    """Say what a file is that no reader knows."""
    try:
        vendor = openslide.OpenSlide.detect_format(file)
    except openslide.OpenSlideError as error:
        reason = clean_text(error, str(file))
        raise UnreadableSlideError("E_UNSUPPORTED", f"{file.name}: OpenSlide cannot open it: {reason}") from error
    if vendor is None:
        found = kind_of_content(head) or "none of the slide formats known"
        message = f"{file.name}: {found}, not a slide; copy or download the slide again"
        raise UnreadableSlideError("E_NOT_A_SLIDE", message)


def _remote_header(uri: str) -> tuple[str, TiffHeader]:
    import fsspec  # only remote slides need it

    name = uri.rstrip("/").rsplit("/", 1)[-1]
    try:
        with fsspec.open(uri, "rb") as f:
            size = f.seek(0, io.SEEK_END)
            f.seek(0)
            head = f.read(512)
            if size == 0:
                raise UnreadableSlideError("E_EMPTY", f"{name}: the file is empty (0 bytes)")
            if not is_tiff(head):
                found = kind_of_content(head) or "not a TIFF file"
                message = f"{name}: {found}; only TIFF-based slides are read remotely"
                raise UnreadableSlideError("E_NOT_A_SLIDE", message)
            return name, read_tiff_header(f, size, name)
    except UnreadableSlideError:
        raise
    except FileNotFoundError as error:
        raise UnreadableSlideError("E_MISSING", f"{name}: there is no such file at the given address") from error
    except Exception as error:  # fsspec passes on the errors of every storage library
        reason = clean_text(error, uri)
        raise UnreadableSlideError("E_UNSUPPORTED", f"{name}: the address cannot be read: {reason}") from error


def _open(
    name: str, backend: Backend, header: TiffHeader | None, wish: Wish, notes: tuple[Note, ...] = (),
    file: Path | None = None,
) -> FileSlide:  # fmt: skip
    """Open with a library; `file` is given where the fast path may be tried."""
    direct = None
    handle = backend.open()
    try:
        said = handle.describe()
        _refuse_odd_sizes(name, said)
        _refuse_darkfield(name, said, handle)
        claims, power = _claims(said, header)
        mpp, mpp_notes = find_mpp(name, wish.mpp, claims, power)
        colour, colour_notes = _colour(name, handle, wish.icc)
        if file is not None and wish.reader == "auto":
            direct = prove_direct(file, header, said.vendor, said.level_sizes, backend.open)
    finally:
        handle.close()
    notes += mpp_notes + colour_notes
    if name.lower().endswith(".svs") and said.vendor == "generic-tiff":
        message = "named .svs, but without an Aperio description: levels and resolution may have been lost"
        notes += (Note("E_METADATA", message),)
    return FileSlide(name, backend, said, mpp=mpp, properties=_properties(said, power, header), notes=notes, colour=colour,
                     direct=direct)  # fmt: skip


def _claims(said: Description, header: TiffHeader | None) -> tuple[list[MppClaim], float | None]:
    """Collect what the file says of its resolution, best source first, and its objective power."""
    claims: list[MppClaim] = []
    power = objective_power(said.properties, "openslide.objective-power", "aperio.AppMag")
    if "openslide.vendor" in said.properties and said.vendor != "generic-tiff":
        claims.append(MppClaim("vendor", *(number(said.properties.get(f"openslide.mpp-{a}")) for a in "xy")))
    aperio = number(said.properties.get("aperio.MPP"))
    claims.append(MppClaim("vendor", aperio, aperio))
    if header is not None:
        fields = aperio_fields(header.ifds[0].description)
        stated = number(fields.get("MPP"))
        claims.append(MppClaim("vendor", stated, stated))
        power = power or objective_power(fields, "AppMag")
        if is_ome(header):
            ome, ome_power = ome_claims(header.ifds[0].description)
            claims.append(ome)
            power = power or ome_power
        claims.append(tiff_claim(header))
    unique = list(dict.fromkeys(claims))
    return [c for c in unique if not (np.isnan(c.x) and np.isnan(c.y))], power


def _refuse_odd_sizes(name: str, said: Description) -> None:
    width, height = said.level_sizes[0] if said.level_sizes else (0, 0)
    is_sane = 0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX and width * height <= MAX_LEVEL0_PX
    if not is_sane or len(said.level_sizes) > MAX_LEVELS:
        found = f"a size of {width} x {height} px in {len(said.level_sizes)} levels"
        raise UnreadableSlideError("E_ABSURD", f"{name}: states {found}")


def _refuse_darkfield(name: str, said: Description, handle: Handle) -> None:
    """Hamamatsu writes fluorescence as dark RGB without saying so: look at the coarsest level."""
    level = len(said.level_sizes) - 1
    width, height = said.level_sizes[level]
    if said.vendor != "hamamatsu" or width * height > _MAX_OVERVIEW_PX:
        return
    try:
        rgb = np.empty((height, width, 3), np.uint8)
        handle.read(rgb, 0, 0, level)
    except TileReadError:
        return  # damage is found, counted and reported where tiles are read
    brightest = rgb.max(axis=-1)
    if float(np.median(brightest)) < _DARK:
        message = (
            f"{name}: found a dark background (median brightness {np.median(brightest):.0f} of 255), as in "
            "fluorescence; wsi-ips reads brightfield slides: 8-bit RGB"
        )
        raise UnreadableSlideError("E_PIXEL_FORMAT", message)


def _colour(name: str, handle: Handle, icc: str) -> tuple[SrgbTransform | None, tuple[Note, ...]]:
    if icc == "none":
        return None, ()
    profile = handle.icc_profile()
    if profile is None:
        return None, (Note("E_NO_ICC", "colour profiles are to be applied, but the file has none"),)
    return SrgbTransform(profile, name), ()


def _properties(said: Description, power: float | None, header: TiffHeader | None) -> dict[str, str]:
    """Choose what may leave the file: nothing of names, dates, barcodes, serial numbers, paths.

    Scanned regions, their bounds and focal planes are recorded where there is more than one of them, or less than all of
    level 0; of focal planes the middle one is read.
    """
    width, height = said.level_sizes[0]
    chosen = {
        "vendor": said.vendor, "width": str(width), "height": str(height),
        "levels": "; ".join(f"{w}x{h}" for w, h in said.level_sizes),
    }  # fmt: skip
    if power is not None:
        chosen["objective_power"] = f"{power:g}"
    if said.bounds is not None and said.bounds != (0, 0, width, height):
        chosen["bounds"] = "{2}x{3} px at ({0}, {1})".format(*said.bounds)
    regions = {key.split("]")[0] for key in said.properties if key.startswith("openslide.region[")}
    planes = {ifd.focus for ifd in header.ifds} if header is not None else set()
    chosen |= {name: str(len(found)) for name, found in (("regions", regions), ("focal_planes", planes)) if len(found) > 1}
    wanted = {"level[0].tile-width": "tile_width", "level[0].tile-height": "tile_height", "icc-size": "icc_bytes"}
    for key, name in wanted.items():
        value = said.properties.get(f"openslide.{key}", said.properties.get(f"tiffslide.{key}"))
        if value is not None and str(value).isdecimal():
            chosen[name] = str(value)
    return chosen
