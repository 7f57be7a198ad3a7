"""Resolution with its provenance, magnification, and the fingerprint by which a file is known again.

A scanner's numbers are claims: a resolution is believed between 0.05 and 10 µm per level-0 px, and compared with the
objective power. A source that states something unbelievable is passed over for the next one; when none is left the
slide is refused, never given a default.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from xml.etree import ElementTree

from wsi_ips.errors import MppError, Note
from wsi_ips.geometry import Mpp
from wsi_ips.slide.dicom import series_files
from wsi_ips.slide.tiffheader import TiffHeader
from wsi_ips.untrusted import read_xml

__all__ = [
    "STRICT_METHOD",
    "MppClaim",
    "aperio_fields",
    "believable",
    "find_mpp",
    "fingerprint",
    "modified_ns",
    "number",
    "objective_power",
    "ome_claims",
    "tiff_claim",
]

_LOWEST_UM, _HIGHEST_UM = 0.05, 10.0
_AXES_DIFFER = 1.05
_OBJECTIVE_WARNS, _OBJECTIVE_REFUSES = 1.3, 2.2
_MAX_XML_BYTES = 64 << 20
_UM = {"µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
_TIFF_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre; 1 is "no unit" and says nothing
_BLOCK, _LARGE_BLOCK = 64 << 10, 4 << 20
STRICT_METHOD = "full sha256 of all files"


class _Digest(Protocol):
    """A hash that is being fed."""

    def update(self, data: bytes, /) -> None:
        """Feed it."""


class MppClaim(NamedTuple):
    """What one source says about the resolution, believed or not."""

    source: str  # as in `Mpp.source`
    x: float  # µm per level-0 px; NaN where it says nothing readable
    y: float


def number(text: object) -> float:
    """Read a number with decimal point or comma; NaN for anything else.

    >>> number("0,4990"), number(" 20 ")
    (0.499, 20.0)
    """
    try:
        return float(str(text).strip().replace(",", "."))
    except ValueError:
        return math.nan


def believable(um: float) -> bool:
    """Whether a resolution in µm per level-0 px can be that of a slide."""
    return math.isfinite(um) and _LOWEST_UM <= um <= _HIGHEST_UM


def find_mpp(
    name: str, given: float | None, claims: list[MppClaim], objective: float | None
) -> tuple[Mpp, tuple[Note, ...]]:
    """Take the first believable claim.

    Args:
        name: of the slide, for messages.
        given: the manifest's µm per level-0 px; goes before everything.
        claims: the file's own, best first.
        objective: magnification of the objective, 20.0 for instance; 10 / power is the last resort ("nominal").

    Returns:
        The resolution, and notes `E_MPP_DISAGREES` where x and y or mpp and objective disagree.

    Raises:
        MppError: `E_MPP`, nothing believable, or more than 2.2x away from what the objective power implies.
    """
    if given is not None and not believable(given):
        allowed = f"{_LOWEST_UM} to {_HIGHEST_UM:g} µm per level-0 px"
        raise MppError("E_MPP", f"{name}: mpp {given:g} was given, but only {allowed} can be meant")
    nominal = 10.0 / objective if objective else math.nan
    all_claims = [] if given is None else [MppClaim("manifest", given, given)]
    all_claims += [*claims, MppClaim("nominal (objective power)", nominal, nominal)]
    chosen = next((c for c in all_claims if believable(c.x) and believable(c.y)), None)
    if chosen is None:
        said = [f"{c.source}: {c.x:g} x {c.y:g}" for c in all_claims if not (math.isnan(c.x) and math.isnan(c.y))]
        found = f"found {'; '.join(said)} µm" if said else "found none"
        message = f"{name}: no believable µm per level-0 px in the file ({found})"
        raise MppError("E_MPP", f"{message}; give it in column 'mpp' of the manifest")
    return Mpp(chosen.x, chosen.y, chosen.source), _disagreements(name, chosen, objective)


def _disagreements(name: str, chosen: MppClaim, objective: float | None) -> tuple[Note, ...]:
    notes = []
    if max(chosen.x, chosen.y) / min(chosen.x, chosen.y) > _AXES_DIFFER:
        message = f"{chosen.x:g} µm per px across but {chosen.y:g} down ({chosen.source}): both are used"
        notes.append(Note("E_MPP_DISAGREES", message))
    if objective:
        mean = math.sqrt(chosen.x * chosen.y)
        off = max(mean * objective / 10.0, 10.0 / (mean * objective))
        implied = f"a {objective:g}x objective implies about {10.0 / objective:.3g}"
        said = f"{mean:.4g} µm per px ({chosen.source}), but {implied}"
        if off > _OBJECTIVE_REFUSES and chosen.source != "manifest":
            raise MppError("E_MPP", f"{name}: {said}; give the right one in column 'mpp' of the manifest")
        if off > _OBJECTIVE_WARNS:
            notes.append(Note("E_MPP_DISAGREES", said))
    return tuple(notes)


def tiff_claim(header: TiffHeader) -> MppClaim:
    """Read the resolution tags of level 0, where they have a physical unit."""
    ifd = header.primary
    unit = _TIFF_UNIT_UM.get(ifd.resolution_unit, math.nan)
    x, y = (unit / r if r > 0 else math.nan for r in ifd.resolution)
    return MppClaim("tiff", x, y)


def aperio_fields(description: str) -> dict[str, str]:
    """Read `key = value` pairs out of an Aperio description; empty for other text.

    >>> aperio_fields("Aperio Image Library v1|AppMag = 20|MPP = 0,4990")
    {'AppMag': '20', 'MPP': '0,4990'}
    """
    if not description.startswith("Aperio"):
        return {}
    pairs = (part.split("=", 1) for part in description.split("|")[1:] if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def ome_claims(description: str) -> tuple[MppClaim, float | None]:
    """Read resolution and objective power out of OME-XML.

    XML that holds a document type definition, is deeper than `read_xml` allows or no XML says nothing.

    Source: OME schema 2016-06, Pixels/@PhysicalSizeX, default unit µm.
    """
    silent = MppClaim("ome", math.nan, math.nan)
    if "<OME" not in description:
        return silent, None
    try:
        root = read_xml(description.replace("\0", ""), max_bytes=_MAX_XML_BYTES)
    except ValueError:
        return silent, None
    objective = _attribute(root, "Objective", "NominalMagnification")
    power = number(objective) if objective is not None else math.nan
    for element in root.iter():
        if element.tag.endswith("}Pixels"):
            x, y = (
                number(element.get(f"PhysicalSize{a}")) * _UM.get(element.get(f"PhysicalSize{a}Unit", "µm"), math.nan)
                for a in "XY"
            )
            return MppClaim("ome", x, y), (power if power > 0 else None)
    return silent, (power if power > 0 else None)


def _attribute(root: ElementTree.Element, tag: str, key: str) -> str | None:
    return next((e.get(key) for e in root.iter() if e.tag.endswith("}" + tag) and e.get(key)), None)


def objective_power(properties: Mapping[str, Any], *keys: str) -> float | None:
    """Take the first readable magnification between 0 and 250 among the named properties."""
    for key in keys:
        power = number(properties.get(key))
        if math.isfinite(power) and 0.0 < power <= 250.0:
            return power
    return None


def fingerprint(path: str | os.PathLike[str], strict: bool = False) -> dict[str, Any]:
    """Sample a slide's content so that a changed file is noticed without reading gigabytes; or read all of it.

    Hashed are the size, the first and last 64 KiB and eight blocks between them, and the names and sizes of the files
    that belong to the slide (a MIRAX folder, the other files of a DICOM folder). A change elsewhere inside a large file
    goes unnoticed: `method` says so. With `strict` every byte of all these files is hashed.

    Returns:
        {"method", "size", "sha256"}, ready for JSON; the same for the same content wherever the file lies.

    Raises:
        OSError: the file cannot be read.
    """
    if "://" in str(path) and not str(path).startswith("file://"):
        return _remote_fingerprint(str(path), strict)
    main = Path(str(path).removeprefix("file://"))
    digest = hashlib.sha256()
    members = sorted(p for p in main.iterdir() if p.is_file()) if main.is_dir() else [main]
    companions = _companions(main) if main.is_file() else []
    total = 0
    for member in (*members, *companions):
        # a FIFO under a slide's name would block for ever
        if not stat.S_ISREG(member.stat().st_mode):
            raise OSError(f"{member.name} is not a regular file")
        size = member.stat().st_size
        total += size
        digest.update(f"{member.name if main.is_dir() or member != main else ''}:{size}\n".encode())
        if strict or member in members:
            with member.open("rb") as f:
                _hash_blocks(f, size, digest, strict)
    return {"method": STRICT_METHOD if strict else "sampled sha256: size, ends, 8 blocks, companions' names and sizes",
            "size": total, "sha256": digest.hexdigest()}  # fmt: skip


def modified_ns(path: str | os.PathLike[str]) -> int:
    """Tell when a slide's files were last written to, the latest of them, in ns; 0 where that is not known.

    A stamp notices what samples cannot; it is not part of the content, so a fingerprint does not hold it.
    """
    if "://" in str(path) and not str(path).startswith("file://"):
        return 0
    main = Path(str(path).removeprefix("file://"))
    try:
        members = list(main.iterdir()) if main.is_dir() else [main, *_companions(main)]
        return max((m.stat().st_mtime_ns for m in members), default=0)
    except OSError:
        return 0


def _companions(main: Path) -> list[Path]:
    """Files beside the one that was named, which hold the slide's pixels too."""
    if main.suffix.lower() == ".mrxs" and main.with_suffix("").is_dir():
        return sorted(p for p in main.with_suffix("").iterdir() if p.is_file())
    if main.suffix.lower() in (".vms", ".vmu"):
        with main.open("rb") as f:
            lines = f.read(1 << 20).decode("latin-1").splitlines()
        named = {line.partition("=")[2].strip() for line in lines}
        return sorted(p for p in main.parent.iterdir() if p.name in named and p.is_file())
    return [f.path for f in series_files(main)]


def _hash_blocks(f: BinaryIO, size: int, digest: _Digest, strict: bool) -> None:
    """Feed a file's sampled blocks, or all of it, to a hash."""
    if strict:
        while block := f.read(_LARGE_BLOCK):
            digest.update(block)
        return
    last = max(0, size - _BLOCK)
    for offset in sorted({round(last * i / 9) for i in range(10)}):
        f.seek(offset)
        digest.update(f.read(_BLOCK))


def _remote_fingerprint(uri: str, strict: bool) -> dict[str, Any]:
    import fsspec  # only remote slides need it

    try:
        with fsspec.open(uri, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            digest = hashlib.sha256(f":{size}\n".encode())
            _hash_blocks(f, size, digest, strict)
    except Exception as error:  # fsspec passes on the errors of every storage library
        raise OSError(f"the address cannot be read ({type(error).__name__})") from error
    method = STRICT_METHOD if strict else "sampled sha256: size, ends, 8 blocks"
    return {"method": method, "size": size, "sha256": digest.hexdigest()}
