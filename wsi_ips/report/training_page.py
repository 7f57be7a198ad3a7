"""The offline page of a training or an evaluation: what it is worth in one sentence, then everything behind it.

Words, numbers and pictures come in ready; nothing is computed here. Everything is text and escaped. Figures travel
inside the page as pictures, so that no script in them could run and none of their names could clash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsi_ips.report.markup import cards, data_uri, escape, facts_table, link, page
from wsi_ips.report.readout import RESEARCH_USE

__all__ = ["Grid", "PageRow", "Picture", "TaskSection", "TrainingPage", "training_html"]

_NUMBER = re.compile(r"([-+−]?[\d,.]+( %)?( \(.*\)| to [-+−]?[\d,.]+)?|-|)")


@dataclass(frozen=True)
class Grid:
    """A table of text; columns of numbers are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # below the table: what n is, how intervals were made


class Picture(NamedTuple):
    """A figure with its words."""

    title: str
    svg: bytes
    caption: str = ""


class PageRow(NamedTuple):
    """A slide in a table, linked to its report where there is one."""

    slide_id: str
    cells: tuple[str, ...]
    report: str | None = None  # path relative to the page; may start with ../
    overlay: str | None = None  # picture of the attention, likewise


@dataclass(frozen=True)
class TaskSection:
    """What is known about one task."""

    name: str
    sentence: str  # "AUROC 0.91 (95 % interval 0.86 to 0.95) on 120 test slides of 96 patients."
    remarks: tuple[str, ...] = ()  # what the sentence must not be read without
    pictures: tuple[Picture, ...] = ()
    tables: tuple[tuple[str, Grid], ...] = ()  # heading, table: metrics, operating points, calibration, sites, spread
    worst: tuple[PageRow, ...] = ()
    worst_head: tuple[str, ...] = ()  # names of the cells


@dataclass(frozen=True)
class TrainingPage:
    """Everything on the page."""

    title: str
    tasks: tuple[TaskSection, ...]
    figures: tuple[tuple[str, str], ...] = ()  # (name, value), shown as cards
    made_from: tuple[tuple[str, str], ...] = ()  # what was trained, from what
    made_heading: str = "What was trained, and from what"
    warnings: tuple[str, ...] = ()
    splits: Grid | None = None
    pictures: tuple[Picture, ...] = ()  # how it learned
    epochs: Grid | None = None  # the same in numbers
    comparison: Grid | None = None  # against another run
    left_out: Grid | None = None  # slides that could not be judged, and why
    settings: str = ""  # YAML, in full
    versions: tuple[tuple[str, str], ...] = ()
    back: str | None = None  # page of the run, relative to this one


def training_html(content: TrainingPage) -> bytes:
    """Build index.html of a training or an evaluation."""
    lines = "".join(
        f"<p><b>{escape(t.name)}</b>: {escape(t.sentence)}</p>"
        if len(content.tasks) > 1
        else f"<p>{escape(t.sentence)}</p>"
        for t in content.tasks
    )
    body = [
        f'<p class="back small"><a href="{escape(_relative(content.back))}">The run</a></p>' if content.back else "",
        f"<h1>{escape(content.title)}</h1>",
        f'<div class="summary">{lines}</div>' if lines else "",
        f'<p class="research">{escape(RESEARCH_USE)}</p>',
        cards(content.figures),
        _warnings(content.warnings),
        _section(content.made_heading, facts_table(content.made_from)),
        _section("Who learned, who judged", _table(content.splits)),
        _section("How it learned", _pictures(content.pictures) + _folded("Every epoch in numbers", content.epochs)),
        *(_task(t, is_single=len(content.tasks) == 1) for t in content.tasks),
        _section("Against another run", _table(content.comparison)),
        _section("Not judged", _table(content.left_out)),
        _section("Settings and versions", _settings(content)),
    ]
    return page(content.title, "\n".join(part for part in body if part))


def _section(heading: str, inner: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{inner}</section>" if inner else ""


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(w)}</li>" for w in warnings)
    return _section("Warnings", f'<ul class="notes warned">{items}</ul>') if items else ""


def _task(task: TaskSection, *, is_single: bool) -> str:
    remarks = "".join(f'<p class="quiet">{escape(r)}</p>' for r in task.remarks)
    said = "" if is_single else f"<p>{escape(task.sentence)}</p>"  # a single one stands on top of the page
    parts = [said + remarks, _pictures(task.pictures)]
    parts += [f"<h3>{escape(heading)}</h3>{_table(grid)}" for heading, grid in task.tables if grid.rows]
    if task.worst:
        parts.append(f"<h3>Furthest from the truth</h3>{_worst(task)}")
    return _section("How good it is" if is_single else f"How good it is: {task.name}", "".join(parts))


def _pictures(pictures: Sequence[Picture]) -> str:
    items = "".join(
        f'<figure class="plot"><img src="{data_uri(p.svg, "svg+xml")}" alt="{escape(p.title)}">'
        f"<figcaption>{escape(p.caption or p.title)}</figcaption></figure>"
        for p in pictures
    )
    return f'<div class="plots">{items}</div>' if items else ""


def _table(grid: Grid | None) -> str:
    if grid is None or not grid.rows:
        return ""
    kinds = [
        ' class="number"' if i and all(_NUMBER.fullmatch(row[i]) for row in grid.rows) else ""
        for i in range(len(grid.head))
    ]
    head = "".join(f'<th scope="col"{k}>{escape(h)}</th>' for h, k in zip(grid.head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in grid.rows
    )
    note = f'<p class="small quiet">{escape(grid.note)}</p>' if grid.note else ""
    return f'<div class="tablewrap"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _folded(summary: str, grid: Grid | None) -> str:
    table = _table(grid)
    return f"<details><summary>{escape(summary)}</summary>{table}</details>" if table else ""


def _worst(task: TaskSection) -> str:
    has_pictures = any(r.overlay for r in task.worst)
    head = "".join(
        f'<th scope="col">{escape(h)}</th>'
        for h in (*(("attention",) if has_pictures else ()), "slide", *task.worst_head)
    )
    lines = []
    for row in task.worst:
        shown = ""
        if has_pictures:
            shown = f"<td>{_thumbnail(row)}</td>"
        name = escape(row.slide_id)
        name = f'<a href="{escape(_relative(row.report))}">{name}</a>' if row.report else name
        lines.append(
            f'<tr>{shown}<td class="id">{name}</td>' + "".join(f"<td>{escape(c)}</td>" for c in row.cells) + "</tr>"
        )
    return f'<div class="tablewrap"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _thumbnail(row: PageRow) -> str:
    if not row.overlay:
        return ""
    url, alt = escape(_relative(row.overlay)), escape(f"attention over slide {row.slide_id}")
    return f'<a href="{url}"><img class="thumb" src="{url}" alt="{alt}" loading="lazy"></a>'


def _settings(content: TrainingPage) -> str:
    text = f'<details><summary>All settings</summary><pre class="mono">{escape(content.settings)}</pre></details>'
    return facts_table(content.versions) + (text if content.settings else "")


def _relative(path: str) -> str:
    """Link to a file near this page: leading steps up are kept as they are, the rest is quoted."""
    steps = 0
    while path.startswith("../"):
        path, steps = path[3:], steps + 1
    return "../" * steps + link(path).removeprefix("./") if steps else link(path)
