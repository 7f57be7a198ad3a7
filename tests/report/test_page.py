"""Pages are safe with any text, load nothing, link correctly, and put failures first."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from wsi_ips.config import TaskSettings
from wsi_ips.errors import Note
from wsi_ips.geometry import Box0
from wsi_ips.report.markup import link, page
from wsi_ips.report.page import SlideLinks, index_html
from wsi_ips.report.slide_page import SlideView, report_html
from wsi_ips.report.tiles_strip import top_tiles
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.backends import ArraySlide
from wsi_ips.tasks import prediction_cells

Make = Callable[..., ArraySlide]
Predict = Callable[..., SlidePrediction]

BINARY = TaskSettings(classes=("normal", "tumor"))
EVIL = "<script>alert('x')</script>\"&'<img src=x onerror=alert(1)>"
ODD = ["a b#1?x=2", "100%", "javascript:alert(1)", "œuvre & Söhne", 'it\'s "quoted"', "..hidden", "a+b"]


class _Reader(HTMLParser):
    """Collects what a browser would see: tags, links, pictures, text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            if name == "src":
                self.pictures.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def _row(slide_id: str, status: str = "ok", **more: str) -> dict[str, str]:
    row = {"slide_id": slide_id, "patient_id": slide_id, "status": status, "reason": "", "message": ""}
    if status.startswith("ok"):
        row |= {"pred": "tumor", "prob_normal": "0.2", "prob_tumor": "0.8", "threshold": "0.5", "n_tiles": "1234",
                "n_selected": "64", "mpp": "0.25", "mpp_source": "vendor", "tissue_mm2": "12.345"}  # fmt: skip
    return row | more


def _links(slide_id: str) -> SlideLinks:
    folder = f"slides/{slide_id}/{slide_id}"
    return SlideLinks(f"{folder}.overlay.png", f"{folder}.report.html")


def test_fault_124_text_from_outside_never_becomes_markup(make_slide: Make, make_prediction: Predict) -> None:
    """Ids, patients, reasons, messages, classes and notes full of markup are shown as they are and run nothing."""
    task = TaskSettings(name=EVIL, kind="multiclass", classes=(EVIL, "b"))
    slide = make_slide()
    p = make_prediction(slide, tasks=(task,), slide_id=EVIL, notes=(Note(EVIL, EVIL),), reader=EVIL, m=2)
    row = _row(EVIL, patient_id=EVIL + "2", reason=EVIL, message=EVIL, mpp_source=EVIL, reader=EVIL)
    row |= prediction_cells(p.outputs, p.tasks)
    bad = _row(EVIL + "3", "failed", reason=EVIL, message=EVIL)
    fact = [(EVIL, EVIL)]
    index = index_html([row, bad], p.tasks, title=EVIL, links={EVIL: _links("x")}, facts=fact, figures=fact)
    report = report_html(row, p.tasks, view=SlideView(p, top_tiles(slide, p), overlay="x.png"), facts=fact)
    for made, n_scripts in ((index, 1), (report, 0)):
        seen = _Reader(made)
        assert seen.tags.count("script") == n_scripts
        assert seen.handlers == []
        assert not any(src == "x" for src in seen.pictures)
        assert seen.text.count(EVIL) >= 3


def test_pages_load_nothing_from_anywhere() -> None:
    """No address with a scheme or host stands in a page, and its policy forbids loading anyway."""
    row = _row("a")
    for made in (index_html([row], (BINARY,), links={"a": _links("a")}), report_html(row, (BINARY,), view=SlideView(overlay="a.png"))):
        text = made.decode()
        assert "http:" not in text
        assert "https:" not in text
        assert not re.search(r"""(src|href)=["']?//""", text)
        assert "url(" not in text
        assert "@import" not in text
        assert "default-src 'none'" in text


@pytest.mark.parametrize("slide_id", ODD)
def test_odd_ids_link_to_their_own_files(slide_id: str) -> None:
    """A link, read back as a browser reads it, is the file's relative path; it is never a scheme."""
    seen = _Reader(index_html([_row(slide_id)], (BINARY,), links={slide_id: _links(slide_id)}))
    wanted = {f"slides/{slide_id}/{slide_id}.overlay.png", f"slides/{slide_id}/{slide_id}.report.html"}
    assert all(url.startswith("./slides/") and "#" not in url and "?" not in url for url in seen.links)
    assert {unquote(url).removeprefix("./") for url in seen.links} == wanted


def test_absolute_paths_are_refused_as_links() -> None:
    """A page cannot point outside its run by an absolute path."""
    for path in ("/etc/passwd", "\\\\host\\share"):
        with pytest.raises(ValueError, match="its own run only"):
            link(path)


def test_paths_and_carried_columns_are_not_shown() -> None:
    """Where a slide lies on disk, and whatever else a manifest carries, stays out of both pages."""
    row = _row("a", slide_path="/data/Erika Mustermann/a.svs", mask_path="/data/m.png", note="born 1950")
    for made in (index_html([row], (BINARY,)), report_html(row, (BINARY,))):
        assert b"Mustermann" not in made
        assert b"/data" not in made
        assert b"1950" not in made


def test_failures_come_first_with_their_reasons() -> None:
    """Failed slides stand before no_tissue, both before the table of all slides, each with code and sentence."""
    rows = [_row("good"), _row("empty", "no_tissue", reason="E_NO_TISSUE", message="Only glass."),
            _row("torn", "failed", reason="E_TRUNCATED;E_TILE", message="The file ends early.")]  # fmt: skip
    text = _Reader(index_html(rows, (BINARY,))).text
    order = [text.index(word) for word in ("Without a label: 2", "torn", "The file ends early.", "empty", "All slides")]
    assert order == sorted(order)
    assert "E_TRUNCATED E_TILE" in text
    assert "Without a label" not in _Reader(index_html(rows[:1], (BINARY,))).text


def test_every_row_stands_in_the_table_with_keys_to_sort_by() -> None:
    """The table holds every slide once, and numbers sort as numbers."""
    rows = [_row(f"s{i}", n_tiles=str(10**i)) for i in range(4)]
    made = index_html(rows, (BINARY,)).decode()
    body = made.split('<table id="slides">')[1].split("</table>")[0]
    assert body.count("<tr>") == 5
    assert [f'data-sort="{10**i}"' in body for i in range(4)] == [True] * 4
    assert body.count("<button") == 6
    assert 'data-sort="0.800000"' in body


def test_pages_are_the_same_every_time(make_slide: Make, make_prediction: Predict) -> None:
    """Two builds of a page are equal byte for byte."""
    slide = make_slide()
    p = make_prediction(slide, hot=7, m=3)
    tiles = top_tiles(slide, p)
    row = _row("slide_1") | prediction_cells(p.outputs, p.tasks)

    def build() -> bytes:
        return report_html(row, p.tasks, view=SlideView(p, tiles)) + index_html([row], p.tasks)

    assert build() == build()


def test_a_report_says_where_its_numbers_come_from(make_slide: Make, make_prediction: Predict) -> None:
    """Model, reader, resolution with its source, tile and notes stand in the slide's page; so does the way back."""
    slide = make_slide(bounds=Box0(203, 107, 1201, 811))
    p = make_prediction(slide, hot=7, m=3)
    row = _row("slide_1", model_hash=p.model_hash, reader="openslide 4.0.1")
    seen = _Reader(report_html(row, p.tasks, view=SlideView(p, top_tiles(slide, p)), facts=[("torch", "2.15.0")]))
    for words in (p.model_hash, "openslide 4.0.1", "vendor", "61 px at 0.5 µm/px", "2.15.0", p.notes[0].message,
                  "at (203, 107)", "evidence towards tumor"):  # fmt: skip
        assert words in seen.text
    assert "../../index.html" in seen.links


def test_tiles_can_be_links_to_files(make_slide: Make, make_prediction: Predict) -> None:
    """With paths the page names the tiles' files instead of carrying their pixels."""
    slide = make_slide()
    p = make_prediction(slide, m=2)
    names = ["a b.top_tiles/01.png", "a b.top_tiles/02.png"]
    paths = dict(zip(p.selected.tolist(), names, strict=True))
    seen = _Reader(report_html(_row("a b"), p.tasks, view=SlideView(p, top_tiles(slide, p), paths=paths)))
    assert seen.pictures == ["./a%20b.top_tiles/01.png", "./a%20b.top_tiles/02.png"]


def test_several_tasks_have_a_column_each(make_slide: Make, make_prediction: Predict) -> None:
    """Columns named after their task are read back from the row."""
    tasks = (TaskSettings(name="grade", kind="ordinal", classes=("low", "mid", "high")),
             TaskSettings(name="her2", classes=("neg", "pos")))  # fmt: skip
    p = make_prediction(make_slide(), tasks=tasks, m=2)
    row = {"slide_id": "a", "status": "ok"} | prediction_cells(p.outputs, tasks)
    text = _Reader(index_html([row], tasks)).text
    for words in ("grade", "her2", "low", "mid", "high", "pos", row["grade"], f"{float(row['her2_prob_pos']):.3f}"):
        assert words in text


def test_fault_036_every_page_says_what_it_is_not_for() -> None:
    """The sentence is part of the frame, so that no page can be made without it."""
    made = page("title", "<p>body</p>").decode()
    assert "Research use only." in made
    assert "Not for diagnosis." in made
