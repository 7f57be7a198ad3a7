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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wsi_ips.errors import ManifestError, Note
from wsi_ips.workbooks import BadCell, is_zip, read_workbook

__all__ = ["Problem", "Table", "TableRow", "cell_text", "csv_bytes", "plain_text", "read_table", "shown", "table_bytes"]

_MAX_BYTES = 256 * 2**20  # a list of a million slides is below; a slide given by mistake is usually above
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?', re.IGNORECASE)
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


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Write rows, the header being the first, as CSV (UTF-8, comma, LF) in which no cell is a formula.

    Every table of this package goes through here.

    >>> csv_bytes([["slide_id", "=note"], ["a,b", "+1"], ["c", "@x"]]).decode().split("\\n")
    ["slide_id,'=note", '"a,b",+1', "c,'@x", '']
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([cell_text(cell) for cell in row] for row in rows)
    return out.getvalue().encode()


def table_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Write mappings as `csv_bytes` does; a missing cell is empty, one of another column is left out."""
    return csv_bytes([columns, *([row.get(name) for name in columns] for row in rows)])


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
    if is_zip(data):
        sheet = read_workbook(path.name, data)
        rows = [TableRow(line, cells) for line, cells in enumerate(sheet.rows, start=1)]
        return _with_header(path, rows, digest, least, sheet.bad)
    text = _decoded(path, data)
    return _with_header(path, _csv_rows(path, text, _delimiter(text)), digest, least, None)


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
    """Find the delimiter that cuts the first line that is not blank into the most cells; comma when none does.

    A first line `sep=;`, which Excel writes and reads, says it.
    """
    line = next((s for s in io.StringIO(text, newline=None) if s.strip()), "")
    stated = _SEPARATOR_LINE.fullmatch(line.strip(" \r\n"))
    if stated:
        return stated[1]

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


def _with_header(
    path: Path, rows: Iterable[TableRow], digest: str, least: int, bad: Sequence[BadCell] | None
) -> Table:
    """Take the first row that is not blank as header and check the others against it.

    Args:
        path: of the file.
        rows: all of it.
        digest: of its bytes.
        least: how many rows there must be, the header among them.
        bad: cells of a sheet without a text of their own; None where the table is no sheet.
    """
    full = [row for row in rows if any(c.strip() for c in row.cells)]
    if full and bad is None and _SEPARATOR_LINE.fullmatch(",".join(full[0].cells).strip()):
        del full[0]  # a line for Excel alone
    if len(full) < least:
        blank, bare = "is blank; the first line must name the columns", "holds a header and no rows; add a row a slide"
        raise ManifestError([f"{path.name}: {bare if full else blank}"])
    header, body = tuple(c.strip() for c in full[0].cells), full[1:]
    problems = []
    if bad is not None:  # a sheet is a rectangle: what is missing at the right is empty
        header = header[: max(i + 1 for i, name in enumerate(header) if name)]
        body = [TableRow(r.line, _fitted(r.cells, len(header))) for r in body]
        names = dict(enumerate(header))
        problems = [Problem(b.line, names.get(b.column, ""), b.text) for b in bad]
    problems += _length_problems(body, header, full[0].line)
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
