"""The pages of a run: index.html, gallery.html, and faithfulness.csv; from the slides' records alone.

Laid out at the end of `classify`, and again when slides are drawn anew.
"""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import wsi_ips
from wsi_ips.config import TaskSettings
from wsi_ips.files import read_regular
from wsi_ips.report.faithfulness import FaithSummary, faith_summary
from wsi_ips.report.gallery import GalleryGroup, GalleryTile, gallery_html
from wsi_ips.report.markup import escape, link
from wsi_ips.report.page import SlideLinks, index_html, task_cells
from wsi_ips.report.readout import outputs_said
from wsi_ips.results import SlidePrediction
from wsi_ips.runfolder import RunFolder, table_bytes
from wsi_ips.stats.intervals import Interval, patient_bootstrap
from wsi_ips.tables import cell_text, plain_text
from wsi_ips.tasks import split_outputs

__all__ = ["PATIENT_RULE", "page_files", "rewrite_pages", "seen_facts", "slide_links", "write_pages"]

PATIENT_RULE = "mean logit over the patient's slides with a label"
_MOST_BYTES = 4 << 20  # of a small picture that is carried inside a page
_MOST_TILES, _MOST_A_SLIDE = 48, 3  # of a group in the gallery


def seen_facts(p: SlidePrediction, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Say for a slide's record what the run's pages need of it: faithfulness, and the tiles that have a picture."""
    tiles = []
    for place, row in enumerate(p.selected.tolist()):
        name = f"{p.slide_id}.top_tiles/{place + 1:02d}_row{row}.png"
        if name in files:
            evidence = [round(float(v), 6) for v in p.evidence[place]]
            tiles.append({"file": name, "rank": place + 1, "row": row, "evidence": evidence})
    facts: dict[str, Any] = {"tiles": tiles} if tiles else {}
    found = [s for t in range(len(p.tasks)) if (s := faith_summary(p, t)) is not None]
    return facts | ({"faithfulness": [s._asdict() for s in found]} if found else {})


def rewrite_pages(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Lay the pages out again from a run's own files; a run that was stopped before its table has none, until it goes on."""
    try:
        with (run.path / "predictions.csv").open(encoding="utf-8", newline="") as f:
            rows = [{plain_text(k): plain_text(v or "") for k, v in row.items() if k} for row in csv.DictReader(f)]
    except FileNotFoundError:
        return
    records = {row["slide_id"]: run.read_record(row["slide_id"]) for row in rows if row["status"] != "not_run"}
    tasks = tuple(TaskSettings(**t) for t in facts["model"]["model_settings"]["tasks"])
    write_pages(run, rows, tasks, facts["model"], records)


def write_pages(
    run: RunFolder, rows: Sequence[Mapping[str, str]], tasks: tuple[TaskSettings, ...], model: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any] | None],
) -> None:  # fmt: skip
    """Write index.html, and gallery.html and faithfulness.csv where there is something to say; see `page_files`."""
    for name, data in page_files(run, rows, tasks, model, records).items():
        run.write_file(name, data)


def page_files(
    run: RunFolder, rows: Sequence[Mapping[str, str]], tasks: tuple[TaskSettings, ...], model: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, bytes]:  # fmt: skip
    """Lay out index.html, and gallery.html and faithfulness.csv where there is something to say.

    Args:
        run: the folder.
        rows: of predictions.csv, in order.
        tasks: what was asked.
        model: `model_hash`, `settings_hash`, `model_settings`; `shows_patients` where pages are to name them.
        records: of the slides that have one.

    Returns:
        Content by name, in the order in which it is written.
    """
    links = {row["slide_id"]: slide_links(run, row["slide_id"], records.get(row["slide_id"])) for row in rows}
    settings = model["model_settings"]
    tile, takes_tiles = settings["tile"], settings["encoder"]["name"] != "features"
    cut = f"{tile['size_px']} px at {tile['mpp']} µm/px" if takes_tiles else "files of features"
    facts = [("model", str(model["model_hash"])), ("settings", str(model["settings_hash"])), ("tiles", cut),
             ("wsi-ips", wsi_ips.__version__), ("patients.csv", PATIENT_RULE)]  # fmt: skip
    groups = _gallery(rows, tasks, records, links)
    files, extra = _faithfulness(rows, tasks, records)
    if groups:
        files["gallery.html"] = gallery_html(groups, _MOST_A_SLIDE)
        extra += f'<p><a href="{escape(link("gallery.html"))}">Tiles that spoke most, class by class</a></p>'
    named = rows if model.get("shows_patients") else [{k: v for k, v in row.items() if k != "patient_id"} for row in rows]
    return files | {"index.html": index_html(named, tasks, links=links, facts=facts, extra_html=extra)}


def slide_links(run: RunFolder, slide_id: str, record: Mapping[str, Any] | None, prefix: str = "") -> SlideLinks:
    """Say where a slide's overlay and page lie, seen from a page that stands `prefix` above the run folder."""
    outputs = (record or {}).get("outputs", {})

    def place(ending: str) -> str | None:
        name = f"{slide_id}.{ending}"
        return f"{prefix}slides/{slide_id}/{name}" if name in outputs else None

    shown, thumbnail = None, f"{slide_id}.thumbnail.jpg"
    if thumbnail in outputs:
        with contextlib.suppress(OSError):
            shown = read_regular(run.slide_file(slide_id, thumbnail), _MOST_BYTES)
    return SlideLinks(place("overlay.png"), place("report.html"), shown)


def _gallery(
    rows: Sequence[Mapping[str, str]], tasks: tuple[TaskSettings, ...], records: Mapping[str, Mapping[str, Any] | None],
    links: Mapping[str, SlideLinks],
) -> list[GalleryGroup]:  # fmt: skip
    groups = []
    for t, task in enumerate(tasks):
        sides = [(k, 1.0, said) for k, said in enumerate(outputs_said(task))]
        if task.kind == "binary":
            sides = [(0, 1.0, task.classes[1]), (0, -1.0, task.classes[0])]
        for k, sign, towards in sides:
            found = []
            for row in rows:
                slide_id = row["slide_id"]
                for tile in (records.get(slide_id) or {}).get("tiles", ()):
                    evidence = sign * float(split_outputs(np.array(tile["evidence"]), tasks)[t][k])
                    if evidence > 0:
                        found.append(GalleryTile(slide_id, f"slides/{slide_id}/{tile['file']}", links[slide_id].report,
                                                 evidence, tile["rank"], _called(row, task, len(tasks) == 1)))  # fmt: skip
            of = f" ({task.name})" if len(tasks) > 1 else ""
            groups.append(GalleryGroup(towards + of, _best(found)))
    return groups if any(group.tiles for group in groups) else []


def _best(tiles: list[GalleryTile]) -> list[GalleryTile]:
    """The strongest first, few of one slide."""
    taken: Counter[str] = Counter()
    best: list[GalleryTile] = []
    for tile in sorted(tiles, key=lambda tile: (-tile.evidence, tile.slide_id, tile.rank)):
        if taken[tile.slide_id] < _MOST_A_SLIDE and len(best) < _MOST_TILES:
            taken[tile.slide_id] += 1
            best.append(tile)
    return best


def _called(row: Mapping[str, str], task: TaskSettings, is_single: bool) -> str:
    said = task_cells(row, task, is_single)
    shown = dict(said.probabilities).get(said.called)
    return said.called.replace(";", ", ") + (f", {shown:.2f}" if shown is not None else "")


def _faithfulness(
    rows: Sequence[Mapping[str, str]], tasks: tuple[TaskSettings, ...], records: Mapping[str, Mapping[str, Any] | None]
) -> tuple[dict[str, bytes], str]:
    """Lay out faithfulness.csv, one row a slide and task, and say what the run's average is."""
    table, sentences = [], []
    for t, task in enumerate(tasks):
        seen = []
        for row in rows:
            found = (records.get(row["slide_id"]) or {}).get("faithfulness") or []
            if t < len(found):
                seen.append((row.get("patient_id") or row["slide_id"], FaithSummary(**found[t])))
                numbers = {k: f"{v:.6g}" for k, v in found[t].items()}
                table.append({"slide_id": cell_text(row["slide_id"]), "task": cell_text(task.name), **numbers})
        if seen:
            sentences.append(_average(task, seen, len(tasks) > 1))
    if not table:
        return {}, ""
    words = "".join(f'<p class="faith">{escape(s)}</p>' for s in sentences)
    said = (
        f"<section><h2>Do the maps say what the labels rest on?</h2>{words}"
        f'<p class="small"><a href="{escape(link("faithfulness.csv"))}">faithfulness.csv</a>, slide by slide</p></section>'
    )
    return {"faithfulness.csv": table_bytes(list(table[0]), table)}, said


def _average(task: TaskSettings, seen: Sequence[tuple[str, FaithSummary]], is_named: bool) -> str:
    patients = [patient for patient, _ in seen]
    is_number = task.kind in ("ordinal", "regression", "survival")

    def mean_fall(name: str) -> Interval:
        falls = np.array([s.whole - getattr(s, name) for _, s in seen])
        falls = np.abs(falls) if is_number else falls
        return patient_bootstrap(lambda rows: float(falls[rows].mean()), patients)

    evidence, attention, random = (mean_fall(f"without_{order}") for order in ("evidence", "attention", "random"))
    what = "moves the predicted number" if is_number else "lowers the probability of the call"
    k = max(s.k for _, s in seen)
    of = f"{task.name}: " if is_named else ""
    return (
        f"{of}Over {len(seen)} slides of {len(set(patients))} patients, removing the {k} tiles with the most evidence {what} by "
        f"{_range(evidence)} on average, those with the most attention by {_range(attention)}, {k} random ones of the tiles used by "
        f"{_range(random)} (95 % intervals by patient)."
    )


def _range(found: Interval) -> str:
    value, low, high = (round(v, 2) + 0.0 for v in found[:3])  # -0.00 is 0.00
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
