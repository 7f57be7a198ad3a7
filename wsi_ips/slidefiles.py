"""Names of slide files: which files are slides, what a slide is called, whose slide it is; and the list of a folder.

One slide is one row, also where a format spreads over several files: MIRAX and VMS are named by their main file, a
DICOM series by its folder, or by its first file where the folder holds more than that series.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.files import write_whole
from wsi_ips.tables import cell_text, csv_bytes

__all__ = [
    "find_slides",
    "id_key",
    "is_slide_id",
    "part_names",
    "patient_of",
    "safe_id",
    "slide_stem",
    "slide_suffix",
    "write_manifest",
]

_FOUND = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".qptiff", ".svslide", ".czi")
# further endings that mark a file name as one, in tables of other tools
_KNOWN = (*_FOUND, ".dcm", ".isyntax", ".vsi", ".sdpc", ".kfb", ".zarr", ".btf", ".jp2", ".jpg", ".jpeg", ".png")
_INNER = (".ome", ".jpeg", ".jpg", ".jp2")  # slide.ome.tif, slide.jpeg.tiff
_ID = re.compile(r"\w[\w.@+ -]{0,199}")
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.ASCII | re.IGNORECASE)
# study and series UID side by side stand so at the top level of a DICOM file only, not in its references to others
_SERIES_UID = re.compile(rb"\x20\x00\x0d\x00UI..[0-9.]{1,64}[\x00 ]?\x20\x00\x0e\x00UI..([0-9.]{1,64})", re.DOTALL)
_MAP_CLASS = b"1.2.840.10008.5.1.4.1.1.30\x02\x00"  # parametric map; the next element of the file's head follows
_COLUMNS = ("slide_path", "slide_id", "patient_id", "label", "mpp", "split")


def slide_suffix(name: str) -> str:
    """Find the known ending of a slide's file name, "" when it has none; dots inside a name are no ending.

    >>> [slide_suffix(n) for n in ("a.ome.tif", "B.SVS", "TCGA-55-7910-01Z-00-DX1.041e15d5-4852")]
    ['.ome.tif', '.SVS', '']
    """
    lower = name.lower()
    outer = next((s for s in _KNOWN if lower.endswith(s) and len(lower) > len(s)), "")
    inner = next((s for s in _INNER if outer and lower.removesuffix(outer).endswith(s)), "")
    if len(outer + inner) == len(name):
        inner = ""
    return name[len(name) - len(inner + outer) :] if outer else ""


def slide_stem(path: str, ext: str = "") -> str:
    """Name the slide at a path or URI: the last part without its ending (a known one, or `ext`).

    >>> slide_stem("s3://bucket/x/B.2.svs?versionId=7"), slide_stem("series/1.2.840/")
    ('B.2', '1.2.840')
    """
    bare = re.split(r"[?#]", path)[0] if "://" in path else path
    name = re.split(r"[\\/]", bare.rstrip("\\/"))[-1]
    if ext and name.lower().endswith(ext.lower()) and len(name) > len(ext):
        return name[: -len(ext)]
    return name.removesuffix(slide_suffix(name))


def is_slide_id(text: str) -> bool:
    """Tell whether a text can name files: `[\\w][\\w.@+ -]{0,199}`, at most 200 bytes, no blank or dot at the end."""
    is_named = _ID.fullmatch(unicodedata.normalize("NFC", text))  # an accent by itself is no letter to `re`
    return bool(is_named) and len(text.encode()) <= 200 and text[-1] not in " ."


def safe_id(text: str) -> str:
    """Replace what a slide id must not hold by `_`; cut to 200 bytes.

    >>> safe_id("test3-(387)"), safe_id("=cmd")
    ('test3-_387_', '_cmd')
    """
    if is_slide_id(text):
        return text
    utf8 = text.encode("utf-8", "replace").decode()
    clean = re.sub(r"[^\w.@+ -]", "_", unicodedata.normalize("NFC", utf8))
    clean = clean if re.match(r"\w", clean) else "_" + clean[1:]
    return clean.encode()[:200].decode(errors="ignore").rstrip(" .") or "_"


def part_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Make parts of file names of a model's tasks or classes: at most 40 characters, no two alike on any file system.

    >>> part_names(["<5", "low", ">5", "Low"])
    ('_5', 'low', '_5_2', 'Low_2')
    """
    made: list[str] = []
    taken: set[str] = set()
    for text in texts:
        bare = name = safe_id(text)[:40]
        number = 1
        while id_key(name) in taken:
            number += 1
            name = f"{bare}_{number}"
        taken.add(id_key(name))
        made.append(name)
    return tuple(made)


def id_key(slide_id: str) -> str:
    """Fold what some file systems do not tell apart: case, and composed against decomposed letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", slide_id).casefold())


def patient_of(slide_id: str) -> str:
    """Read the patient from a TCGA name, its first 12 characters in capitals; "" for other names.

    >>> patient_of("tcga-cr-7395-01a-01-ts1"), patient_of("slide_7")
    ('TCGA-CR-7395', '')
    """
    match = _TCGA.match(slide_id)
    return match.group().upper() if match else ""


def find_slides(folder: Path) -> list[Path]:
    """List the slides below a folder, sorted; hidden files, MIRAX data folders and finished runs are left out.

    Raises:
        ConfigError: not a folder, or one below it that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder; give the folder that holds the slides")
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or {"run.json", "predictions.csv"} <= set(files):
            folders.clear()  # a loop of links, or results of an earlier run: their heatmaps are .tif, not slides
            continue
        seen.add(real)
        mirax = {f[: -len(".mrxs")] for f in files if f.lower().endswith(".mrxs")}
        folders[:] = sorted(d for d in folders if not d.startswith(".") and d not in mirax)
        visible = sorted(f for f in files if not f.startswith("."))
        slides = [Path(place, f) for f in visible if f.lower().endswith(_FOUND)]
        dicom = [p for f in visible if f.lower().endswith(".dcm") and not _is_dicom_map(p := Path(place, f))]
        found += slides + _dicom_rows(dicom, is_alone=not slides and Path(place) != folder)
    return sorted(found, key=lambda p: p.relative_to(folder).parts)


def write_manifest(folder: Path, out: Path) -> int:
    """Write a manifest of the slides below a folder; labels and the rest are left empty for a person to fill.

    Paths are relative to the manifest's own folder. Ids are unique: names that occur twice get their folder's name in
    front. An existing file is never overwritten.

    Returns:
        Number of slides.

    Raises:
        ConfigError: `out` exists, or a folder that cannot be read.
        ManifestError: no slides, or names that are not UTF-8.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already and may hold labels; give another name or remove it")
    slides = find_slides(folder)
    if not slides:
        raise ManifestError([f"{folder}: no slides found; looked for {' '.join(_FOUND)} and DICOM folders"])
    broken = [p for p in slides if not _is_utf8(p)]
    if broken:
        raise ManifestError([f"{p!r}: the name is not valid UTF-8; rename it" for p in broken])
    ids = _unique_ids([p.relative_to(folder).parts for p in slides], folder.resolve().name)
    named = zip(slides, ids, strict=True)
    rows = [(_relative_to(path, out), slide_id, patient_of(slide_stem(path.name)), "", "", "") for path, slide_id in named]
    write_whole(out, csv_bytes([_COLUMNS, *rows]))
    return len(slides)


def _refuse_unreadable(error: OSError) -> None:
    message = f"{error.filename}: cannot be listed ({error.strerror}); allow it, or name a folder that can be"
    raise ConfigError(message) from error


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _dicom_rows(files: list[Path], *, is_alone: bool) -> list[Path]:
    """One path a series: the folder when it holds nothing else, otherwise the series' first file."""
    firsts: dict[bytes, Path] = {}
    for path in files:
        firsts.setdefault(_series_uid(path), path)
    if len(firsts) == 1 and is_alone:
        return [files[0].parent]
    return list(firsts.values())


def _is_dicom_map(path: Path) -> bool:
    """Tell a map that was made of a slide, which an archive hands out beside it, from the slide."""
    try:
        with path.open("rb") as f:
            return _MAP_CLASS in f.read(512)
    except OSError:
        return False


def _series_uid(path: Path) -> bytes:
    """Find the SeriesInstanceUID of an explicit little-endian DICOM file; b"" when its first MiB shows none."""
    try:
        with path.open("rb") as f:
            match = _SERIES_UID.search(f.read(2**20))
    except OSError:  # listed all the same: opening the slide will say what is wrong with it
        return b""
    return match.group(1) if match else b""


def _relative_to(path: Path, out: Path) -> str:
    try:
        text = os.path.relpath(path.absolute(), out.absolute().parent).replace(os.sep, "/")
    except ValueError:  # another drive
        return str(path.absolute())
    return text if cell_text(text) == text else f"./{text}"  # a spreadsheet would take it for a formula


def _unique_ids(places: Sequence[tuple[str, ...]], root: str) -> list[str]:
    """Name slides by their stems; where two agree, put folder names in front, then the ending behind, then a number."""
    folders = [(root, *place[:-1]) for place in places]
    names = [place[-1] for place in places]
    stems = [slide_stem(name) for name in names]
    ids = [safe_id(stem) for stem in stems]
    for depth in range(1, 1 + max(len(f) for f in folders)):
        ids = _renamed(ids, ["_".join((*f[-depth:], stem)) for f, stem in zip(folders, stems, strict=True)])
    ids = _renamed(ids, [stem + slide_suffix(n).replace(".", "_") for n, stem in zip(names, stems, strict=True)])
    while len({id_key(i) for i in ids}) < len(ids):
        ids = _numbered(ids)
    return ids


def _renamed(ids: list[str], other: list[str]) -> list[str]:
    counts = Counter(id_key(i) for i in ids)
    return [safe_id(o) if counts[id_key(i)] > 1 else i for i, o in zip(ids, other, strict=True)]


def _numbered(ids: list[str]) -> list[str]:
    seen: defaultdict[str, int] = defaultdict(int)

    def numbers() -> Iterator[str]:
        for i in ids:
            seen[id_key(i)] += 1
            yield i if seen[id_key(i)] == 1 else f"{i[:190]}_{seen[id_key(i)]}"

    return list(numbers())
