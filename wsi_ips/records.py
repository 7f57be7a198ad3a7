"""One row of a manifest: its record, and what can be wrong within the row.

Relative paths start at one root for the whole table, whatever the working directory is. A row with a problem still
gives a record, good only for finding further problems.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from wsi_ips.columns import Columns, Place
from wsi_ips.errors import Note
from wsi_ips.slidefiles import is_slide_id, patient_of, safe_id, slide_stem, slide_suffix
from wsi_ips.tables import Problem, TableRow, shown

__all__ = [
    "MAX_MPP",
    "MIN_MPP",
    "RowReader",
    "SlideRecord",
    "features_stem",
    "is_uri",
    "is_windows_path",
    "read_number",
]

MIN_MPP, MAX_MPP = 0.05, 10.0  # µm per level-0 px that are believed
_SPLITS = ("train", "val", "test")
_SPLIT_HINTS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_YES = {"1", "1.0", "true", "yes", "y", "x", "t"}
_NO = {"", "0", "0.0", "false", "no", "n", "f"}
_EXCEL_ERRORS = {"#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!"}
_FEATURES = (".h5", ".hdf5", ".pt", ".npz")
_STATED = {"sha256": (r"[0-9a-f]{64}", "a SHA-256 (64 hex digits)"), "md5": (r"[0-9a-f]{32}", "an MD5 (32 hex digits)"),
           "size_bytes": (r"\d{1,18}", "a number of bytes")}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class SlideRecord:
    """One row of a manifest."""

    slide_id: str
    slide_path: str  # absolute path (a file, or the folder of a DICOM series) or URI; "" where only features are named
    patient_id: str
    labels: dict[str, str] = field(default_factory=dict)  # text by column asked for, in that order; "" where empty
    mpp: float | None = None  # µm per level-0 px, as the manifest has it
    mask_path: str | None = None
    split: str | None = None  # "train", "val", "test"; "" unused; None without such a column
    folds: dict[str, str] = field(default_factory=dict)  # "fold": test fold; "fold_<k>": split in that fold
    site: str = ""
    scanner: str = ""
    stain: str = ""
    features_path: str | None = None
    is_excluded: bool = False
    exclude_reason: str = ""
    note: str = ""
    stated: dict[str, str] = field(default_factory=dict)  # of the slide's file: "sha256", "md5", "size_bytes"
    carried: dict[str, str] = field(default_factory=dict)  # other columns, untouched
    row: int = 0  # line in the file, the header being line 1; 0 without a file
    patient_is_default: bool = False  # True: patient_id is the slide's id for want of a better

    @property
    def label(self) -> str | None:
        """Text of the first label column; None where it is empty or absent."""
        return next(iter(self.labels.values()), "") or None

    @property
    def content_hash(self) -> str:
        """Hash of all but the line, 16 hex digits: tells whether the row changed between two runs."""
        content = dataclasses.asdict(self) | {"row": 0}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def is_uri(text: str) -> bool:
    """Tell `s3://bucket/a.svs` from a path; a Windows drive is no scheme.

    >>> is_uri("simplecache::s3://b/a.svs"), is_uri("C://slides/a.svs"), is_uri("a.svs")
    (True, False, False)
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.:-]+://", text))


def is_windows_path(text: str) -> bool:
    """Tell an absolute path of Windows, `C:\\slides` or `\\\\server\\share`."""
    return bool(re.match(r"[A-Za-z]:[\\/]|\\\\", text))


def read_number(text: str) -> float | None:
    """Read a number with a decimal point or comma; None when it is none.

    >>> read_number("0,25"), read_number("1e-3"), read_number("nan")
    (0.25, 0.001, None)
    """
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def features_stem(path: str) -> str:
    """Name the slide behind a file of features.

    >>> features_stem("features/a.1.h5"), features_stem("")
    ('a.1', '')
    """
    name = re.split(r"[\\/]", path)[-1]
    ending = next((e for e in _FEATURES if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)]


class RowReader:
    """Turns rows into records and gathers what is wrong with them."""

    def __init__(
        self, columns: Columns, root: str, ext: str, label_columns: Sequence[str], *, features: bool = False
    ) -> None:
        self.columns, self.root, self.ext = columns, root, ext
        self.features = features  # slides are given by features_path; slide_path may be empty
        self.label_columns = [name for name in label_columns if name in columns.labels]
        self.problems: list[Problem] = []
        self.notes: list[Note] = []
        self._bare: list[tuple[int, str]] = []  # lines with an id and nothing that tells the file

    def record(self, row: TableRow) -> SlideRecord:
        """Read a row; where it has problems the record is only good for finding more of them."""
        path, named = self._slide_path(row)
        slide_id = self._slide_id(row, named)
        tcga = patient_of(slide_id) or patient_of(slide_stem(named))
        patient = self._cell(row, "patient_id")
        site = self._cell(row, "site") or tcga[5:7]  # a TCGA name holds the tissue source site there
        reason = self._exclude_reason(row)
        mask, features = self._cell(row, "mask_path"), self._cell(row, "features_path")
        return SlideRecord(
            slide_id=slide_id,
            slide_path=path,
            patient_id=patient or tcga or slide_id,
            labels={name: self._text(row, self.columns.labels[name]) for name in self.label_columns},
            mpp=self._mpp(row),
            mask_path=self._resolved(mask) if mask else None,
            split=self._split(row, self.columns.known["split"][0]) if "split" in self.columns.known else None,
            folds=self._folds(row),
            site=site,
            scanner=self._cell(row, "scanner"),
            stain=self._cell(row, "stain"),
            features_path=self._resolved(features) if features else None,
            is_excluded=bool(reason),
            exclude_reason=reason,
            note=self._cell(row, "note"),
            stated=self._stated(row),
            carried={place.name: row.cells[place.at] for place in self.columns.carried},
            row=row.line,
            patient_is_default=not (patient or tcga),
        )

    def finish(self) -> list[Problem]:
        """Give all problems; what one option cures for many rows is told once."""
        if not self._bare:
            return self.problems
        line, name = self._bare[0]
        more = f" (and {len(self._bare) - 1} more rows)" if len(self._bare) > 1 else ""
        cure = "give --slide-root and --ext, .svs for instance, or a column 'slide_path'"
        text = f"{shown(name)} does not tell the slide's file{more}; {cure}"
        return [*self.problems, Problem(line, self.columns.name("slide_id"), text)]

    def _add(self, row: TableRow, column: str, text: str) -> None:
        self.problems.append(Problem(row.line, column, text))

    def _text(self, row: TableRow, place: Place) -> str:
        text = row.cells[place.at].strip()
        if text in _EXCEL_ERRORS:
            self._add(row, place.name, f"holds the Excel error {text}; correct the cell")
        if any(ord(c) < 32 or ord(c) == 127 for c in text) and place.name.lower() != "note":
            self._add(row, place.name, f"{shown(text)} holds a control character; remove it")
        return text

    def _cell(self, row: TableRow, ours: str) -> str:
        """Text of the first column of this meaning that holds any; "" without one."""
        return next((text for p in self.columns.known.get(ours, ()) if (text := self._text(row, p))), "")

    def _slide_path(self, row: TableRow) -> tuple[str, str]:
        """The resolved path and the name it was made from."""
        cell, slide_id = self._cell(row, "slide_path"), self._cell(row, "slide_id")
        name = cell or slide_id
        if self.features and not cell and not (slide_id and self.ext):
            name = slide_id or features_stem(self._cell(row, "features_path"))
            if not name:
                self._add(row, self.columns.name("slide_id"), "is empty; name the slide, or remove the row")
            return "", name
        column = self.columns.name("slide_path" if cell or "slide_path" in self.columns.known else "slide_id")
        if not name:
            self._add(row, column, "is empty; name the slide's file, or remove the row")
            return "", ""
        if self.ext and name.lower().endswith(_FEATURES):
            name = name[: name.rindex(".")]  # STAMP's slide table names the slides' feature files
        elif name.lower().endswith(_FEATURES):
            cure = "write it into features_path" if self.features else "give --slide-root and --ext for the slides"
            self._add(row, column, f"{shown(name)} is a file of features; {cure}")
        has_ending = slide_suffix(name) or (self.ext and name.lower().endswith(self.ext.lower()))
        if self.ext and not has_ending and not is_uri(name):
            name += self.ext
        elif not cell and not has_ending:
            self._bare.append((row.line, name))
            return "", name
        if self.columns.gdc_id is not None:
            name = f"{row.cells[self.columns.gdc_id.at].strip()}/{name}"
        return self._resolved(name), name

    def _resolved(self, name: str) -> str:
        """Make a path absolute; relative ones start at the root, whatever the working directory is."""
        if is_uri(name):
            return name
        if os.sep == "/":
            if is_windows_path(name):
                return name  # absolute on another system; the look-up will say so
            if "/" not in name:
                name = name.replace("\\", "/")
        if is_uri(self.root):
            return name if os.path.isabs(name) else f"{self.root.rstrip('/')}/{name}"
        return os.path.normpath(os.path.join(self.root, name))

    def _slide_id(self, row: TableRow, named: str) -> str:
        given = self._cell(row, "slide_id")
        if given:
            if not is_slide_id(given):
                rule = "begin with a letter, digit or _, then also . @ + - and blanks, at most 200 bytes"
                self._add(row, self.columns.name("slide_id"), f"{shown(given)} cannot name files; an id must {rule}")
            return given
        stem = slide_stem(named, self.ext)
        made = safe_id(stem) if stem else ""
        if made != stem:
            self.notes.append(Note("E_ID", f"line {row.line}: {shown(stem)} cannot be an id; it is called {made!r}"))
        return made

    def _mpp(self, row: TableRow) -> float | None:
        text, column = self._cell(row, "mpp"), self.columns.name("mpp")
        if not text:
            return None
        cure = "write µm per level-0 pixel, 0.25 for a typical 40x scan, or leave it empty"
        value = read_number(text)
        if value is None:
            not_finite = text.lower().lstrip("+-") in ("nan", "inf", "infinity")
            self._add(row, column, f"{shown(text)} is not a {'finite ' if not_finite else ''}number; {cure}")
            return None
        if not MIN_MPP <= value <= MAX_MPP:
            self._add(row, column, f"{text} lies outside {MIN_MPP} to {MAX_MPP:g} µm per pixel; {cure}")
            return None
        return value

    def _stated(self, row: TableRow) -> dict[str, str]:
        """What the row says of its slide's file, to be checked before the slide is read."""
        found = {}
        for ours, (pattern, what) in _STATED.items():
            text = self._cell(row, ours).lower()
            if not text:
                continue
            if not re.fullmatch(pattern, text, re.ASCII):
                self._add(row, self.columns.name(ours), f"{shown(text)} is not {what}; correct it, or leave it empty")
                continue
            found[ours] = text
        return found

    def _split(self, row: TableRow, place: Place) -> str:
        text = self._text(row, place)
        if text.lower() in ("", *_SPLITS):
            return text.lower()
        near = difflib.get_close_matches(text.lower(), _SPLITS, n=1, cutoff=0.5)
        hint = _SPLIT_HINTS.get(text.lower()) or next(iter(near), "")
        cure = f"did you mean {hint!r}? " if hint else ""
        self._add(row, place.name, f"{shown(text)} is no split; {cure}write train, val, test, or nothing for unused")
        return ""

    def _folds(self, row: TableRow) -> dict[str, str]:
        folds = {key: self._split(row, place) for key, place in self.columns.folds.items()}
        number = self._cell(row, "fold")
        if number and not re.fullmatch(r"\d+", number, re.ASCII):
            self._add(row, self.columns.name("fold"), f"{shown(number)} is no fold; write a whole number from 0")
        return {"fold": number, **folds} if "fold" in self.columns.known else folds

    def _exclude_reason(self, row: TableRow) -> str:
        """Say why a row is excluded; "" when it is not."""
        reasons = []
        for ours, excludes in (("exclude", _YES), ("qc_pass", _NO - {""}), ("process", _NO - {""})):
            word, column = self._cell(row, ours), self.columns.name(ours)
            if word.lower() not in _YES | _NO:
                self._add(row, column, f"{shown(word)} is neither yes nor no; write one of them, reasons into 'note'")
            elif word.lower() in excludes:
                reasons.append(f"column {column!r} says {word}")
        note = self._cell(row, "note")
        return "; ".join(reasons) + (f": {note}" if reasons and note else "")
