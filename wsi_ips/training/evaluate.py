"""`evaluate`: a finished run of `classify` against labels; no model and no slide is opened.

Which slide is judged and which is not is said of every row: a slide without a label, a label without a finished slide,
an excluded row and a failed one are counted and listed, never dropped in silence.

Shapes: P outputs and Q targets of all tasks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from wsi_ips.errors import ConfigError, Note
from wsi_ips.manifest import Manifest, load_manifest
from wsi_ips.report.training_page import Grid
from wsi_ips.settings import dump_settings
from wsi_ips.tables import read_table
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.against import Compared, compare_cases
from wsi_ips.training.beware import LEARNED, beware, unjudged
from wsi_ips.training.cases import CaseTable
from wsi_ips.training.evaluation import Evaluation, evaluate_cases
from wsi_ips.training.evaluation_report import ReportFacts, write_report
from wsi_ips.training.run_outputs import RunOutputs, read_outputs
from wsi_ips.training.targets import Member, members_of
from wsi_ips.training.wording import comparison_grid, interval_text, metric_name, sentence, splits_grid

__all__ = ["EvaluateOptions", "EvaluateSummary", "evaluate_run"]

_SPLITS = ("train", "val", "test")
_MOST_LISTED = 200


@dataclass(frozen=True)
class EvaluateOptions:
    """How a run is judged."""

    labels: tuple[str, ...] = ()  # "TASK=COLUMN", or "COLUMN" for a single task; survival: "TASK=TIME,EVENT"
    split: str | None = None  # "train", "val", "test", "all"; None: test where the manifest has any, else all
    against: Path | None = None  # run to compare with
    out: Path | None = None  # folder to write; None: RUN/evaluation
    n_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class EvaluateSummary:
    """What an evaluation ends with."""

    page: Path
    evaluation: Evaluation
    cases: CaseTable
    left_out: tuple[tuple[str, str], ...]  # slide, why it was not judged
    comparisons: tuple[Compared, ...] = ()
    notes: tuple[Note, ...] = ()  # of the manifest
    warnings: tuple[str, ...] = ()  # what the figures must not be read without

    def text(self) -> str:
        """Say in a short table how good the run is and who was not judged."""
        tasks, lines = self.evaluation.tasks, list[str]()
        for t in tasks:
            lines.append((f"{t.task.name}: " if len(tasks) > 1 else "") + sentence(self.evaluation, t))
            width = max(len(metric_name(m, t.task)) for m in t.metrics)
            lines += [f"  {metric_name(m, t.task):<{width}}  {interval_text(i)}" for m, i in t.metrics.items()]
        for task, metric, test, c in self.comparisons:
            lines.append(f"against, {task}: {metric} {c.a:.3f} and {c.b:.3f}, difference {c.difference:+.3f} "
                         f"({c.low:+.3f} to {c.high:+.3f}), p {c.p:.2g}, {c.n} slides, {test}")  # fmt: skip
        lines += [f"not judged: task {t} (no slide with a label for it)" for t in unjudged(self.cases, self.evaluation)]
        lines += [f"beware: {w}" for w in self.warnings if LEARNED in w]
        lines += [f"not judged: {n} ({why})" for why, n in Counter(why for _, why in self.left_out).items()]
        return "\n".join([*lines, f"see {self.page}"])


def evaluate_run(run: str | Path, manifest: str | Path, options: EvaluateOptions | None = None) -> EvaluateSummary:
    """Judge a finished run by the labels of a manifest; writes index.html, metrics.json, metrics.csv, cases.csv, figures.

    Args:
        run: folder of `classify`.
        manifest: table with labels; slides are matched by slide_id, and their files need not be there.
        options: how.

    Raises:
        ConfigError: no run, no column for a task, no slide in common, another model's run to compare with.
        ManifestError: labels that the model does not know, with line, value and cure.
        StoppedError: the environment gave out.
    """
    options = options or EvaluateOptions()
    outputs = read_outputs(run)
    tasks = _with_columns(outputs.tasks, options.labels, Path(manifest))
    rows = load_manifest(
        manifest, label_columns=list(dict.fromkeys(c for t in tasks for c in t.columns)), check_files=False,
        features=True,  # a slide's name is enough: no file is opened
    )
    members = members_of(rows, tasks)
    split = _split(options.split, members)
    asked = [m for m in members if split == "all" or m.record.split == split]
    judged = [m for m in asked if m.is_labelled and m.record.slide_id in outputs.logits]
    left_out = tuple(_left_out(rows, outputs, asked, split))
    if not judged:
        raise ConfigError(_nothing(outputs, rows, asked, split))
    table = _cases(judged, outputs, tasks, split)
    evaluation = evaluate_cases(table, n_resamples=options.n_resamples, seed=options.seed, everyone=split == "all")
    compared: tuple[Compared, ...] = ()
    if options.against is not None:
        other = read_outputs(options.against)
        both = [m for m in judged if m.record.slide_id in other.logits]
        second = _cases(both, other, other.tasks, split, has_targets=False)
        compared = compare_cases(table, second, n_resamples=options.n_resamples, seed=options.seed)
    runs = (outputs, *([other] if options.against is not None else []))
    warnings = beware(table, evaluation, judged, [why for _, why in left_out], rows.notes, runs)
    summary = EvaluateSummary(Path(), evaluation, table, left_out, compared, rows.notes, warnings)
    return replace(summary, page=_write(summary, outputs, rows, judged, options))


def _with_columns(tasks: tuple[TaskSettings, ...], labels: Sequence[str], manifest: Path) -> tuple[TaskSettings, ...]:
    """Point each task to its columns of this manifest.

    Raises:
        ConfigError: a task that the model does not have, or a column that the manifest does not have.
    """
    by_name = {t.name: t for t in tasks}
    for text in labels:
        name, is_named, columns = text.partition("=")
        if not is_named:
            name, columns = (tasks[0].name if len(tasks) == 1 else text), text
        if name not in by_name:
            raise ConfigError(
                f"--label {text}: the model has no task {name!r}, it has {', '.join(by_name)}; write TASK=COLUMN"
            )
        first, _, event = columns.partition(",")
        change = {"column": first} | ({"event_column": event} if event else {})
        by_name[name] = by_name[name].replace(**change)
    header = [h for h in read_table(manifest).header if h]
    known = {h.lower() for h in header}
    problems = [
        f"{manifest.name}: no column {column!r} for task {task.name!r}; it has {', '.join(header)}. "
        f"Say which one holds it: --label {task.name}=COLUMN" + (",EVENTS" if task.kind == "survival" else "")
        for task in by_name.values()
        for column in task.columns
        if column.lower() not in known
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(by_name.values())


def _split(asked: str | None, members: Sequence[Member]) -> str:
    if asked not in (None, "all", *_SPLITS):
        raise ConfigError(f"--split {asked}: write train, val, test, or all")
    has_test = any(m.record.split == "test" for m in members)
    return asked or ("test" if has_test else "all")


def _left_out(rows: Manifest, outputs: RunOutputs, asked: Sequence[Member], split: str) -> list[tuple[str, str]]:
    """Every row of either side that does not judge, and why."""
    found = [(r.slide_id, "excluded by the manifest") for r in rows.records if r.is_excluded]
    for m in asked:
        name = m.record.slide_id
        if name in outputs.logits:
            why = "" if m.is_labelled else "no label"
        elif m.is_labelled:
            why = f"labelled, but {outputs.unfinished.get(name, 'not in the run')}"
        else:
            why = f"no label, and {outputs.unfinished.get(name, 'not in the run')}"
        found += [(name, why)] if why else []
    listed = {r.slide_id for r in rows.records}
    for name in (*outputs.logits, *outputs.unfinished):
        if name not in listed:
            also = f" ({outputs.unfinished[name]})" if name in outputs.unfinished else ""
            found.append((name, f"in the run, but not in the manifest{also}"))
    if split != "all":
        chosen = {m.record.slide_id for m in asked}
        found += [
            (r.slide_id, f"not in split {split}")
            for r in rows.records
            if not r.is_excluded and r.slide_id not in chosen
        ]
    return found


def _nothing(outputs: RunOutputs, rows: Manifest, asked: Sequence[Member], split: str) -> str:
    of = "" if split == "all" else f" of split {split}"
    ours, theirs = next(iter(outputs.logits), "none"), rows.records[0].slide_id
    labelled = sum(m.is_labelled for m in asked)
    return (f"no slide to judge: {outputs.path.name} has {len(outputs.logits)} finished slides ({ours}, ..), {rows.path.name} has "
            f"{labelled} labelled slides{of} ({theirs}, ..), and no slide_id is in both; give the manifest of this cohort, "
            "or another --split")  # fmt: skip


def _cases(
    members: Sequence[Member],
    outputs: RunOutputs,
    tasks: tuple[TaskSettings, ...],
    split: str,
    *,
    has_targets: bool = True,
) -> CaseTable:
    """The judged slides; patients as the labels' manifest has them, else as the run's had them."""
    records = [m.record for m in members]
    n_targets = sum(t.n_targets for t in tasks)
    targets = [m.targets if has_targets else (float("nan"),) * n_targets for m in members]
    return CaseTable(
        slide_ids=tuple(r.slide_id for r in records),
        patient_ids=tuple(outputs.patient_of(r.slide_id) if r.patient_is_default else r.patient_id for r in records),
        sites=tuple(r.site for r in records),
        parts=tuple(r.split or "all" if split == "all" else split for r in records),
        outputs=np.array([outputs.logits[r.slide_id] for r in records]),
        targets=np.array(targets),
        tasks=tasks,
    )


def _write(
    summary: EvaluateSummary, outputs: RunOutputs, rows: Manifest, judged: Sequence[Member], options: EvaluateOptions
) -> Path:
    folder = Path(options.out or outputs.path / "evaluation").absolute()
    reasons = Counter(why for _, why in summary.left_out)
    model = outputs.facts.get("model", {})
    made_from = [("run", outputs.path.name), ("model", str(model.get("model_hash", ""))), ("settings", str(model.get("settings_hash", ""))),
                 ("labels", rows.path.name), ("labels, sha256", rows.sha256),
                 ("judged", f"{len(summary.cases):,} slides: {summary.evaluation.judged}")]  # fmt: skip
    made_from += [("not judged", f"{n:,}: {why}") for why, n in reasons.items()]
    names = (outputs.path.name, options.against.name if options.against else "")
    by_name = {t.name: t for t in summary.cases.tasks}
    compared = [(c.task, metric_name(c.metric, by_name[c.task]), c.test, c.found) for c in summary.comparisons]
    facts = ReportFacts(
        title=f"Evaluation of {outputs.path.name}",
        made_from=tuple(made_from),
        made_heading="What was judged, and by what",
        warnings=summary.warnings,
        splits=splits_grid(_sides(judged), summary.cases.tasks),
        comparison=comparison_grid(compared, names) if compared else None,
        left_out=_listed(summary.left_out),
        settings="---\n".join(dump_settings(t) for t in summary.cases.tasks),
        reports=_near(outputs, folder, "report.html"),
        overlays=_near(outputs, folder, "overlay.png"),
        back=_relative(outputs.path / "index.html", folder),
        extra={"not_judged": dict(reasons), "not_judged_slides": [list(x) for x in summary.left_out],
               "model_hash": model.get("model_hash"), "against": [c._asdict() for c in summary.comparisons]},
    )  # fmt: skip
    return write_report(folder, summary.evaluation, summary.cases, facts)


def _sides(judged: Sequence[Member]) -> dict[str, list[Member]]:
    sides: dict[str, list[Member]] = {}
    for m in judged:
        sides.setdefault(f"judged, {m.record.split}" if m.record.split else "judged", []).append(m)
    return sides


def _listed(left_out: Sequence[tuple[str, str]]) -> Grid | None:
    more = len(left_out) - _MOST_LISTED
    note = f"and {more:,} more, all in metrics.json" if more > 0 else ""
    return Grid(("slide", "why"), tuple(left_out[:_MOST_LISTED]), note) if left_out else None


def _near(outputs: RunOutputs, folder: Path, ending: str) -> dict[str, str]:
    """Files of the slides, seen from the report's folder."""
    found = {}
    for slide_id, names in outputs.files.items():
        path = _relative(outputs.path / "slides" / slide_id / f"{slide_id}.{ending}", folder)
        if path and f"{slide_id}.{ending}" in names:
            found[slide_id] = path
    return found


def _relative(path: Path, folder: Path) -> str | None:
    try:
        return PurePath(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return None
