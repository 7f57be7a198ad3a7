"""The first sheet of an Excel workbook as text, cell by cell as Excel shows it; nothing is computed or fetched.

A workbook keeps numbers, not what was typed: an id of twenty digits has lost its last five, and a formula that no
program has computed yet has no value. Both are problems with their place, because a guess would name another slide.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any, NamedTuple

from wsi_ips.errors import ManifestError
from wsi_ips.untrusted import refuse_dtd

__all__ = ["BadCell", "Sheet", "is_zip", "read_workbook"]

_MAX_UNPACKED = 1 << 30
_MAX_EXACT = 10**15  # Excel keeps 15 digits
_FORMULA = re.compile(rb"<f[ >/]")


class BadCell(NamedTuple):
    """A cell whose text is not known."""

    line: int  # Excel's own number
    column: int  # from 0
    text: str  # what is wrong and the cure


class Sheet(NamedTuple):
    """A sheet as text."""

    rows: list[tuple[str, ...]]  # the first is Excel's line 1
    bad: list[BadCell]


def is_zip(data: bytes) -> bool:
    """Tell a zip archive, which a workbook is, by its first bytes."""
    return data[:4] == b"PK\x03\x04"


def read_workbook(name: str, data: bytes) -> Sheet:
    """Read the first sheet of an .xlsx file.

    Args:
        name: of the file, for messages.
        data: its bytes.

    Raises:
        ManifestError: a damaged or too large archive, no workbook, or XML that defines entities.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except Exception as error:  # a damaged archive raises BadZipFile, NotImplementedError, struct.error and others
        raise ManifestError([f"{name}: is a broken zip archive or workbook ({error}); save it again"]) from error
    if sum(m.file_size for m in members) > _MAX_UNPACKED:
        raise ManifestError([f"{name}: unpacks to more than 1 GiB, too large for a manifest"])
    if "xl/workbook.xml" not in (m.filename for m in members):
        inside = ", ".join(m.filename for m in members[:3])
        raise ManifestError([f"{name}: is a zip archive ({inside}), not a table; give the file inside, unpacked"])
    import openpyxl  # half a second that CSV users need not wait for

    try:
        has_formulas = _look_into(archive)
        rows = list(openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0].iter_rows())
        bad = list(_lost_digits(rows))
        if has_formulas:
            again = openpyxl.load_workbook(io.BytesIO(data), read_only=True).worksheets[0].iter_rows()
            bad += _without_value(rows, again)
        return Sheet([tuple(_text(c) for c in cells) for cells in rows], bad)
    except Exception as error:  # a damaged workbook makes openpyxl raise nearly anything, AttributeError to zlib.error
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ManifestError([f"{name}: cannot be read as an Excel workbook ({why}); save it as CSV UTF-8"]) from error


def _look_into(archive: zipfile.ZipFile) -> bool:
    """Refuse entities in any part; tell whether a sheet holds formulas."""
    found = False
    for member in archive.namelist():
        if member.endswith((".xml", ".rels")):
            content = archive.read(member)
            refuse_dtd(content)
            found |= member.startswith("xl/worksheets/") and _FORMULA.search(content) is not None
    return found


def _lost_digits(rows: list[Any]) -> Iterator[BadCell]:
    for line, cells in enumerate(rows, start=1):
        for column, cell in enumerate(cells):
            if isinstance(cell.value, int | float) and abs(cell.value) >= _MAX_EXACT:
                cure = "format the column as text and type it again"
                yield BadCell(line, column, f"{cell.value} is a number of which Excel keeps 15 digits; {cure}")


def _without_value(rows: list[Any], formulas: Iterator[Any]) -> Iterator[BadCell]:
    for line, (cells, others) in enumerate(zip(rows, formulas, strict=False), start=1):
        for column, (cell, other) in enumerate(zip(cells, others, strict=False)):
            if cell.value is None and other.value is not None:
                cure = "open the workbook in Excel and save it, or write the value"
                yield BadCell(line, column, f"holds a formula that was never computed; {cure}")


def _text(cell: Any) -> str:
    """Write a cell's value as Excel shows it: 7 for 7.0, 007 where zeros are shown, TRUE, 2024-05-01."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float) and float(value).is_integer() and abs(value) < _MAX_EXACT:
        shown = cell.number_format or ""
        return str(int(value)).zfill(len(shown)) if set(shown) == {"0"} else str(int(value))
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
