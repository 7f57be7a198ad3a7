"""The offline page of a run: what failed and why, then every slide with its call, sortable and searchable.

Rows are those of predictions.csv, one per row of the manifest. Paths of slides and carried columns are never shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wsi_ips.config import TaskSettings
from wsi_ips.report.markup import cards, data_uri, escape, facts_table, link, page, status_badge
from wsi_ips.report.readout import RESEARCH_USE

__all__ = ["SlideLinks", "index_html", "probability_bars", "task_cells"]

_STATUSES = ("failed", "not_run", "no_tissue", "ok_with_warnings", "ok")
_MOST_BARS = 4  # classes drawn in a cell of the table


class SlideLinks(NamedTuple):
    """Files of a slide, as paths relative to the page ("slides/a/a.overlay.png"); None where there is none."""

    overlay: str | None = None
    report: str | None = None
    thumbnail: bytes | None = None  # from `thumbnail_jpeg`, carried inside the page; else the overlay itself is shown


class TaskCells(NamedTuple):
    """What predictions.csv says about one task of one slide."""

    called: str
    probabilities: tuple[tuple[str, float], ...]  # class name, 0..1; in class order
    threshold: float | None


def index_html(
    rows: Sequence[Mapping[str, str]],
    tasks: Sequence[TaskSettings],
    *,
    title: str = "Slides of this run",
    links: Mapping[str, SlideLinks] | None = None,
    facts: Sequence[tuple[str, str]] = (),
    figures: Sequence[tuple[str, str]] = (),
    intro_html: str = "",
    extra_html: str = "",
) -> bytes:
    """Build index.html.

    Args:
        rows: of predictions.csv, in order.
        tasks: what was asked of every slide, in order.
        title: heading, text.
        links: files of each slide, by slide_id.
        facts: (name, value) of the run for the table at the end: model, settings, versions.
        figures: (name, value) shown as cards after the counts.
        intro_html: trusted HTML below the heading.
        extra_html: trusted HTML before the table of slides.
    """
    files = links or {}
    counts = Counter(row.get("status", "") for row in rows)
    tally = [("slides", f"{len(rows):,}")]
    tally += [(status.replace("_", " "), f"{counts[status]:,}") for status in _STATUSES[::-1] if counts[status]]
    body = [
        f"<h1>{escape(title)}</h1>",
        intro_html,
        f'<p class="research">{escape(RESEARCH_USE)}</p>',
        cards([*tally, *figures]),
        _problems(rows, files),
        extra_html,
        _all_slides(rows, tasks, files),
    ]
    if facts:
        body.append(f"<section><h2>This run</h2>{facts_table(facts)}</section>")
    return page(title, "\n".join(part for part in body if part), script="index.js")


def _problems(rows: Sequence[Mapping[str, str]], files: Mapping[str, SlideLinks]) -> str:
    """Slides without a label, failures first."""
    found = [row for status in _STATUSES[:3] for row in rows if row.get("status") == status]
    if not found:
        return ""
    lines = "".join(
        f'<tr><td class="id">{_slide_name(row, files)}</td><td>{status_badge(row["status"])}</td>'
        f'<td class="mono">{_reason(row)}</td><td>{escape(row.get("message", ""))}</td></tr>'
        for row in found
    )
    head = "".join(_column_head(name, None) for name in ("slide", "status", "reason", "what happened"))
    return (
        f'<section><h2>Without a label: {len(found):,}</h2><div class="tablewrap"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _all_slides(
    rows: Sequence[Mapping[str, str]], tasks: Sequence[TaskSettings], files: Mapping[str, SlideLinks]
) -> str:
    has_patients = any(row.get("patient_id") not in ("", None, row.get("slide_id")) for row in rows)
    heads = [("picture", None), ("slide", "")]
    heads += [("patient", "")] if has_patients else []
    heads += [("status", "")]
    for task in tasks:
        heads += [("call" if len(tasks) == 1 else task.name, ""), ("probability", "")]
    heads += [("tiles", "number"), ("tissue mm²", "number")]
    head = "".join(_column_head(name, kind) for name, kind in heads)
    lines = "".join(_slide_row(row, tasks, files, has_patients) for row in rows)
    return (
        '<section><h2>All slides</h2><div class="tools" id="tools" hidden><input id="search" type="search" '
        'placeholder="Search id, label, reason" aria-label="Search the slides"><span class="quiet" id="shown" '
        'role="status"></span></div><div class="tablewrap"><table id="slides"><thead><tr>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _column_head(name: str, kind: str | None) -> str:
    if kind is None:  # nothing to sort by
        return f'<th scope="col">{escape(name)}</th>'
    return f'<th scope="col" class="{kind}"><button type="button">{escape(name)}</button></th>'


def _slide_row(
    row: Mapping[str, str], tasks: Sequence[TaskSettings], files: Mapping[str, SlideLinks], has_patients: bool
) -> str:
    slide_id = row["slide_id"]
    cells = [f"<td>{_thumbnail(slide_id, files)}</td>", _cell(slide_id, _slide_name(row, files), "id")]
    if has_patients:
        cells.append(_cell(row.get("patient_id", ""), escape(row.get("patient_id", ""))))
    reason = f'<br><span class="small quiet">{_reason(row)}</span>' if row.get("reason") else ""
    cells.append(_cell(row.get("status", ""), status_badge(row.get("status", "")) + reason))
    for task in tasks:
        said = task_cells(row, task, len(tasks) == 1)
        cells.append(_cell(said.called, escape(said.called.replace(";", ", "))))
        first = _sort_probability(said, task)
        cells.append(_cell("" if first is None else f"{first:.6f}", probability_bars(said, task)))
    for key in ("n_tiles", "tissue_mm2"):
        value = row.get(key, "")
        cells.append(_cell(value, escape(_tidy(value)), "number"))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(sort: str, inner: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<td{css} data-sort="{escape(sort)}">{inner}</td>'


def _reason(row: Mapping[str, str]) -> str:
    return escape(row.get("reason", "").replace(";", " "))


def _tidy(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:,.0f}" if number.is_integer() else f"{number:,.2f}"


def _slide_name(row: Mapping[str, str], files: Mapping[str, SlideLinks]) -> str:
    report = files.get(row["slide_id"], SlideLinks()).report
    name = escape(row["slide_id"])
    return f'<a href="{escape(link(report))}">{name}</a>' if report else name


def _thumbnail(slide_id: str, files: Mapping[str, SlideLinks]) -> str:
    file = files.get(slide_id, SlideLinks())
    if not file.overlay:
        return ""
    url = escape(link(file.overlay))
    source = data_uri(file.thumbnail, "jpeg") if file.thumbnail else url
    alt = escape(f"attention over slide {slide_id}")
    return f'<a href="{url}"><img class="thumb" src="{source}" alt="{alt}" loading="lazy"></a>'


def task_cells(row: Mapping[str, str], task: TaskSettings, is_single: bool) -> TaskCells:
    """Read what a row of predictions.csv says about a task; empty where the slide has no label."""
    prefix = "" if is_single else f"{task.name}_"
    probs = []
    for name in task.classes:
        cell = row.get(f"{prefix}prob_{name}", "")
        if cell:
            probs.append((name, float(cell)))
    threshold = row.get(f"{prefix}threshold", "")
    called = row.get("pred" if is_single else task.name, "")
    return TaskCells(called, tuple(probs), float(threshold) if threshold else None)


def _sort_probability(said: TaskCells, task: TaskSettings) -> float | None:
    if not said.probabilities:
        return None
    return said.probabilities[-1][1] if task.kind == "binary" else max(p for _, p in said.probabilities)


def probability_bars(said: TaskCells, task: TaskSettings, most: int = _MOST_BARS) -> str:
    """Draw a bar a class: the positive class of a binary task with its threshold, else the most probable classes."""
    if not said.probabilities:
        return ""
    if task.kind == "binary":
        chosen = list(said.probabilities[-1:])
    else:
        kept = sorted(said.probabilities, key=lambda c: -c[1])[:most]
        chosen = [c for c in said.probabilities if c in kept]
    cut = said.threshold
    mark = "" if cut is None else f'<u style="left:calc({100 * cut:.2f}% - 1px)" title="threshold {cut:g}"></u>'
    bars = "".join(
        f'<b>{escape(name)}</b><span class="bar"><i style="width:{100 * min(max(p, 0.0), 1.0):.2f}%"></i>{mark}</span>'
        f"<span>{p:.3f}</span>"
        for name, p in chosen
    )
    return f'<div class="prob">{bars}</div>'
