"""Text tables in, safe cells out: CSV, TSV and the first sheet of an Excel workbook, every cell as text.

A table reader that guesses types turns the id 000123 into 123 and NA into nothing, and one that is lenient about row
lengths shifts paths into labels. So cells stay text, and a row of a wrong length is a problem that names its line.
Lines are counted as a person counts them in an editor or in Excel: the first one is 1.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import NamedTuple

from wsi_ips.errors import ManifestError, Note

__all__ = ["Problem", "Table", "TableRow", "cell_text", "plain_text", "read_table", "shown"]

_MAX_BYTES = 256 * 2**20  # a list of a million slides is below; a slide given by mistake is usually above
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DELIMITERS = (",", ";", "\t")
_NOT_TABLES = {
    b"II*\x00": "a TIFF image (a slide?)",
    b"MM\x00*": "a TIFF image (a slide?)",
    b"II+\x00": "a BigTIFF image (a slide?)",
    b"MM\x00+": "a BigTIFF image (a slide?)",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls)",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "gzip-compressed",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF document",
}


class Problem(NamedTuple):
    """Something wrong with a table, and where."""

    line: int  # 0: the file as a whole
    column: str  # "": the line as a whole
    text: str  # what is wrong and the cure


class TableRow(NamedTuple):
    """One row: as many cells as the table has columns."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table as text, with what is wrong in it."""

    header: tuple[str, ...]  # trimmed; "" where a column has no name
    rows: tuple[TableRow, ...]  # rows of a wrong length are left out and stand in `problems`
    header_line: int
    sha256: str  # of the file's bytes
    problems: tuple[Problem, ...] = ()
    notes: tuple[Note, ...] = ()


def shown(value: str) -> str:
    """Quote a cell for a message: control characters escaped, long text cut.

    >>> shown("a\\nb")
    "'a\\\\nb'"
    """
    return repr(value if len(value) <= 80 else value[:77] + "...")


def cell_text(value: object) -> str:
    """Make a cell that no spreadsheet takes for a formula: text that starts like one gets a leading apostrophe.

    Plain numbers stay as they are; None is an empty cell.

    >>> [cell_text(v) for v in ("=1+1", "-0.5", -0.5, "@x", "slide_1", None)]
    ["'=1+1", '-0.5', '-0.5', "'@x", 'slide_1', '']
    """
    text = "" if value is None else str(value).replace("\x00", "")
    if text[:1] in tuple("=+-@\t\r\n＝＋－＠") and text and not _NUMBER.fullmatch(text):
        return "'" + text
    return text


def plain_text(cell: str) -> str:
    """Undo `cell_text`.

    >>> [plain_text(c) for c in ("'=1+1", "-0.5", "'quoted'", "+")]
    ['=1+1', '-0.5', "'quoted'", '+']
    """
    bare = cell[1:]
    return bare if cell[:1] == "'" and cell_text(bare) == cell else cell


def read_table(path: Path, *, may_be_empty: bool = False) -> Table:
    """Read a CSV, TSV or .xlsx file whole; which it is follows from its content.

    Comma, semicolon or tab is found from the header. A byte order mark, CR LF, blank lines and spaces around column
    names are accepted.

    Raises:
        ManifestError: no such file, not a table, not UTF-8, a NUL, an unclosed quote, no header, or no rows unless
            that may be.
    """
    data = _file_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    least = 1 if may_be_empty else 2
    if data[:4] == b"PK\x03\x04":
        return _with_header(path, _excel_rows(path, data), digest, least, is_ragged_ok=True)
    text = _decoded(path, data)
    return _with_header(path, _csv_rows(path, text, _delimiter(text)), digest, least, is_ragged_ok=False)


def _file_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ManifestError([f"{path}: is a folder; `wsi-ips manifest {path}` writes a manifest of its slides"])
    if not path.is_file():
        raise ManifestError([f"{path}: no such file; give the path of a CSV, TSV or .xlsx table"])
    with path.open("rb") as f:
        head = f.read(4)
    for magic, what in _NOT_TABLES.items():
        if head.startswith(magic):
            raise ManifestError([f"{path.name}: is {what}, not a manifest; give a CSV, TSV or .xlsx table"])
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ManifestError([f"{path.name}: {size / 2**20:.0f} MiB is too large for a manifest (limit 256 MiB)"])
    data = path.read_bytes()
    if not data:
        raise ManifestError([f"{path.name}: is empty (0 bytes); the first line must name the columns"])
    return data


def _decoded(path: Path, data: bytes) -> str:
    cure = "save it as 'CSV UTF-8'"
    looks_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:20:2].count(0) >= 5 or data[0:20:2].count(0) >= 5
    if looks_utf16:
        raise ManifestError([f"{path.name}: is UTF-16 text; {cure}"])
    nul = data.find(b"\x00")
    if nul >= 0:
        place = f"line {_line_of(data, nul)}: a NUL byte (number {nul})"
        raise ManifestError([f"{path.name}: {place}; not a text file? {cure}"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02X} (number {error.start}) is not UTF-8"
        raise ManifestError(
            [f"{path.name}: line {_line_of(data, error.start)}: {place}, perhaps Latin-1 or Windows-1252; {cure}"]
        ) from error


def _line_of(data: bytes, position: int) -> int:
    before = data[:position]
    return 1 + before.count(b"\n") + before.replace(b"\r\n", b"").count(b"\r")


def _delimiter(text: str) -> str:
    """Find the delimiter that cuts the first line that is not blank into the most cells; comma when none does."""
    line = next((s for s in io.StringIO(text, newline=None) if s.strip()), "")

    def n_cells(delimiter: str) -> int:
        return len(next(csv.reader([line], delimiter=delimiter), []))

    return max(_DELIMITERS, key=n_cells)


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[TableRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote that is not closed" if "end of data" in str(error) or "limit" in str(error) else str(error)
            message = f'{path.name}: line {line}: {what}; a cell that holds a quote needs "" for it and quotes around'
            raise ManifestError([message]) from error
        yield TableRow(line, tuple(cells))


def _excel_rows(path: Path, data: bytes) -> Iterator[TableRow]:
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:  # a damaged archive raises BadZipFile, NotImplementedError, struct.error and others
        raise ManifestError([f"{path.name}: is a broken zip archive or workbook ({error}); save it again"]) from error
    if sum(m.file_size for m in members) > 4 * _MAX_BYTES:
        raise ManifestError([f"{path.name}: unpacks to more than 1 GiB, too large for a manifest"])
    if "xl/workbook.xml" not in (m.filename for m in members):
        inside = ", ".join(m.filename for m in members[:3])
        raise ManifestError([f"{path.name}: is a zip archive ({inside}), not a table; give the file inside, unpacked"])
    import openpyxl  # half a second that CSV users need not wait for

    try:
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        rows = [tuple(_excel_text(c) for c in cells) for cells in sheet.iter_rows(values_only=True)]
    except Exception as error:  # a damaged workbook makes openpyxl raise nearly anything, AttributeError to zlib.error
        why = (str(error) or type(error).__name__).splitlines()[0]
        message = f"{path.name}: cannot be read as an Excel workbook ({why}); save it as CSV UTF-8"
        raise ManifestError([message]) from error
    return (TableRow(line, cells) for line, cells in enumerate(rows, start=1))


def _excel_text(value: object) -> str:
    """Write a cell's value as Excel shows it: 7 for 7.0, TRUE, 2024-05-01."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # Excel keeps 15 digits
        return str(int(value))
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    return str(value)


def _with_header(path: Path, rows: Iterator[TableRow], digest: str, least: int, *, is_ragged_ok: bool) -> Table:
    """Take the first row that is not blank as header and check the others against it; `least` rows, the header's too."""
    full = [row for row in rows if any(c.strip() for c in row.cells)]
    if len(full) < least:
        blank, bare = "is blank; the first line must name the columns", "holds a header and no rows; add a row a slide"
        raise ManifestError([f"{path.name}: {bare if full else blank}"])
    header, body = tuple(c.strip() for c in full[0].cells), full[1:]
    if is_ragged_ok:  # a sheet is a rectangle: what is missing at the right is empty
        header = header[: max(i + 1 for i, name in enumerate(header) if name)]
        body = [TableRow(r.line, _fitted(r.cells, len(header))) for r in body]
    problems = list(_length_problems(body, header, full[0].line))
    problems += [Problem(full[0].line, name, f"there are {n} columns of this name; rename or remove all but one")
                 for name, n in Counter(header).items() if n > 1 and name]  # fmt: skip
    good = tuple(r for r in body if len(r.cells) == len(header))
    return Table(header, good, full[0].line, digest, tuple(problems), tuple(_unnamed_notes(header, good)))


def _fitted(cells: Sequence[str], n: int) -> tuple[str, ...]:
    """Pad to n cells; cells beyond are kept when one holds something, so that the length check sees them."""
    padded = tuple(cells) + ("",) * (n - len(cells))
    return padded if any(c.strip() for c in padded[n:]) else padded[:n]


def _length_problems(body: list[TableRow], header: tuple[str, ...], header_line: int) -> Iterator[Problem]:
    n = len(header)

    def kind(row: TableRow) -> tuple[int, bool]:
        return len(row.cells), any(c.strip() for c in row.cells[n:])

    for (n_cells, has_text_beyond), group in itertools.groupby(body, key=kind):
        run = list(group)
        if n_cells == n:
            continue
        where = f" (lines {run[0].line} to {run[-1].line} alike)" if len(run) > 1 else ""
        if n_cells > n and not has_text_beyond:
            cure = "the line ends with a delimiter too many; remove it, or end the header with one too"
        elif n_cells > n:
            cure = "the row is too long; put quotes around a cell that holds the delimiter"
        else:
            cure = "the row is too short; empty cells need their delimiters too"
        what = f"{n_cells} cells where the header (line {header_line}) names {n} columns{where}"
        yield Problem(run[0].line, "", f"{what}; {cure}")


def _unnamed_notes(header: tuple[str, ...], rows: tuple[TableRow, ...]) -> Iterator[Note]:
    for i, name in enumerate(header):
        if not name and any(row.cells[i].strip() for row in rows):
            yield Note("E_COLUMN", f"column {i + 1} has no name and is ignored")
