"""What the index of a MIRAX or Hamamatsu VMS slide promises, compared with what lies beside it.

A `.mrxs` or `.vms` file is only a signpost: the pixels are in a folder of the same name, or in files beside it. A
half-copied folder opens, and fails later at some tiles; here the missing file is named before the first read.
"""

from __future__ import annotations

import os
from pathlib import Path

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.limits import MAX_INDEX_BYTES

__all__ = ["check_mirax", "check_vms"]

_MAX_FILES = 10_000


def check_mirax(path: Path) -> None:
    """Refuse fluorescence first (no copy would cure it), then missing parts.

    Raises:
        UnreadableSlideError: `E_PIXEL_FORMAT`, `E_PARTS`, or `E_ABSURD`.
    """
    folder = path.with_suffix("")
    ini = folder / "Slidedat.ini"
    if not folder.is_dir():
        raise _missing(path, f"the folder {folder.name} that belongs beside it")
    if not ini.is_file():
        raise _missing(path, f"Slidedat.ini in its folder {folder.name}")
    n_bytes = ini.stat().st_size
    if n_bytes > MAX_INDEX_BYTES:
        raise UnreadableSlideError("E_ABSURD", f"{path.name}: its Slidedat.ini has {n_bytes} bytes, as none that a scanner wrote")
    sections = _read_ini(ini)
    slide_type = sections.get("GENERAL", {}).get("SLIDE_TYPE", "")
    if "FLUORESC" in slide_type.upper():
        message = f"{path.name}: found a fluorescence slide ({slide_type}); wsi-ips reads brightfield slides: 8-bit RGB"
        raise UnreadableSlideError("E_PIXEL_FORMAT", message)
    wanted = [sections.get("HIERARCHICAL", {}).get("INDEXFILE", "Index.dat")]
    files = sections.get("DATAFILE", {})
    count = files.get("FILE_COUNT", "0")
    n_files = min(int(count[:9]), _MAX_FILES) if count.isdecimal() else 0
    wanted += [files[f"FILE_{i}"] for i in range(n_files) if f"FILE_{i}" in files]
    gone = [w for w in wanted if not os.path.isfile(folder / Path(w).name)]  # False for names that no system takes
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        raise _missing(path, f"{', '.join(gone[:3])}{more} in its folder {folder.name} ({len(wanted)} files expected)")


def check_vms(path: Path) -> None:
    """Refuse an index of VMS or VMU without the pictures that it names; the file that only speeds reading up may be gone.

    Raises:
        UnreadableSlideError: `E_PARTS`.
    """
    with path.open("rb") as f:
        lines = f.read(MAX_INDEX_BYTES).decode("latin-1").splitlines()
    named = {line.partition("=")[2].strip() for line in lines if line.startswith(("ImageFile", "MapFile"))} - {""}
    gone = sorted(name for name in named if not (path.parent / Path(name).name).is_file())
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        raise _missing(path, f"{', '.join(gone[:3])}{more} beside it")


def _missing(path: Path, what: str) -> UnreadableSlideError:
    return UnreadableSlideError("E_PARTS", f"{path.name}: missing {what}; copy the slide again with all its files")


def _read_ini(path: Path) -> dict[str, dict[str, str]]:
    """Read sections of `KEY = value`; tolerant, since the files are written by several programs."""
    with path.open("rb") as f:
        text = f.read(MAX_INDEX_BYTES).decode("utf-8-sig", "replace")
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1].strip().upper(), {})
        elif "=" in line:
            key, value = line.split("=", 1)
            current[key.strip().upper()] = value.strip()
    return sections
