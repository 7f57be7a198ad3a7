"""The offline page of one slide: the call, where the model looked, which tiles spoke for what, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsi_ips.config import TaskSettings
from wsi_ips.errors import Note
from wsi_ips.report.markup import cards, data_uri, escape, facts_table, link, page, status_badge
from wsi_ips.report.page import probability_bars, task_cells
from wsi_ips.report.readout import RESEARCH_USE, evidence_for_call, shown_number
from wsi_ips.report.tiles_strip import TopTile
from wsi_ips.results import SlidePrediction

__all__ = ["report_html"]


def report_html(
    row: Mapping[str, str],
    tasks: Sequence[TaskSettings],
    *,
    prediction: SlidePrediction | None = None,
    tiles: Sequence[TopTile] = (),
    tile_paths: Sequence[str] = (),
    overlay: str | None = None,
    facts: Sequence[tuple[str, str]] = (),
    index: str | None = "../../index.html",
) -> bytes:
    """Build <slide_id>.report.html.

    Args:
        row: the slide's row of predictions.csv.
        tasks: what was asked.
        prediction: what the pass found; None for a slide without a label.
        tiles: from `top_tiles`.
        tile_paths: their PNG files relative to this page, in the same order; without them the page carries the pixels.
        overlay: path of the overlay relative to this page.
        facts: (name, value) about how it was made: versions of the package and its libraries.
        index: path of the run's page relative to this one.
    """
    slide_id = row["slide_id"]
    notes = prediction.notes if prediction else ()
    back = f'<p class="back small"><a href="{escape(_up(index))}">All slides of this run</a></p>' if index else ""
    body = [
        back,
        f"<h1>{escape(slide_id)}</h1>",
        f"<p>{status_badge(row.get('status', ''))}</p>",
        f'<p class="research">{escape(RESEARCH_USE)}</p>',
        _calls(row, tasks),
        _notes(row, notes),
        _overlay(slide_id, overlay),
        _tiles(prediction, tiles, tile_paths),
        _tables(row, prediction, facts),
    ]
    return page(f"{slide_id}: report", "\n".join(part for part in body if part))


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


def _overlay(slide_id: str, overlay: str | None) -> str:
    if not overlay:
        return ""
    url, alt = escape(link(overlay)), escape(f"attention over slide {slide_id}")
    return (
        '<section><h2>Where the model looked</h2><figure class="figure">'
        f'<a href="{url}"><img src="{url}" alt="{alt}"></a></figure></section>'
    )


def _tiles(p: SlidePrediction | None, tiles: Sequence[TopTile], paths: Sequence[str]) -> str:
    if p is None or not tiles:
        return ""
    evidence = [evidence_for_call(p, t) for t in range(len(p.tasks))]
    items = []
    for i, tile in enumerate(tiles):
        source = link(paths[i]) if paths else data_uri(tile.png) if tile.png else ""
        alt = f"tile {tile.rank} at level-0 px ({tile.x0}, {tile.y0})"
        picture = f'<img src="{escape(source)}" alt="{escape(alt)}" loading="lazy">'
        gone = '<span class="gone">could not be read again</span>'
        said = "".join(
            _said(tile, t, values[tile.rank - 1], f"towards {towards}" if len(evidence) > 1 else "evidence")
            for t, (values, towards) in enumerate(evidence)
        )
        items.append(f"<li>{picture if tile.png else gone}<b>{tile.rank}</b>{said}<br>"
                     f'<span class="quiet">({tile.x0}, {tile.y0})</span></li>')  # fmt: skip
    side_um = p.tile.size_px * p.tile.mpp
    towards_what = f"evidence towards {evidence[0][1]}" if len(evidence) == 1 else "evidence"
    what = (
        f"The {len(tiles)} tiles that ranked highest of {p.n_tiles:,}, best first; each is {side_um:.4g} µm wide. "
        f"Attention is given in multiples of a uniform map; {towards_what} is how much the logit falls "
        "when the tile is left out; places are level-0 px."
    )
    head = f'<h2>Tiles that counted most</h2><p class="quiet">{escape(what)}</p>'
    return f'<section>{head}<ul class="tiles">{"".join(items)}</ul></section>'


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
        ("settings", row.get("settings_hash", "")),
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
