"""The manifest: a table of slides in, one record a slide out; every problem of the whole table is told at once.

A batch of 10,000 slides must not stop after days at its last row, so everything is checked before the first slide:
rows, ids, numbers, splits, files. Nothing is guessed and nothing is dropped: a row is a record or a problem. No label
is looked at beyond its text, and none has any part in how a slide is tiled.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from wsi_ips.columns import Columns, columns_of
from wsi_ips.errors import ConfigError, ManifestError, Note
from wsi_ips.records import MAX_MPP, MIN_MPP, RowReader, SlideRecord, features_stem, is_uri, is_windows_path
from wsi_ips.slidefiles import find_slides, id_key, patient_of, safe_id, slide_stem, slide_suffix, write_manifest
from wsi_ips.tables import Problem, cell_text, read_table

__all__ = [
    "MAX_MPP",
    "MIN_MPP",
    "Manifest",
    "SlideRecord",
    "cell_text",
    "find_slides",
    "is_uri",
    "load_manifest",
    "manifest_of_slide",
    "manifest_or_slide",
    "write_manifest",
]


@dataclass(frozen=True)
class Manifest:
    """A whole manifest, checked."""

    records: tuple[SlideRecord, ...]
    path: Path
    columns: tuple[str, ...]  # as in the file
    sha256: str
    notes: tuple[Note, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # with which `load_manifest` reads it the same way again

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[SlideRecord]:
        return iter(self.records)


def load_manifest(
    path: str | Path,
    *,
    label_columns: Sequence[str] = ("label",),
    slide_root: str | Path | None = None,
    ext: str | None = None,
    allow_missing: bool = False,
    check_files: bool = True,
    features: bool = False,
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: CSV (comma, semicolon or tab) or .xlsx.
        label_columns: columns to take labels from; a missing one is a problem unless it is the default "label".
        slide_root: folder or URI that relative paths start from, and that every slide, mask and file of features must
            lie in, links followed; None: they start from the manifest's own folder, and may lie anywhere.
        ext: ending of the slides' files, put behind names that have none (".svs").
        allow_missing: keep rows whose files do not exist; they will be `failed E_MISSING`.
        check_files: look whether the files exist; URIs and excluded rows are never looked up.
        features: slides are given by the column features_path; slide_path may be empty and need not exist.

    Raises:
        ManifestError: every problem found, each with line, column and cure.
    """
    path = Path(path)
    table = read_table(path)
    columns, column_problems, column_notes = columns_of(table, label_columns)
    problems = [*table.problems, *column_problems]
    if not {"slide_path", "slide_id"} & set(columns.known):
        raise _error(path, problems)
    root = _root(path, slide_root)
    is_rooted = is_uri(root) or os.path.isdir(root)
    if check_files and not is_rooted:
        problems.append(Problem(0, "", f"--slide-root {root} is not a folder; correct it"))
    reader = RowReader(columns, root, f".{ext.lstrip('.')}" if ext else "", label_columns, features=features)
    records = tuple(reader.record(row) for row in table.rows)
    problems += [*reader.finish(), *_same_ids(records, columns)]
    notes = [*table.notes, *column_notes, *reader.notes, *_same_paths(records)]
    outside = [] if slide_root is None else list(_outside_files(records, columns, root))
    problems += outside
    missing = list(_missing_files(records, columns, root, features)) if check_files and is_rooted else []
    missing = [p for p in missing if (p.line, p.column) not in {(o.line, o.column) for o in outside}]
    if missing and allow_missing:
        notes.append(Note("E_MISSING", f"{len(missing)} listed files cannot be read; their slides will be `failed`"))
    problems += [] if allow_missing else missing
    if problems:
        raise _error(path, problems)
    options = {"label_columns": list(label_columns), "slide_root": root if slide_root is not None else None, "ext": ext,
               "features": features}  # fmt: skip
    return Manifest(records, path, tuple(h for h in table.header if h), table.sha256, tuple(notes), options)


def manifest_or_slide(text: str, mpp: float | None = None, **options: Any) -> Manifest:
    """Take what a user names: a table is a manifest, anything else is a single slide.

    Args:
        text: path or URI.
        mpp: µm per level-0 px, for a single slide.
        options: of `load_manifest`; None means its default.

    Raises:
        ManifestError: every problem found. ConfigError: `mpp` for a manifest, or a root or ending for a slide.
    """
    if not text.lower().endswith((".csv", ".tsv", ".txt", ".xlsx")):
        if options.get("slide_root") or options.get("ext"):
            raise ConfigError(f"{text}: --slide-root and --ext are for a manifest; write the slide's whole path")
        return manifest_of_slide(text, mpp, features=bool(options.get("features")))
    if mpp is not None:
        raise ConfigError("--mpp is for a single slide; a manifest says it in its column mpp")
    return load_manifest(text, **{k: v for k, v in options.items() if v is not None})


def manifest_of_slide(path: str | Path, mpp: float | None = None, *, features: bool = False) -> Manifest:
    """Make the manifest of a single slide, or of one file of features, so that one goes the same way as many.

    Raises:
        ManifestError: no such file.
    """
    text = str(path) if is_uri(str(path)) else os.path.abspath(path)
    if not is_uri(text) and (fault := _fault(text)):
        raise ManifestError([f"{text}: {fault}; give the path of a slide or of a manifest"])
    slide_id = safe_id(features_stem(text) if features else slide_stem(text))
    patient = patient_of(slide_id)
    record = SlideRecord(slide_id, "" if features else text, patient or slide_id, mpp=mpp,
                         features_path=text if features else None, patient_is_default=not patient)  # fmt: skip
    return Manifest((record,), Path(text), (), record.content_hash)


def _root(path: Path, slide_root: str | Path | None) -> str:
    if slide_root is not None and is_uri(str(slide_root)):
        return str(slide_root)
    return os.path.abspath(path.parent if slide_root is None else slide_root)


def _error(path: Path, problems: list[Problem]) -> ManifestError:
    def sentence(p: Problem) -> str:
        column = f", column {p.column!r}" if p.column else ""
        return f"{path.name}: line {p.line}{column}: {p.text}" if p.line else f"{path.name}: {p.text}"

    return ManifestError(dict.fromkeys(sentence(p) for p in sorted(problems, key=lambda p: p.line)))


def _same_ids(records: Sequence[SlideRecord], columns: Columns) -> Iterator[Problem]:
    column = columns.name("slide_id" if "slide_id" in columns.known else "slide_path")
    first: dict[str, SlideRecord] = {}
    for r in records:
        other = first.setdefault(id_key(r.slide_id), r)
        if other is r or not r.slide_id:
            continue
        differs = other.slide_id != r.slide_id
        same = f"{other.slide_id!r}, the same but for case or the coding of accents, " if differs else ""
        taken = f"the id {r.slide_id!r} is taken: {same or 'it '}stands in line {other.row}"
        yield Problem(r.row, column, f"{taken}; give each slide its own 'slide_id'")


def _same_paths(records: Sequence[SlideRecord]) -> Iterator[Note]:
    first: dict[str, SlideRecord] = {}
    for r in records:
        other = first.setdefault(r.slide_path, r)
        if r.slide_path and other is not r:
            both = f"{other.slide_id} and {r.slide_id}"
            yield Note("E_SAME_FILE", f"lines {other.row} and {r.row} ({both}) name the same file")


class _File(NamedTuple):
    """A path of a row that is not excluded."""

    line: int
    column: str  # as the file calls it
    path: str
    is_slide: bool


def _files(records: Sequence[SlideRecord], columns: Columns, *, features: bool = False) -> Iterator[_File]:
    """All paths that a run may open; with `features` those of features alone."""
    path_column = columns.name("slide_path" if "slide_path" in columns.known else "slide_id")
    mask_column, features_column = columns.name("mask_path"), columns.name("features_path")
    for r in records:
        slide = () if features else ((path_column, r.slide_path), (mask_column, r.mask_path))
        for column, path in () if r.is_excluded else (*slide, (features_column, r.features_path)):
            if path:
                yield _File(r.row, column, path, column == path_column)


def _missing_files(records: Sequence[SlideRecord], columns: Columns, root: str, features: bool) -> Iterator[Problem]:
    for line, column, path, is_slide in _files(records, columns, features=features):
        if not is_uri(path) and (fault := _fault(path)):
            cure = "correct the path, or let the run go on without it by --allow-missing"
            yield Problem(line, column, f"{fault}: {path}{_path_hint(path, root, is_slide)}; {cure}")


def _outside_files(records: Sequence[SlideRecord], columns: Columns, root: str) -> Iterator[Problem]:
    """Find what does not lie in the root: a manifest from elsewhere must not make a run open any file it names."""
    real_root = root if is_uri(root) else os.path.realpath(root)
    resolve = functools.lru_cache(4096)(_real)  # of folders: one look each, not one a row
    for line, column, path, _ in _files(records, columns):
        place = path
        if is_uri(path):
            below = unquote(path.removeprefix(root.rstrip("/") + "/"))
            is_inside = below != unquote(path) and ".." not in re.split(r"[\\/]", below)
        elif is_uri(root) or (os.sep == "/" and is_windows_path(path)):
            is_inside = False
        else:
            folder, name = os.path.split(path)
            place = _real(path) if os.path.islink(path) else os.path.join(resolve(folder), name)
            is_inside = place == real_root or place.startswith(real_root.rstrip(os.sep) + os.sep)
        if not is_inside:
            where = f"leads to {place}, outside" if place != path else "lies outside"
            cure = "correct the path or the root, or leave --slide-root away and give whole paths"
            yield Problem(line, column, f"{path} {where} --slide-root {root}; {cure}")


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the path
        return path


def _fault(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return "not readable"
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the path
        return "no such file"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "neither a file nor a folder"
    return "" if os.access(path, os.R_OK) else "not readable"


def _path_hint(path: str, root: str, is_slide: bool) -> str:
    if os.sep == "/" and is_windows_path(path):
        return " (a Windows path; relative ones and --slide-root work on both)"
    inside = path[len(root) :].lstrip("/\\") if path.startswith(root) else ""
    if inside.startswith(("~", "$")):
        return " (~ and $ are not expanded)"
    if "*" in path:
        return " (one row is one slide, * is not expanded)"
    if is_slide and not slide_suffix(path):
        return " (the name has no known ending; --ext puts one behind)"
    return f" (relative to {root})" if inside else ""
