"""The slides a model got most wrong, drawn: where it looked when it erred, by the model that had not seen the slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsi_ips.engine.draw import slide_files
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.featurefiles import read_feature_file, slide_behind
from wsi_ips.engine.predict import PredictJob, label_features, predict_slide
from wsi_ips.engine.runtables import measured_cells
from wsi_ips.errors import ModelError, Note, SlideError
from wsi_ips.files import write_whole
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.protocol import Slide
from wsi_ips.slide.reader import open_slide
from wsi_ips.slidefiles import safe_id
from wsi_ips.training.evaluation import Evaluation
from wsi_ips.training.fit import Fit
from wsi_ips.training.machine import Machine
from wsi_ips.training.targets import Member

__all__ = ["Drawn", "draw_worst"]


class Drawn(NamedTuple):
    """What was drawn, by slide id; paths relative to the report."""

    reports: dict[str, str]
    overlays: dict[str, str]
    notes: tuple[Note, ...]  # slides that could not be


def draw_worst(work: Path, fits: Sequence[Fit], evaluation: Evaluation, machine: Machine) -> Drawn:
    """Draw the worst judged slides of every task: overlay, tiles that counted, page, in `slides/<slide_id>/`.

    Slides known by a file of features are drawn where that file says how its tiles lie and the slide can be opened.

    Args:
        work: folder of the report.
        fits: of the seed that is judged.
        evaluation: names the worst cases.
        machine: readers, cache and device.

    Raises:
        OSError: the folder cannot be written.
    """
    drawn, notes = Drawn({}, {}, ()), []
    wanted = dict.fromkeys(w.slide_id for t in evaluation.tasks for w in t.worst)
    for fit in fits:
        judged = fit.job.cohort.val if evaluation.judged == "val" else fit.job.cohort.test
        chosen = [m for m in judged if m.record.slide_id in wanted]
        if not chosen:
            continue
        bundle = load_bundle(fit.model, fit.job.train.precision)
        bundle.classifier.to(machine.team.device)
        for member in chosen:
            slide_id = member.record.slide_id
            try:
                files = _files(bundle, member, machine)
            except (SlideError, ModelError) as error:
                notes.append(Note(error.code, f"{slide_id} could not be drawn: {error}"))
                continue
            folder = Path("slides") / safe_id(slide_id)
            for name, content in files.items():
                write_whole(work / folder / name, content)
            if files:
                drawn.reports[slide_id] = str(folder / f"{slide_id}.report.html")
                drawn.overlays[slide_id] = str(folder / f"{slide_id}.overlay.png")
    return drawn._replace(notes=tuple(notes))


def _files(bundle: Bundle, member: Member, machine: Machine) -> dict[str, bytes]:
    record, icc = member.record, bundle.settings.icc
    job = PredictJob(record.slide_id, record.mask_path, machine.read)
    if bundle.classifier.takes_tiles:
        opener = machine.slides.opener
        with opener(record) if opener else open_slide(record.slide_path, record.mpp, icc=icc) as slide:
            if getattr(slide, "n_channels", 3) != 3:
                return {}  # there is no picture to draw on
            return _drawn(slide, predict_slide(slide, bundle, job, cache=machine.cache))
    features = read_feature_file(record.features_path or "", machine.read.max_tiles)
    behind, _ = slide_behind(features, record.slide_path, record.mpp, icc)
    if behind is None:
        return {}
    with behind:
        return _drawn(behind, label_features(features, bundle, job, behind).prediction)


def _drawn(slide: Slide, p: SlidePrediction) -> dict[str, bytes]:
    codes = ";".join(dict.fromkeys(n.code for n in p.notes))
    row = {"slide_id": p.slide_id, "status": "ok_with_warnings" if codes else "ok",
           "reason": codes, "message": " ".join(n.message for n in p.notes), **measured_cells(p)}  # fmt: skip
    return slide_files(slide, p, row, DrawOptions(("png",)))
