"""The manifest reader on spoilt and made tables: it gives a manifest or every problem, and nothing else."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest
from fuzzing import Document, fuzz, fuzz_test, try_some
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import EXTREMES, mutated

from wsi_ips.manifest import load_manifest

COLUMNS = ("slide_path", "slide_id", "patient_id", "label", "mpp", "mask_path", "split", "fold", "fold_0", "site", "scanner", "stain", "features_path",
           "exclude", "note", "slide", "id", "filename", "case_id", "qc_pass", "process", "dataset", "image_path", "train", "")  # fmt: skip
CELLS = ("a.svs", "b.tif", "s3://bucket/a.svs", "C:\\slides\\a.svs", "../a.svs", "TCGA-AA-1234-01A-01-TS1.svs", "a", "A", "0,25", "0.25", "nan", "1e999",
         "train", "tset", "0", "1", "yes", "#N/A", "=1+1", "", " ", "x" * 300, "ä", "a\u0308", "\x00", "\x07", "\ud800", "é.svs", "CON", "a/b", "a.h5",
         "~/a.svs", "*.svs", "x" * 140_000, '"', "\r\n", *(e.decode() for e in EXTREMES))  # fmt: skip
TABLES = (
    b"slide_path,slide_id,patient_id,label,mpp,split\na.svs,s1,p1,tumor,0.25,train\nb.tif,s2,p2,normal,0.5,test\n",
    b"\xef\xbb\xbfslide_id;patient_id;fold;exclude;note\r\nx;p;0;yes;\"a \"\"quoted\"\" word\"\r\ny;p;1;no;\r\n",
    b"slide\tcase_id\tprocess\na.svs\tTCGA-AA-1234\t1\nb.svs\tTCGA-AA-1235\t0\n",
    b"id,filename\n0f0e0d0c-1111-2222-3333-444455556666,a.svs\n",
    "slide_id,note\nä,ü\n".encode("utf-16"),
    "slide_id,note\nä,ü\n".encode("latin-1"),
)


def _workbook() -> bytes:
    book = openpyxl.Workbook()
    for row in (("slide_path", "slide_id", "label", "mpp", "when"), ("a.svs", 7, "tumor", 0.25, None), ("b.svs", 8.0, True, "0,5", "2024-05-01")):
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


WORKBOOK = _workbook()
PARTS = ("xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/workbook.xml", "xl/styles.xml", "[Content_Types].xml", "xl/_rels/workbook.xml.rels")


@st.composite
def _spoilt_workbooks(draw: DrawFn) -> bytes:
    """A workbook with one part of its archive spoilt, or the archive itself."""
    if draw(st.booleans()):
        return draw(mutated((WORKBOOK,)))
    chosen, out = draw(st.sampled_from(PARTS)), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WORKBOOK)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name != chosen:
                new.writestr(name, data)
            elif draw(st.integers(0, 9)):
                new.writestr(name, draw(mutated((data,), (b"<row r='99999999'>", b"A1048577", b"t='d'", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;"))))
    return out.getvalue()


@st.composite
def _made_tables(draw: DrawFn) -> bytes:
    header = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=7))
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS), min_size=max(0, len(header) - 1), max_size=len(header) + 1), max_size=5))
    text = io.StringIO()
    csv.writer(text, delimiter=draw(st.sampled_from(",;\t")), lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r")))).writerows([header, *rows])
    return text.getvalue().encode("utf-8", draw(st.sampled_from(("surrogatepass", "replace"))))


words = (*(w.encode("utf-8", "surrogatepass") for w in (*COLUMNS, *CELLS) if len(w) < 500), b'"', b"\r", b"\n", b",,,", b"\xff")
documents = st.one_of(
    st.builds(Document, mutated(TABLES, words), st.just(".csv")),
    st.builds(Document, _made_tables(), st.just(".csv")),
    st.builds(Document, _spoilt_workbooks(), st.sampled_from((".xlsx", ".csv"))),
)


@pytest.fixture
def manifests(tmp_path: Path) -> Callable[[Document], None]:
    """Reads a document in all ways that options offer."""

    def manifest(document: Document) -> None:
        path = tmp_path / f"m{document.ending}"
        path.write_bytes(document.data)
        odd = len(document.data) % 2 == 1
        found = load_manifest(path, allow_missing=True, ext=".svs" if odd else None, features=len(document.data) % 3 == 2,
                              label_columns=("label",) if odd else ("grade", "label"))  # fmt: skip
        assert len(found.records) == len({r.slide_id for r in found.records}) > 0
        for record in found.records:
            assert record.content_hash

    return manifest


def test_some_spoilt_manifests(manifests: Callable[[Document], None]) -> None:
    """A few of what is below."""
    try_some(manifests, documents)


@fuzz_test
def test_spoilt_manifests(manifests: Callable[[Document], None]) -> None:
    """A manifest whose ids are all different, or a `ManifestError`."""
    fuzz(manifests, documents)
