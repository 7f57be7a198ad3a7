"""What the pages are told: the rows of the run, and everything about one slide, ready for JSON.

No path, no file name, no column that the manifest carried along; patients only where the viewer was started to show them.
Texts are plain; the page sets them as text, never as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsi_ips.geometry import Box0, Mpp
from wsi_ips.report import readout
from wsi_ips.report.faithfulness import faithfulness_sentence
from wsi_ips.report.heatmap import times_uniform
from wsi_ips.report.maps import list_maps
from wsi_ips.report.viewer.files import Ledgers, NotShownError, OpenSlides, known_file
from wsi_ips.report.viewer.index import RunIndex, SlideEntry, calls_in
from wsi_ips.report.viewer.pyramid import TILE_PX, highest_shift
from wsi_ips.report.viewer.reviews import Review
from wsi_ips.results import SlidePrediction
from wsi_ips.tasks import called_class, probabilities, split_outputs

__all__ = ["N_TOP_TILES", "describe_slide", "list_row", "review_json"]

N_TOP_TILES = 100  # of the strip; a selection may be larger
_FACTS = (("n_tiles", "tiles"), ("n_selected", "used for the label"), ("tissue_mm2", "tissue, mm²"),
          ("mpp", "µm per px"), ("mpp_source", "resolution from"), ("n_missing", "missing px"),
          ("n_failed_reads", "unreadable tiles"), ("reader", "read with"))  # fmt: skip


def review_json(review: Review | None) -> dict[str, str] | None:
    """Tell a mark."""
    return review._asdict() if review else None


def list_row(index: RunIndex, entry: SlideEntry, latest: Mapping[str, Review], shows_patients: bool) -> dict[str, Any]:
    """Tell one row of the list."""
    row: dict[str, Any] = {
        "slide_id": entry.slide_id, "status": entry.status, "reason": entry.cells.get("reason", ""),
        "message": entry.told(entry.cells.get("message", "")), "calls": calls_in(entry.cells, index.tasks),
        "has_thumbnail": _has_thumbnail(index, entry), "review": review_json(latest.get(entry.slide_id)),
    }  # fmt: skip
    if shows_patients:
        row["patient_id"] = entry.cells.get("patient_id", "")
    return row


def _has_thumbnail(index: RunIndex, entry: SlideEntry) -> bool:
    try:
        return bool(index.folder.slide_file(entry.slide_id, f"{entry.slide_id}.thumbnail.jpg"))
    except FileNotFoundError:
        return False


def describe_slide(
    index: RunIndex, entry: SlideEntry, slides: OpenSlides, ledgers: Ledgers, reviews: Sequence[Review]
) -> dict[str, Any]:
    """Tell everything about one slide.

    `frame` says where it lies (bounds in level-0 px, µm per px, pyramid); None when neither slide nor map can be shown.
    `slide_trouble` and `map_trouble` say why one of them cannot.

    Args:
        index: of the run.
        entry: its row.
        slides: to open it.
        ledgers: to read what was found on it.
        reviews: all marks of the run.
    """
    told: dict[str, Any] = {
        "slide_id": entry.slide_id, "status": entry.status, "reason": entry.cells.get("reason", ""),
        "message": entry.told(entry.cells.get("message", "")), "calls": calls_in(entry.cells, index.tasks),
        "facts": [[said, entry.cells[name]] for name, said in _FACTS if entry.cells.get(name)],
        "model": entry.cells.get("model_hash", index.model_hash)[:12],
        "reviews": [review_json(r) for r in reviews if r.slide_id == entry.slide_id],
        "has_slide": False, "slide_trouble": "", "map_trouble": "", "frame": None, "maps": [], "tiles": [], "notes": [],
        "tasks": [], "version": str(known_file(index, entry).get("sha256", ""))[:12],
    }  # fmt: skip
    try:
        prediction = ledgers.prediction(entry)
        told |= _of_prediction(entry, prediction)
        if prediction.size0 == (0, 0):
            told["map_trouble"] = "This slide was labelled from features without places on a slide: there is no map."
        else:
            told["frame"] = _frame(prediction.bounds, prediction.mpp)
            told["maps"] = [info._asdict() for info in list_maps(prediction)]
            told["tiles"] = _top_tiles(prediction)
    except NotShownError as error:
        told["map_trouble"] = str(error)
    if entry.status in ("failed", "not_run"):  # a file that broke its worker is not decoded in here
        told["slide_trouble"] = "This slide was not classified, so it is not opened here."
        return told
    try:
        with slides.lend(entry) as lent:
            told["frame"] = _frame(lent.slide.bounds, lent.slide.mpp)
            told["has_slide"] = True
    except NotShownError as error:
        told["slide_trouble"] = str(error)
    return told


def _frame(bounds: Box0, mpp: Mpp) -> dict[str, Any]:
    return {**bounds._asdict(), "mpp_x": mpp.x, "mpp_y": mpp.y, "tile_px": TILE_PX, "highest_shift": highest_shift(bounds)}


def _of_prediction(entry: SlideEntry, p: SlidePrediction) -> dict[str, Any]:
    tasks = []
    for t, (task, outputs) in enumerate(zip(p.tasks, split_outputs(p.outputs, p.tasks), strict=True)):
        probs = probabilities(outputs, task)
        threshold = 0.5 if task.threshold is None else task.threshold
        tasks.append({
            "name": task.name, "kind": task.kind, "text": readout.call_text(p, t),
            "call": called_class(probs, outputs, task), "towards": readout.evidence_for_call(p, t)[1],
            "threshold": threshold if task.kind in ("binary", "multilabel") else None,
            "probabilities": [{"name": n, "value": float(v)} for n, v in zip(task.classes, probs, strict=False)],
            "faithfulness": faithfulness_sentence(p, t),
        })  # fmt: skip
    return {"tasks": tasks, "notes": [[n.code, entry.told(n.message)] for n in p.notes], "model": p.model_hash[:12]}


def _top_tiles(p: SlidePrediction) -> list[dict[str, Any]]:
    """Tell the best selected tiles: level-0 px of the corner, attention x N and evidence towards the call, of each task."""
    attention = times_uniform(p.attention)  # (N, T)
    evidence = [readout.evidence_for_call(p, t)[0] for t in range(len(p.tasks))]  # T times (m,)
    return [
        {
            "rank": rank + 1, "row": int(row), "x0": int(p.coords[row, 0]), "y0": int(p.coords[row, 1]),
            "width0": p.extent0[0], "height0": p.extent0[1],
            "attention": [float(v) for v in attention[row]], "evidence": [float(e[rank]) for e in evidence],
        }
        for rank, row in enumerate(p.selected[:N_TOP_TILES].tolist())
    ]  # fmt: skip
