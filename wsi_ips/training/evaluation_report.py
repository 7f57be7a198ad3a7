"""An evaluation as a folder: index.html, metrics.json, metrics.csv, cases.csv and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

import wsi_ips
from wsi_ips.report.figure_style import Drawing
from wsi_ips.report.figures import (
    BandCurve,
    Learning,
    ReliabilityBin,
    StepCurve,
    confusion_figure,
    learning_figure,
    precision_recall_figure,
    regression_figure,
    reliability_figure,
    roc_figure,
    selection_figure,
    survival_figure,
)
from wsi_ips.report.training_page import Grid, PageRow, Picture, TaskSection, TrainingPage, training_html
from wsi_ips.slidefiles import safe_id
from wsi_ips.stopping import write_whole
from wsi_ips.training.assess import Calibration, ClassCurves
from wsi_ips.training.cases import CaseTable, write_cases
from wsi_ips.training.evaluation import Evaluation, TaskEvaluation, WorstCase
from wsi_ips.training.evaluation_tables import evaluation_json, grid_csv, json_able, metrics_csv
from wsi_ips.training.wording import (
    calibration_grid,
    group_grid,
    interval_text,
    metric_grid,
    metric_name,
    operating_grid,
    remarks,
    sentence,
)

__all__ = ["ReportFacts", "write_report"]


@dataclass(frozen=True)
class ReportFacts:
    """What the numbers of an evaluation do not say themselves."""

    title: str = "Evaluation"
    made_from: tuple[tuple[str, str], ...] = ()  # (name, value): model, cohort, seeds, ...
    made_heading: str = "What was trained, and from what"
    warnings: tuple[str, ...] = ()  # data floors, sanity check, ...
    splits: Grid | None = None  # from `splits_grid`
    learning: tuple[Learning, ...] = ()  # one a training
    epochs: Grid | None = None  # every epoch in numbers; written as epochs.csv, too
    n_encoded: tuple[float, ...] = ()  # encoder forwards of the first training, by epoch
    recall: tuple[float, ...] = ()  # audited recall by epoch, NaN where every tile was scored
    min_recall: float | None = None
    comparison: Grid | None = None  # from `comparison_grid`
    left_out: Grid | None = None  # slides that could not be judged, and why
    settings: str = ""  # YAML
    versions: tuple[tuple[str, str], ...] = ()
    reports: Mapping[str, str] = field(default_factory=dict)  # page of a slide by slide_id, relative to this one
    overlays: Mapping[str, str] = field(default_factory=dict)  # picture of a slide's attention, likewise
    back: str | None = None  # page of the run, likewise
    extra: Mapping[str, object] = field(default_factory=dict)  # more for metrics.json


class _Named(NamedTuple):
    file: str  # name without ending
    title: str
    caption: str
    drawing: Drawing


def write_report(
    folder: str | Path, evaluation: Evaluation | None, table: CaseTable | None, facts: ReportFacts
) -> Path:
    """Write the report of a training or an evaluation; returns the page's path. Other files there are left alone.

    Args:
        folder: made when missing.
        evaluation: None where nothing could be judged: the page says how training went.
        table: the cases behind it.
        facts: everything else.

    Raises:
        StoppedError: the environment gave out.
    """
    folder = Path(folder)
    general = _learning_figures(evaluation, facts)
    by_task = {t.task.name: _task_figures(t, i) for i, t in enumerate(evaluation.tasks if evaluation else ())}
    for figure in (*general, *(f for some in by_task.values() for f in some)):
        write_whole(folder / "figures" / f"{figure.file}.svg", figure.drawing.svg)
        write_whole(folder / "figures" / f"{figure.file}.png", figure.drawing.png)
    if evaluation is not None:
        whole = evaluation_json(evaluation) | {k: json_able(v) for k, v in facts.extra.items()}
        write_whole(folder / "metrics.json", json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False).encode())
        write_whole(folder / "metrics.csv", metrics_csv(evaluation))
    if table is not None:
        write_cases(folder / "cases.csv", table)
    if facts.epochs is not None:
        write_whole(folder / "epochs.csv", grid_csv(facts.epochs))
    content = TrainingPage(
        title=facts.title,
        tasks=tuple(_section(evaluation, t, by_task[t.task.name], facts) for t in evaluation.tasks)
        if evaluation
        else (),
        figures=_cards(evaluation),
        made_from=facts.made_from,
        made_heading=facts.made_heading,
        warnings=facts.warnings,
        splits=facts.splits,
        pictures=tuple(Picture(f.title, f.drawing.svg, f.caption) for f in general),
        epochs=facts.epochs,
        comparison=facts.comparison,
        left_out=facts.left_out,
        settings=facts.settings,
        versions=(*facts.versions, ("wsi-ips", wsi_ips.__version__)),
        back=facts.back,
    )
    write_whole(folder / "index.html", training_html(content))
    return folder / "index.html"


def _cards(evaluation: Evaluation | None) -> tuple[tuple[str, str], ...]:
    if evaluation is None:
        return ()
    named = len(evaluation.tasks) > 1
    scores = [(metric_name(t.primary, t.task) + (f", {t.task.name}" if named else ""), interval_text(t.headline, 2).split(" (")[0])
              for t in evaluation.tasks]  # fmt: skip
    return (
        *scores,
        (f"slides judged ({evaluation.judged})", f"{evaluation.n:,}"),
        ("patients", f"{evaluation.n_patients:,}"),
    )


def _section(evaluation: Evaluation, t: TaskEvaluation, figures: list[_Named], facts: ReportFacts) -> TaskSection:
    calibration = calibration_grid(t)
    tables = [("Metrics", metric_grid(evaluation, t)), ("Operating points", operating_grid(evaluation, t))]
    tables += [("Calibration", calibration)] if calibration else []
    tables += [("By site", group_grid(t, t.sites, "site")), ("By part", group_grid(t, t.parts, "part")),
               ("Trainings that differ by seed alone", group_grid(t, t.seeds, "seed"))]  # fmt: skip
    return TaskSection(
        name=t.task.name,
        sentence=sentence(evaluation, t),
        remarks=remarks(evaluation, t),
        pictures=tuple(Picture(f.title, f.drawing.svg, f.caption) for f in figures),
        tables=tuple(tables),
        worst=tuple(_worst_row(w, facts) for w in t.worst),
        worst_head=("site", "part", "truth", "called", *_number_head(t)),
    )


def _number_head(t: TaskEvaluation) -> tuple[str, ...]:
    number = {"regression": "predicted", "survival": "risk"}.get(t.task.kind, "probability of the truth")
    return (number, "absolute error" if t.task.kind == "regression" else "loss (nats)")


def _worst_row(w: WorstCase, facts: ReportFacts) -> PageRow:
    number = "-" if np.isnan(w.number) else f"{w.number:.3g}"
    cells = (w.site, w.part, w.truth.replace(";", ", "), w.called.replace(";", ", "), number, f"{w.loss:.3g}")
    return PageRow(w.slide_id, cells, facts.reports.get(w.slide_id), facts.overlays.get(w.slide_id))


def _learning_figures(evaluation: Evaluation | None, facts: ReportFacts) -> list[_Named]:
    found = []
    if facts.learning:
        t = evaluation.tasks[0] if evaluation and len(evaluation.tasks) == 1 else None
        metric = metric_name(t.primary, t.task) if t else "mean of the tasks' own scores"
        found.append(
            _Named("learning", "Loss and validation score by epoch", "", learning_figure(facts.learning, metric))
        )
    if facts.n_encoded:
        drawing = selection_figure(facts.n_encoded, facts.recall, facts.min_recall)
        found.append(_Named("selection", "What selecting cost, and what it found", "", drawing))
    return found


def _task_figures(t: TaskEvaluation, number: int) -> list[_Named]:
    """Draw what there is to draw; a name is the task's number and name, so that no two tasks share a file."""
    stem, name = f"{number + 1}_{safe_id(t.task.name)[:40]}", t.task.name
    found = []
    if t.curves:
        found.append(_Named(f"{stem}.roc", f"ROC: {name}", "", roc_figure([_roc(c) for c in t.curves])))
        shares = [c.n_positive / c.n for c in t.curves]
        pr = precision_recall_figure([_pr(c) for c in t.curves], shares)
        found.append(
            _Named(
                f"{stem}.precision_recall",
                f"Precision and recall: {name}",
                "Dotted: the share of the class, what guessing gives.",
                pr,
            )
        )
    if t.confusion is not None:
        drawing = confusion_figure(t.confusion, t.task.classes)
        found.append(_Named(f"{stem}.confusion", f"Calls: {name}", f"n = {t.n:,} slides.", drawing))
    if t.calibration is not None:
        found.append(_Named(f"{stem}.calibration", f"Calibration: {name}", _calibrated(t), _reliability(t.calibration)))
    if t.groups:
        steps = [
            StepCurve(f"{g.name}: {g.n} slides, {g.n_events} events", g.time, g.share, g.censored) for g in t.groups
        ]
        drawing = survival_figure(steps, f"time ({t.task.label_column})", "Halves by predicted risk")
        found.append(
            _Named(
                f"{stem}.survival", f"Survival: {name}", "Kaplan-Meier; ticks: last seen without the event.", drawing
            )
        )
    if t.pairs is not None:
        found.append(
            _Named(f"{stem}.regression", f"Predicted over true: {name}", "", regression_figure(*t.pairs, name))
        )
    return found


def _roc(c: ClassCurves) -> BandCurve:
    return BandCurve(f"{c.name}: AUROC {interval_text(c.auroc, 2)}, {c.n_positive} of {c.n} slides", *c.roc)


def _pr(c: ClassCurves) -> BandCurve:
    return BandCurve(f"{c.name}: {c.n_positive} of {c.n} slides", *c.pr)


def _reliability(c: Calibration) -> Drawing:
    def bins(some: tuple) -> list[ReliabilityBin]:
        return [ReliabilityBin(b.confidence, b.accuracy, b.n) for b in some]

    return reliability_figure(bins(c.bins_after), bins(c.bins_before) if c.temperatures != (1.0,) else ())


def _calibrated(t: TaskEvaluation) -> str:
    what = "Largest of the probabilities" if t.task.kind in ("multiclass", "ordinal") else "Probability of the positive class"
    return f"{what}, in ten bins; below, how many decisions each holds."
