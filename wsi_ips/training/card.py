"""The model card: what a bundle is for, what it learned from, how good it is on slides it has not seen, and its limits.

Markdown, written beside the weights as README.md. Every figure in it comes from the evaluation; nothing is claimed
that was not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.config import ModelSettings
from wsi_ips.report.readout import RESEARCH_USE
from wsi_ips.report.training_page import Grid
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.evaluation import Evaluation, TaskEvaluation
from wsi_ips.training.wording import interval_text, metric_name, operating_grid, remarks, sentence

__all__ = ["CardFacts", "model_card"]


@dataclass(frozen=True)
class CardFacts:
    """What the settings of a model do not say."""

    splits: Grid  # slides, patients and classes of each side; from `splits_grid`
    evaluation: Evaluation | None = None  # None where no slide could judge
    trained: tuple[tuple[str, str], ...] = ()  # (name, value): epochs, folds, seeds, learning rate, members
    warnings: tuple[str, ...] = ()  # data floors, sanity check, notes
    names_patients: bool = True  # False: some slides stand for a patient of their own, because nobody said whose they are


def model_card(settings: ModelSettings, facts: CardFacts) -> str:
    """Say in Markdown what the model is for, what it learned from, how good it is and where it must not be trusted.

    Args:
        settings: of the model, tasks with their temperatures and thresholds.
        facts: the rest.
    """
    parts = [
        [f"# Slide classifier: {_plain(', '.join(t.name for t in settings.tasks))}", "", f"**{RESEARCH_USE}** Not for diagnosis."],
        _answers(settings.tasks),
        _sees(settings),
        _learned(facts),
        _worth(facts.evaluation, settings),
        _warned(facts.warnings),
        _limits(settings, facts.evaluation),
    ]  # fmt: skip
    return "\n".join("\n".join([*part, ""]) for part in parts if part)


def _plain(text: object) -> str:
    """Text that Markdown takes for text: no table cell, heading, link or tag of its own."""
    flat = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        flat = flat.replace(mark, "\\" + mark)
    return flat


def _answers(tasks: Sequence[TaskSettings]) -> list[str]:
    lines = [
        "## What it answers",
        "",
        "One slide, stained and scanned like those it learned from; one answer a question:",
        "",
    ]
    for task in tasks:
        what = f"predicts a number, in the unit of column {_plain(task.label_column)}"
        if task.kind == "survival":
            cuts = ", ".join(f"{c:g}" for c in task.cuts)
            what = f"risk over time; intervals cut at {cuts} in the unit of column {_plain(task.label_column)}"
        elif task.kind != "regression":
            what = ", ".join(_plain(c) for c in task.classes)
        lines.append(f"- {_plain(task.name)} ({task.kind}): {what}")
    return [
        *lines,
        "",
        "Intended use: research on cohorts, to sort and to compare slides. Not intended: any decision about a patient.",
    ]


def _sees(s: ModelSettings) -> list[str]:
    start = Path(s.encoder.weights).name  # a local file's folder is nobody's business
    if s.encoder.name == "features":
        return ["## What it sees", "", f"- Embeddings of width {s.encoder.width} that another tool has made of tiles; they must come "
                f"from the same encoder and tiles as those it learned from. M = {s.selection.memory_size}, selection {s.selection.mode}."]  # fmt: skip
    return [
        "## What it sees", "",
        f"- Tiles of {s.tile.size_px} px at {s.tile.mpp} µm/px, brightfield RGB; encoder {_plain(s.encoder.name)} "
        f"(weights at the start: {_plain(start)}); M = {s.selection.memory_size}, selection {s.selection.mode}.",
        "- Stain, scanner and focus as in the training slides; a slide outside their range is marked E_OUT_OF_RANGE.",
    ]  # fmt: skip


def _learned(facts: CardFacts) -> list[str]:
    lines = ["## What it learned from", ""]
    lines += _table(facts.splits)
    lines += ["", "Split by patient: no patient stands on two sides." if facts.names_patients else
              "Some slides name no patient and count as one each: slides of one patient may stand on two sides."]  # fmt: skip
    lines += ["", *(f"- {_plain(n)}: {_plain(v)}" for n, v in facts.trained)] if facts.trained else []
    return lines


def _table(grid: Grid) -> list[str]:
    rows = [f"| {' | '.join(map(_plain, row))} |" for row in grid.rows]
    note = ["", _plain(grid.note)] if grid.note else []
    return [f"| {' | '.join(map(_plain, grid.head))} |", "|---" * len(grid.head) + "|", *rows, *note]


def _worth(evaluation: Evaluation | None, settings: ModelSettings) -> list[str]:
    lines = ["## How good it is", ""]
    if evaluation is None:
        return [*lines, "No slide was kept aside to judge it: nothing is known of slides it has not seen."]
    bundle = {task.name: task.temperature for task in settings.tasks}
    for t in evaluation.tasks:
        lines += [f"### {_plain(t.task.name)}", "", _plain(sentence(evaluation, t)), ""]
        lines += [f"- {_plain(r)}" for r in remarks(evaluation, t)]
        lines += [
            f"- {_plain(metric_name(m, t.task))}: {interval_text(i)}" for m, i in t.metrics.items() if m != t.primary
        ]
        lines += [f"- {_plain(s)}" for s in (*_calibration(t, bundle[t.task.name]), *_spreads(t))]
        if t.operating:
            lines += ["", *_table(operating_grid(evaluation, t))]
        lines.append("")
    how = f"95 % intervals from {evaluation.n_resamples:,} resamples of patients, seed {evaluation.seed}."
    return [*lines, how]


def _calibration(t: TaskEvaluation, in_bundle: float) -> list[str]:
    if t.calibration is None:
        return []
    c = t.calibration
    if c.temperatures == (1.0,):
        return [f"calibration: none applied (temperature 1); expected calibration error {c.ece_after:.3f}"]
    applied = ", ".join(f"{temperature:.3f}" for temperature in c.temperatures)
    each = f"temperatures of the folds {applied}" if len(c.temperatures) > 1 else f"temperature {applied}"
    own = "" if c.temperatures == (in_bundle,) else f"; this model's is {in_bundle:.3f}, the folds' geometric mean"
    return [f"calibration: {each}; expected calibration error {c.ece_before:.3f} before, {c.ece_after:.3f} after{own}"]


def _spreads(t: TaskEvaluation) -> list[str]:
    found = []
    for spread, what in ((t.fold_spread, "folds"), (t.seed_spread, "seeds")):
        if spread is not None:
            found.append(f"{metric_name(t.primary, t.task)} over {spread.n} {what}: mean {spread.mean:.3f}, from {spread.low:.3f} to "
                         f"{spread.high:.3f}, standard deviation {spread.spread:.3f}")  # fmt: skip
    named = [f"{g.name} {interval_text(g.score, 2)} ({g.n} slides)" for g in t.sites if g.score is not None]
    return [*found, *([f"by site: {', '.join(named)}"] if named else [])]


def _warned(warnings: Sequence[str]) -> list[str]:
    return ["## Warnings", "", *(f"- {_plain(w)}" for w in warnings)] if warnings else []


def _limits(settings: ModelSettings, evaluation: Evaluation | None) -> list[str]:
    lines = ["## What is not known", ""]
    rest = ", and on what all others say together" if settings.selection.context else " alone"
    if any(t.temperature == 1.0 and t.kind not in ("regression", "survival") for t in settings.tasks):
        lines.append("- Probabilities are not calibrated (temperature 1).")
    if evaluation is None or not any(t.sites for t in evaluation.tasks):
        lines.append("- Slides of other sites than those it learned from were not tried.")
    return [
        *lines,
        "- Other stains, organs, scanners, frozen sections, pen and blur were not tested unless the slides above held them.",
        f"- A label rests on the tiles it selected{rest}; attention shows where the model looked, not where disease is.",
        "- Judge it on slides of your own before you use it: `wsi-ips evaluate RUN --manifest M`.",
    ]
