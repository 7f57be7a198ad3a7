"""What the columns of a manifest mean: our names, those other tools use, and what to say when none fits.

Two columns of one meaning (`patient_id` and `case_id`) are fine while they agree; a row in which they do not is a
problem, because no rule could know which one was meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsi_ips.errors import Note
from wsi_ips.slidefiles import slide_suffix
from wsi_ips.tables import Problem, Table, TableRow, shown

__all__ = ["Columns", "Place", "columns_of"]

# CLAM, STAMP, TRIDENT, Patho-Bench, slideflow, hs2p, GDC; `slide` is a path or an id, see _meaning
_ALIASES = {
    "slide_path": ("image_path", "wsi", "path", "filename", "url"),
    "slide_id": ("sample_id",),
    "patient_id": ("case_id", "patient", "submitter_id"),
    "mpp": ("spacing_at_level_0", "spacing", "mpp_x"),
    "split": ("dataset",),
    "site": ("center", "tissue_source_site"),
    **dict.fromkeys(("mask_path", "fold", "scanner", "stain", "features_path"), ()),
    **dict.fromkeys(("exclude", "qc_pass", "process", "note", "sha256", "md5", "size_bytes"), ()),
}
_MEANS = {name: ours for ours, names in _ALIASES.items() for name in (ours, *names)}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FLAGS = {"", "0", "1", "0.0", "1.0", "true", "false", "yes", "no"}


class Place(NamedTuple):
    """Where a column stands and what the file calls it."""

    at: int
    name: str


@dataclass(frozen=True)
class Columns:
    """The columns by meaning."""

    known: dict[str, tuple[Place, ...]]  # by our name
    labels: dict[str, Place]  # by the name asked for
    folds: dict[str, Place]  # "fold_0", .. by name in small letters
    carried: tuple[Place, ...]
    gdc_id: Place | None  # the folder gdc-client makes for each file

    def name(self, ours: str) -> str:
        """The file's own name of a column, for messages."""
        return self.known[ours][0].name if ours in self.known else ours


def columns_of(table: Table, label_columns: Sequence[str]) -> tuple[Columns, list[Problem], list[Note]]:
    """Find the meaning of every column.

    Args:
        table: as read.
        label_columns: columns to take labels from; only "label" may be absent.
    """
    places = [Place(i, name) for i, name in enumerate(table.header) if name]
    labels = {name: place for name in label_columns if (place := _label_place(places, name)) is not None}
    known: dict[str, tuple[Place, ...]] = {}
    folds: dict[str, Place] = {}
    carried: list[Place] = []
    gdc_id = _gdc_id(table, places)
    for place in places:
        ours = "size_bytes" if gdc_id and _key(place.name) == "size" else _meaning(place, table)
        is_label = place in labels.values()
        if is_label and ours != _key(place.name):
            continue  # asked for as a label, so it is not another tool's name for something else
        if ours.startswith("fold_"):
            folds.setdefault(ours, place)
        elif ours:
            known[ours] = (*known.get(ours, ()), place)
        elif not is_label:
            carried.append(place)
    columns = Columns(known, labels, folds, tuple(carried), gdc_id)
    return columns, list(_column_problems(table, columns, label_columns)), list(_near_misses(columns, label_columns))


def _label_place(places: list[Place], name: str) -> Place | None:
    """Find a label column by its name, or but for case where only one fits."""
    exact = [p for p in places if p.name == name]
    loose = [p for p in places if _key(p.name) == _key(name)]
    return exact[0] if exact else loose[0] if len(loose) == 1 else None


def _key(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.lower())


def _meaning(place: Place, table: Table) -> str:
    """Our name of a column; "" when it is only carried along."""
    key = _key(place.name)
    cells = {row.cells[place.at].strip() for row in table.rows} if key in ("slide", "process") else set()
    if key == "slide":
        return "slide_path" if any(slide_suffix(c) or "/" in c or "\\" in c for c in cells) else "slide_id"
    if key == "process" and not {c.lower() for c in cells} <= _FLAGS:
        return ""  # CLAM's is 0 or 1
    if re.fullmatch(r"fold_\w+", key):
        return key
    return _MEANS.get(key, "")


def _gdc_id(table: Table, places: list[Place]) -> Place | None:
    by_key = {_key(p.name): p for p in places}
    place = by_key.get("id")
    if place is None or "filename" not in by_key:
        return None
    return place if all(_UUID.fullmatch(row.cells[place.at].strip()) for row in table.rows) else None


def _column_problems(table: Table, columns: Columns, label_columns: Sequence[str]) -> Iterator[Problem]:
    line = table.header_line
    if not {"slide_path", "slide_id"} & set(columns.known):
        yield Problem(line, "", _no_slide_column(table, columns))
    for name in label_columns:
        if name not in columns.labels and name != "label":
            near = difflib.get_close_matches(name.lower(), [h.lower() for h in table.header], n=1, cutoff=0.6)
            hint = next((h for h in table.header if near and h.lower() == near[0]), "")
            hint = f"did you mean {hint!r}?" if hint else f"found: {_listed(table.header)}"
            yield Problem(line, name, f"no such column to take labels from; {hint}")
    for ours, places in columns.known.items():
        for other in places[1:]:
            row = _first_difference(table.rows, places[0], other)
            if row:
                what = f"{places[0].name!r} and {other.name!r} both mean {ours} and differ"
                cells = f"{shown(row.cells[places[0].at])} and {shown(row.cells[other.at])}"
                yield Problem(row.line, other.name, f"{what} ({cells}); rename or remove one of the columns")


def _first_difference(rows: Sequence[TableRow], a: Place, b: Place) -> TableRow | None:
    def differs(row: TableRow) -> bool:
        left, right = row.cells[a.at].strip(), row.cells[b.at].strip()
        return bool(left and right and left != right)

    return next((row for row in rows if differs(row)), None)


def _no_slide_column(table: Table, columns: Columns) -> str:
    """Say what the table seems to be instead of a manifest, and the cure."""
    keys = {_key(h) for h in table.header}
    if {"train", "val", "test"} <= keys:
        return (
            "no column 'slide_path' or 'slide_id'; with columns train, val, test this looks like CLAM's list of "
            "splits: write train, val or test into a column 'split' of the manifest"
        )
    if not columns.known and any(_looks_like_data(h) for h in table.header):
        return (
            f"names no column: {_listed(table.header)} looks like a row, so the header line is missing; put one on "
            "top, 'slide_id,label' for instance"
        )
    if "patient_id" in columns.known:
        return (
            f"no column 'slide_path' or 'slide_id', only {columns.name('patient_id')!r}: a table of patients; "
            "join it with a table that has one row a slide"
        )
    near = [(h, n) for h in table.header for n in ("slide_path", "slide_id")
            if difflib.SequenceMatcher(None, _key(h), n).ratio() > 0.7]  # fmt: skip
    hint = f"; did you mean {near[0][1]!r} by {near[0][0]!r}?" if near else "; name the column of the slides' files so"
    return f"no column 'slide_path' or 'slide_id', found: {_listed(table.header)}{hint}"


def _looks_like_data(name: str) -> bool:
    return bool(re.fullmatch(r"[\d.]+", name) or slide_suffix(name))


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(shown(n)[1:-1] for n in names[:8])
    return text + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _near_misses(columns: Columns, label_columns: Sequence[str]) -> Iterator[Note]:
    free = [n for n in _ALIASES if n not in columns.known]
    free += [n for n in label_columns if n not in columns.labels]
    for place in columns.carried:
        near = difflib.get_close_matches(_key(place.name), free, n=1, cutoff=0.8)
        if near:
            text = f"column {place.name!r} is only carried along; did you mean {near[0]!r}?"
            yield Note("E_COLUMN", text)
