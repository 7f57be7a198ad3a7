"""The page of a training: the sentence first, everything escaped, nothing loaded, slides linked."""

from __future__ import annotations

import re

from wsi_ips.report.training_page import Grid, PageRow, Picture, TaskSection, TrainingPage, training_html

EVIL = "<img src=x onerror=alert(1)>\"'&"
SENTENCE = "AUROC 0.91 (95 % interval 0.86 to 0.95) on 120 test slides of 96 patients."


def _page(text: str = "x", **more: object) -> TrainingPage:
    grid = Grid((text, "n"), ((text, "12"),), text)
    section = TaskSection(
        name=text, sentence=text, remarks=(text,), pictures=(Picture(text, b"<svg/>", text),), tables=(("Metrics", grid),),
        worst=(PageRow("a b#1", (text,), "../slides/a b#1/a b#1.report.html", "../slides/a b#1/a b#1.overlay.png"),),
        worst_head=(text,),
    )  # fmt: skip
    fields = {"title": text, "tasks": (section, section), "figures": ((text, text),), "made_from": ((text, text),),
              "warnings": (text,), "splits": grid, "pictures": section.pictures, "left_out": grid, "comparison": grid,
              "settings": text, "versions": ((text, text),), "back": "../index.html"}  # fmt: skip
    return TrainingPage(**(fields | more))  # type: ignore[arg-type]


def test_fault_124_everything_is_escaped() -> None:
    """Text of a manifest or a model stays text wherever it stands: no element, attribute or handler comes of it."""
    made = training_html(_page(EVIL)).decode()
    assert EVIL not in made
    assert "<img src=x" not in made
    assert made.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;") >= 20
    assert "<script" not in made


def test_the_page_loads_nothing() -> None:
    """Figures travel inside the page; no address with a scheme stands in it, and its policy forbids loading."""
    made = training_html(_page()).decode()
    assert "data:image/svg+xml;base64,PHN2Zy8+" in made
    assert not re.search(r"https?:|url\(|@import", made)
    assert "default-src 'none'" in made


def test_slides_are_linked_by_quoted_paths() -> None:
    """A worst case leads to its page and shows its heatmap; steps up stay, the rest is quoted."""
    made = training_html(_page()).decode()
    assert 'href="../slides/a%20b%231/a%20b%231.report.html"' in made
    assert 'src="../slides/a%20b%231/a%20b%231.overlay.png"' in made
    assert 'href="../index.html"' in made


def test_the_sentence_stands_before_everything_else() -> None:
    """Summary, warnings, what was trained, figures, tables: in the order of a reader's questions."""
    section = TaskSection("tumor", SENTENCE, tables=(("Metrics", Grid(("metric", "value"), (("AUROC", "0.91"),))),))
    content = TrainingPage(
        "Training", (section,), made_from=(("cohort", "c.csv"),), warnings=("few slides",), settings="lr: 1"
    )
    made = training_html(content).decode()
    order = [made.index(w) for w in (SENTENCE, "Research use only", "few slides", "c.csv", "<h3>Metrics", "lr: 1")]
    assert order == sorted(order)
    assert made.count(SENTENCE) == 1


def test_empty_parts_leave_no_heading() -> None:
    """What is not known is left out, heading and all."""
    made = training_html(TrainingPage("Training", ())).decode()
    assert "<h2>" not in made
    assert "<table" not in made


def test_columns_of_numbers_are_set_to_the_right() -> None:
    """Numbers, intervals and gaps make a column of numbers; one word in it and it is text."""
    rows = (("a", "1,234", "0.9 (0.8 to 1.0)", "0.1 to 0.2", "12"), ("b", "-", "-", "", "few"))
    made = training_html(TrainingPage("t", (), splits=Grid(("", "n", "AUROC", "range", "why"), rows))).decode()
    assert [f'class="number">{w}' in made for w in ("1,234", "0.9 (0.8", "0.1 to", "12")] == [True, True, True, False]


def test_the_page_is_the_same_every_time() -> None:
    """Two builds are equal byte for byte."""
    assert training_html(_page()) == training_html(_page())
