"""The slides a model got most wrong, drawn: where it looked when it erred, by the model that had not seen the slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsi_ips.config import ReadSettings
from wsi_ips.engine.draw import slide_files
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.engine.runtables import measured_cells
from wsi_ips.errors import ModelError, Note, SlideError
from wsi_ips.files import write_whole
from wsi_ips.model.bundle import load_bundle
from wsi_ips.slide.reader import open_slide
from wsi_ips.slidefiles import safe_id
from wsi_ips.training.evaluation import Evaluation
from wsi_ips.training.fit import Fit
from wsi_ips.training.targets import Member

__all__ = ["Drawn", "draw_worst"]

_PER_TASK = 6


class Drawn(NamedTuple):
    """What was drawn, by slide id; paths relative to the report."""

    reports: dict[str, str]
    overlays: dict[str, str]
    notes: tuple[Note, ...]  # slides that could not be


def draw_worst(work: Path, fits: Sequence[Fit], evaluation: Evaluation, read: ReadSettings) -> Drawn:
    """Draw the worst judged slides of every task: overlay, tiles that counted, page, in `slides/<slide_id>/`.

    Args:
        work: folder of the report.
        fits: of the seed that is judged.
        evaluation: names the worst cases.
        read: readers.

    Raises:
        OSError: the folder cannot be written.
    """
    drawn = Drawn({}, {}, ())
    if not load_bundle(fits[0].model).classifier.takes_tiles:
        return drawn
    wanted = dict.fromkeys(w.slide_id for t in evaluation.tasks for w in t.worst[:_PER_TASK])
    notes = []
    for fit in fits:
        for member in fit.job.cohort.test:
            if (slide_id := member.record.slide_id) not in wanted:
                continue
            try:
                files = _files(fit, member, read)
            except (SlideError, ModelError) as error:
                notes.append(Note(error.code, f"{slide_id} could not be drawn: {error}"))
                continue
            folder = Path("slides") / safe_id(slide_id)
            for name, content in files.items():
                write_whole(work / folder / name, content)
            drawn.reports[slide_id] = str(folder / f"{slide_id}.report.html")
            drawn.overlays[slide_id] = str(folder / f"{slide_id}.overlay.png")
    return drawn._replace(notes=tuple(notes))


def _files(fit: Fit, member: Member, read: ReadSettings) -> dict[str, bytes]:
    record, bundle = member.record, load_bundle(fit.model)
    with open_slide(record.slide_path, record.mpp, icc=bundle.settings.icc) as slide:
        p = predict_slide(slide, bundle, PredictJob(record.slide_id, record.mask_path, read))
        codes = ";".join(dict.fromkeys(n.code for n in p.notes))
        row = {"slide_id": record.slide_id, "patient_id": record.patient_id, "status": "ok_with_warnings" if codes else "ok",
               "reason": codes, "message": " ".join(n.message for n in p.notes), **measured_cells(p)}  # fmt: skip
        return slide_files(slide, p, row)
