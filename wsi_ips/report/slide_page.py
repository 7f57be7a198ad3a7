"""The offline page of one slide: the call, where the model looked, which tiles spoke for what, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.errors import Note
from wsi_ips.report.faithfulness import curves_svg, faithfulness_sentence, followed_text
from wsi_ips.report.finer import Finer
from wsi_ips.report.map_switch import Layers, switch_html
from wsi_ips.report.markup import cards, data_uri, escape, facts_table, link, page, status_badge
from wsi_ips.report.page import probability_bars, task_cells
from wsi_ips.report.provenance import file_said
from wsi_ips.report.readout import RESEARCH_USE, call_text, evidence_for_call, shown_number
from wsi_ips.report.tiles_strip import TopTile
from wsi_ips.results import SlidePrediction

__all__ = ["SlideView", "report_html"]


@dataclass(frozen=True)
class SlideView:
    """What a page shows of a slide beside its row; files are named relative to the page."""

    prediction: SlidePrediction | None = None
    tiles: Sequence[TopTile] = ()  # from `top_tiles`
    against: Sequence[Sequence[TopTile]] = ()  # from `tiles_against`, one list a task
    paths: Mapping[int, str] = field(default_factory=dict)  # PNG of a tile by its row; others are carried in the page
    overlay: str | None = None
    layers: Layers | None = None
    finer: Finer = Finer()  # noqa: RUF009 (a NamedTuple)


def report_html(
    row: Mapping[str, str],
    tasks: Sequence[TaskSettings],
    *,
    view: SlideView | None = None,
    facts: Sequence[tuple[str, str]] = (),
    index: str | None = "../../index.html",
) -> bytes:
    """Build <slide_id>.report.html.

    Args:
        row: the slide's row of predictions.csv.
        tasks: what was asked.
        view: maps and tiles; None for a slide that cannot be shown.
        facts: (name, value) about how it was made: versions of the package and its libraries.
        index: path of the run's page relative to this one.
    """
    slide_id, v = row["slide_id"], view or SlideView()
    notes = v.prediction.notes if v.prediction else ()
    back = f'<p class="back small"><a href="{escape(_up(index))}">All slides of this run</a></p>' if index else ""
    body = [
        back,
        f"<h1>{escape(slide_id)}</h1>",
        f"<p>{status_badge(row.get('status', ''))}</p>",
        f'<p class="research">{escape(RESEARCH_USE)}</p>',
        _calls(row, tasks),
        _notes(row, notes),
        _map(slide_id, v),
        _faithfulness(v),
        _finer(v.finer),
        _top(v),
        _against(v),
        _tables(row, v.prediction, facts),
    ]
    return page(f"{slide_id}: report", "\n".join(part for part in body if part), script="slide.js" if v.layers else "")


def _up(path: str) -> str:
    """Link to a page above this one; the leading steps up are kept as they are."""
    steps = 0
    while path.startswith("../"):
        path, steps = path[3:], steps + 1
    return "../" * steps + link(path).removeprefix("./") if steps else link(path)


def _calls(row: Mapping[str, str], tasks: Sequence[TaskSettings]) -> str:
    parts = []
    for task in tasks:
        said = task_cells(row, task, len(tasks) == 1)
        if not said.called and not said.probabilities:
            continue
        parts.append(cards([(task.name, said.called.replace(";", ", ") or "none")]))
        parts.append(probability_bars(said, task, most=len(task.classes)))
    return f"<section><h2>Call</h2>{''.join(parts)}</section>" if parts else ""


def _notes(row: Mapping[str, str], notes: Sequence[Note]) -> str:
    """Warnings as sentences; for a slide without a prediction, its reason."""
    items = [f'<li>{escape(n.message)} <span class="mono quiet">{escape(n.code)}</span></li>' for n in notes]
    if not items and row.get("reason"):
        items = [f'<li>{escape(row.get("message", ""))} <span class="mono quiet">{escape(row["reason"])}</span></li>']
    return f'<section><h2>To know</h2><ul class="notes">{"".join(items)}</ul></section>' if items else ""


def _map(slide_id: str, v: SlideView) -> str:
    if not v.overlay:
        return ""
    url = escape(link(v.overlay))
    if v.prediction is None or v.layers is None:
        shown = (
            f'<figure class="figure"><a href="{url}"><img src="{url}" alt="{escape(f"attention over slide {slide_id}")}">'
            "</a></figure>"
        )
    else:
        shown = switch_html(v.prediction, v.layers) + f'<p class="small"><a href="{url}">As one picture</a></p>'
    return f"<section><h2>Where the model looked</h2>{shown}</section>"


def _faithfulness(v: SlideView) -> str:
    p = v.prediction
    if p is None:
        return ""
    parts = []
    for t, task in enumerate(p.tasks):
        sentence, drawing = faithfulness_sentence(p, t), curves_svg(p, t)
        if sentence:
            of = f"<b>{escape(task.name)}.</b> " if len(p.tasks) > 1 else ""
            parts.append(f'<p class="faith">{of}{escape(sentence)}</p>')
        if drawing:
            alt = escape(f"{followed_text(p, t)} while tiles are taken away, and while they are all there is")
            parts.append(f'<figure class="plot"><img src="{data_uri(drawing, "svg+xml")}" alt="{alt}"></figure>')
    parts += [f'<p class="faith">{escape(text)}</p>' for text in v.finer.stability]
    return f"<section><h2>Does the map say what the label rests on?</h2>{''.join(parts)}</section>" if parts else ""


def _finer(finer: Finer) -> str:
    shown = [(file, "attention on a finer grid in the top regions") for file in finer.fine]
    shown += [(file, "where within the top tiles the evidence lies") for file in finer.within]
    figures = "".join(
        f'<figure class="figure"><a href="{escape(link(file))}"><img src="{escape(link(file))}" alt="{escape(said)}" loading="lazy">'
        f'</a><figcaption class="quiet small">{escape(said)}</figcaption></figure>'
        for file, said in shown
    )
    return f"<section><h2>Looked at again, more finely</h2>{figures}</section>" if figures else ""


def _top(v: SlideView) -> str:
    p = v.prediction
    if p is None or not v.tiles:
        return ""
    names = {towards for _, towards in _evidence(p)}
    towards_what = f"evidence towards {names.pop()}" if len(names) == 1 else "evidence"
    what = (
        f"The {len(v.tiles)} tiles that ranked highest of {p.n_tiles:,}, best first; each is {_side(p)} wide. "
        f"Attention is given in multiples of a uniform map; {towards_what} is how much the logit falls "
        "when the tile is left out; places are level-0 px."
    )
    return _tiles("Tiles that counted most", what, p, v.tiles, v.paths)


def _against(v: SlideView) -> str:
    """The selected tiles that speak against the call, task by task."""
    p = v.prediction
    if p is None or not v.tiles:
        return ""
    parts = []
    for t, tiles in enumerate(v.against):
        of = f" ({p.tasks[t].name})" if len(p.tasks) > 1 else ""
        what = (
            f"Of the {len(p.selected):,} tiles used, those without which the call {call_text(p, t)} would be stronger, "
            "strongest first."
            if tiles
            else f"None: each of the {len(p.selected):,} tiles used supports the call {call_text(p, t)}."
        )
        parts.append(_tiles(f"Tiles that spoke against the call{of}", what, p, tiles, v.paths))
    return "".join(parts)


def _evidence(p: SlidePrediction) -> list[tuple[np.ndarray, str]]:
    return [evidence_for_call(p, t) for t in range(len(p.tasks))]


def _side(p: SlidePrediction) -> str:
    return f"{p.tile.size_px * p.tile.mpp:.4g} µm"


def _tiles(heading: str, what: str, p: SlidePrediction, tiles: Sequence[TopTile], paths: Mapping[int, str]) -> str:
    evidence, items = _evidence(p), []
    for tile in tiles:
        source = link(paths[tile.row]) if tile.row in paths else data_uri(tile.png) if tile.png else ""
        alt = f"tile {tile.rank} at level-0 px ({tile.x0}, {tile.y0})"
        picture = f'<img src="{escape(source)}" alt="{escape(alt)}" loading="lazy">'
        gone = '<span class="gone">could not be read again</span>'
        said = "".join(
            _said(tile, t, values[tile.rank - 1], f"towards {towards}" if len(evidence) > 1 else "evidence")
            for t, (values, towards) in enumerate(evidence)
        )
        items.append(f"<li>{picture if tile.png else gone}<b>{tile.rank}</b>{said}<br>"
                     f'<span class="quiet">({tile.x0}, {tile.y0})</span></li>')  # fmt: skip
    shown = f'<ul class="tiles">{"".join(items)}</ul>' if items else ""
    return f'<section><h2>{escape(heading)}</h2><p class="quiet">{escape(what)}</p>{shown}</section>'


def _said(tile: TopTile, task: int, evidence: float, word: str) -> str:
    side = "for" if evidence > 0 else "against" if evidence < 0 else ""
    return (
        f" {escape(shown_number(tile.attention[task]))} × uniform"
        f'<br><span class="{side}">{escape(word)} {evidence:+.3g}</span>'
    )


def _tables(row: Mapping[str, str], p: SlidePrediction | None, facts: Sequence[tuple[str, str]]) -> str:
    numbers = [
        ("patient", row.get("patient_id", "")), ("tiles", row.get("n_tiles", "")),
        ("tiles used for the label", row.get("n_selected", "")), ("tissue, mm²", row.get("tissue_mm2", "")),
        ("px missing from the file", row.get("n_missing", "")), ("failed reads", row.get("n_failed_reads", "")),
    ]  # fmt: skip
    made = [
        ("µm per level-0 px", row.get("mpp", "")), ("which comes from", row.get("mpp_source", "")),
        ("reader", row.get("reader", "")), ("model", row.get("model_hash", "")),
        ("settings", row.get("settings_hash", "")), ("slide file", file_said(p)),
    ]  # fmt: skip
    if p is not None:
        numbers.append(("level 0, px", f"{p.size0[0]:,} × {p.size0[1]:,}"))
        if tuple(p.bounds) != (0, 0, *p.size0):
            b = p.bounds
            numbers.append(("scanned part, level-0 px", f"{b.width0:,} × {b.height0:,} at ({b.x0:,}, {b.y0:,})"))
        overlap = f", overlapping by {p.tile.overlap_px} px" if p.tile.overlap_px else ""
        made.insert(2, ("tiles", f"{p.tile.size_px} px at {p.tile.mpp:g} µm/px{overlap}"))
    return (
        f'<div class="columns"><section><h2>Numbers</h2>{facts_table(numbers)}</section>'
        f"<section><h2>How it was made</h2>{facts_table([*made, *facts])}</section></div>"
    )
