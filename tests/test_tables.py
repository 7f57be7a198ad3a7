"""Tables: every cell is text, every row has its line, and what cannot be read is refused in one line."""

from __future__ import annotations

import codecs
import csv
import io
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi_ips
from wsi_ips.errors import ManifestError
from wsi_ips.manifest import Manifest, cell_text, load_manifest
from wsi_ips.tables import read_table, table_bytes


def _write(folder: Path, text: str | bytes, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _load(folder: Path, text: str | bytes, **options: Any) -> Manifest:
    return load_manifest(_write(folder, text), **({"check_files": False} | options))


def _problems(folder: Path, text: str | bytes, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as info:
        _load(folder, text, **options)
    return info.value.problems


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_fault_045_and_050_delimiters_line_ends_and_marks_do_not_matter(tmp_path: Path, delimiter: str, line_end: str) -> None:
    """Comma, semicolon, tab, BOM, CR LF, blank lines and spaces around names give the same records."""
    lines = ["", " slide_path , label", "a.svs,x", "", ",", "b.svs,y"]
    text = codecs.BOM_UTF8 + line_end.join(lines).replace(",", delimiter).encode()
    manifest = _load(tmp_path, text)
    assert [(r.slide_id, r.label, r.row) for r in manifest] == [("a", "x", 3), ("b", "y", 6)]


@pytest.mark.parametrize("slide_id", ["NA", "null", "None", "000123", "123", "1E5", "True", "1234567890" * 3, "nan"])
def test_fault_040_and_041_ids_stay_text(tmp_path: Path, slide_id: str) -> None:
    """No id becomes a number, a truth value or nothing."""
    manifest = _load(tmp_path, f"slide_path,slide_id,patient_id,label\nx.svs,{slide_id},{slide_id},{slide_id}\n")
    (r,) = manifest.records
    assert (r.slide_id, r.patient_id, r.label) == (slide_id, slide_id, slide_id)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty (0 bytes)", "name the columns"]),
        (b"\n \n\n", ["blank", "name the columns"]),
        (b"slide_path,label\n", ["header and no rows"]),
        ("slide_path\na.svs\n".encode("utf-16"), ["UTF-16", "CSV UTF-8"]),
        ("slide_path\na.svs\n".encode("utf-16-le"), ["UTF-16", "CSV UTF-8"]),
        ("slide_path\na.svs\nM\xfcller.svs\n".encode("latin-1"), ["line 3", "0xFC", "Latin-1", "CSV UTF-8"]),
        (b"slide_path,note\na.svs,x\nb.svs,y\x00z\n", ["line 3", "NUL"]),
        (b'slide_path,note\na.svs,x\nb.svs,"never closed\nc.svs,y\n', ["line 3", "quote that is not closed"]),
        (b'slide_path,note\na.svs,"x"y\n', ["line 2", "quote"]),
        (b"II*\x00\x08\x00\x00\x00", ["TIFF", "not a manifest"]),
        (b"\x1f\x8b\x08\x00", ["gzip"]),
        (b"PK\x03\x04rubbish", ["broken zip"]),
    ],
)
def test_fault_044_and_051_what_is_no_table_is_refused_in_one_line(tmp_path: Path, data: bytes, words: list[str]) -> None:
    """A file that cannot be a manifest is refused with its name, the place and the cure, never a traceback."""
    (problem,) = _problems(tmp_path, data)
    assert problem.startswith("m.csv: ")
    assert all(w in problem for w in words), problem


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    """A folder is answered with the command that lists it, an absent file with its path."""
    with pytest.raises(ManifestError, match=r"is a folder; `wsi-ips manifest "):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match="no such file"):
        load_manifest(tmp_path / "absent.csv")


def test_fault_042_and_043_rows_of_a_wrong_length_are_named(tmp_path: Path) -> None:
    """Short, long and comma-ended rows are problems with their lines; nothing shifts."""
    text = "slide_path,label,note\na.svs,x\nb.svs,x,fine\nc.svs,x,one,two\nd.svs,x,y,\ne.svs,x,y,\n"
    short, long, comma = _problems(tmp_path, text)
    assert short == (
        "m.csv: line 2: 2 cells where the header (line 1) names 3 columns; "
        "the row is too short; empty cells need their delimiters too"
    )
    assert "line 4: 4 cells" in long
    assert "quotes" in long
    assert "line 5: 4 cells" in comma
    assert "(lines 5 to 6 alike)" in comma
    assert "delimiter too many" in comma


def test_lines_are_counted_as_in_an_editor(tmp_path: Path) -> None:
    """A cell of several lines does not throw the count off."""
    text = 'slide_path,note,mpp\na.svs,"two\nlines",0.5\nb.svs,,zero\n'
    assert _problems(tmp_path, text)[0].startswith("m.csv: line 4, column 'mpp': 'zero' is not a number")


def test_a_column_without_a_name_is_ignored(tmp_path: Path) -> None:
    """The index that pandas writes does no harm and is noted; an empty column at the end is silent."""
    manifest = _load(tmp_path, ",slide_id,label,\n0,a.svs,x,\n1,b.svs,y,\n")
    assert [r.slide_id for r in manifest] == ["a.svs", "b.svs"]
    assert [n.message for n in manifest.notes] == ["column 1 has no name and is ignored"]


def test_a_workbook_reads_like_its_csv(tmp_path: Path) -> None:
    """Excel's numbers come without .0, rows carry Excel's own line numbers, sheets beyond the first are not read."""
    book = openpyxl.Workbook()
    header = ["slide_path", "label", "mpp", "id2", None]
    for row in (header, ["a.svs", 7, 0.25, True, None], [], ["b.svs", 2.0, 1, None]):
        book.active.append(row)
    book.create_sheet("other").append(["x"])
    book.save(tmp_path / "m.xlsx")
    a, b = load_manifest(tmp_path / "m.xlsx", check_files=False)
    assert (a.label, a.mpp, a.carried, a.row) == ("7", 0.25, {"id2": "TRUE"}, 2)
    assert (b.label, b.mpp, b.carried, b.row) == ("2", 1.0, {"id2": ""}, 4)


def test_ids_in_a_workbook_are_what_excel_shows(tmp_path: Path) -> None:
    """A number shown with zeros in front keeps them; text stays text."""
    book = openpyxl.Workbook()
    for row in (["slide_path", "slide_id"], ["a.svs", 123], ["b.svs", "00123"], ["c.svs", 1e5]):
        book.active.append(row)
    book.active["B2"].number_format = "000000"
    book.save(tmp_path / "m.xlsx")
    assert [r.slide_id for r in load_manifest(tmp_path / "m.xlsx", check_files=False)] == ["000123", "00123", "100000"]


def test_fault_041_what_a_workbook_has_lost_is_told(tmp_path: Path) -> None:
    """Digits beyond Excel's fifteen and formulas that nobody computed are problems with line and column."""
    book = openpyxl.Workbook()
    for row in (["slide_path", "slide_id", "label"], ["a.svs", 12345678901234567890123, "x"], ["b.svs", "b", "=C2"]):
        book.active.append(row)
    book.save(tmp_path / "m.xlsx")
    with pytest.raises(ManifestError) as info:
        load_manifest(tmp_path / "m.xlsx", check_files=False)
    digits, formula = [p for p in info.value.problems if "cannot name" not in p]
    assert "line 2, column 'slide_id': 1.234567890123457e+22 is a number of which Excel keeps 15 digits" in digits
    assert "line 3, column 'label': holds a formula that was never computed" in formula


def test_fault_056_a_workbook_that_defines_entities_is_refused(tmp_path: Path) -> None:
    """Its sheets are XML, too."""
    book = openpyxl.Workbook()
    for row in (["slide_path"], ["a.svs"]):
        book.active.append(row)
    book.save(tmp_path / "good.xlsx")
    dtd = '<!DOCTYPE x [<!ENTITY a "a.svs">]>'
    for encoding in ("utf-8", "utf-16"):
        with zipfile.ZipFile(tmp_path / "good.xlsx") as old, zipfile.ZipFile(tmp_path / "m.xlsx", "w") as new:
            for name in old.namelist():
                text = old.read(name).decode()
                if name.endswith("sheet1.xml"):
                    text = dtd + re.sub(r"^<\?xml[^>]*\?>\s*", "", text)
                    new.writestr(name, text.encode(encoding))
                else:
                    new.writestr(name, text)
        with pytest.raises(ManifestError, match="document type definition"):
            load_manifest(tmp_path / "m.xlsx", check_files=False)


def test_a_line_that_names_the_separator_is_for_excel(tmp_path: Path) -> None:
    """Excel writes `sep=;` on top; the header is the line below, and lines are still counted from the first."""
    for delimiter in ",;\t":
        text = f"sep={delimiter}\r\nslide_path,label\r\na.svs,x\r\n".replace(",", delimiter)
        (row,) = _load(tmp_path, text)
        assert (row.slide_id, row.label, row.row) == ("a", "x", 3)


def test_a_workbook_row_beyond_the_header_is_a_problem(tmp_path: Path) -> None:
    """A stray cell at the right and an Excel error are told, not dropped."""
    book = openpyxl.Workbook()
    for row in (["slide_path", "label"], ["a.svs", "x", "stray"], ["b.svs", "#N/A"]):
        book.active.append(row)
    book.save(tmp_path / "m.xlsx")
    with pytest.raises(ManifestError) as info:
        load_manifest(tmp_path / "m.xlsx", check_files=False)
    stray, error = info.value.problems
    assert "line 2: 3 cells" in stray
    assert "line 3, column 'label': holds the Excel error #N/A" in error


def _without_dates(workbook: Path) -> bytes:
    """Pack a workbook anew, the same bytes every time."""
    out = io.BytesIO()
    with zipfile.ZipFile(workbook) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            text = re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+Z", b"2024-01-01T00:00:00Z", old.read(name))
            new.writestr(zipfile.ZipInfo(name), text)
    return out.getvalue()


def test_a_damaged_workbook_is_refused_in_one_line(tmp_path: Path) -> None:
    """Wherever a workbook is cut or overwritten, it is read or refused in one line, never a traceback."""
    book = openpyxl.Workbook()
    for row in (["slide_path", "label"], ["a.svs", "x"]):
        book.active.append(row)
    book.save(tmp_path / "m.xlsx")
    data = _without_dates(tmp_path / "m.xlsx")
    rng = random.Random(3)
    for _ in range(60):
        broken = bytearray(data[: rng.randrange(5, len(data) + 1)] if rng.random() < 0.3 else data)
        for _ in range(4):
            broken[rng.randrange(4, len(broken))] = rng.randrange(256)
        problems: tuple[str, ...] = ()
        try:
            _load(tmp_path, bytes(broken))
        except ManifestError as error:
            problems = error.problems
        assert all(p.startswith("m.csv: ") and "\n" not in p for p in problems)


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(_CELL, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_any_text_survives_the_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str
) -> None:
    """What a CSV writer writes, the reader gives back cell by cell."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["slide_path", "b", "c"])
    writer.writerows([["x", *row[1:]] for row in rows])
    table = read_table(_write(tmp_path_factory.mktemp("t"), out.getvalue()))
    assert table.problems == ()
    assert [list(r.cells) for r in table.rows] == [["x", *row[1:]] for row in rows]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("=1+1", "'=1+1"), ("@sum", "'@sum"), ("-x", "'-x"), ("+1+2", "'+1+2"), ("\tx", "'\tx"),
     ("-1.5e-3", "-1.5e-3"), ("+3", "+3"), (-2.5, "-2.5"),
     ("plain = text", "plain = text"), ("", ""), (None, ""), ("a\x00b", "ab"), ("-", "'-")],
)  # fmt: skip
def test_fault_049_cells_are_never_formulas(value: object, expected: str) -> None:
    """Text that a spreadsheet would run gets an apostrophe; numbers and other text stay as they are."""
    assert cell_text(value) == expected


def test_fault_049_no_table_of_the_package_is_written_elsewhere() -> None:
    """One writer makes every CSV, so no cell and no column name of any table is a formula."""
    package = Path(wsi_ips.__file__).parent
    writers = [p.name for p in package.rglob("*.py") if re.search(r"csv\.(writer|DictWriter)|to_csv", p.read_text("utf-8"))]
    assert writers == ["tables.py"]
    rows = [{"=id": "@x", "n": -1.5, "other": "+1+1"}, {"n": "-0.5", "=id": None}]
    assert table_bytes(["=id", "n", "-gone"], rows).decode().splitlines() == ["'=id,n,'-gone", "'@x,-1.5,", ",-0.5,"]


def test_a_slide_given_as_manifest_is_recognised(shared_data: Path, tmp_path: Path) -> None:
    """`classify slide.svs` in the manifest's place is told apart."""
    shutil.copy(shared_data / "slides" / "aperio" / "CMU-1-Small-Region.svs", tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="TIFF image"):
        load_manifest(tmp_path / "m.csv")
