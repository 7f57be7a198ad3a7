"""From finished fits to one bundle and the proof of what it is worth.

One fit gives its own model; several folds give an ensemble of all, or a refit on everybody. What is judged is never
what was learned from or chosen by: the test split, or each slide by the fold that did not see it. Without either the
validation slides are shown, with the remark that they flatter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_ips.config import ModelSettings
from wsi_ips.errors import Note, StoppedError
from wsi_ips.files import write_whole
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.bundle_config import read_bundle_settings
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.ensemble import EnsembleClassifier
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.cases import CaseTable, join_cases
from wsi_ips.training.evaluation import Evaluation, evaluate_cases, judged_cases
from wsi_ips.training.evaluation_report import write_report
from wsi_ips.training.fit import Fit
from wsi_ips.training.machine import Machine
from wsi_ips.training.told import Told, card_of, facts_of
from wsi_ips.training.wording import sentence
from wsi_ips.training.worst import draw_worst

__all__ = ["FinetuneResult", "conclude", "keep_model"]


@dataclass(frozen=True)
class FinetuneResult:
    """What `finetune` ends with."""

    bundle: Path
    hash: str  # of the bundle
    work: Path  # folder of fits, cases and report
    fits: tuple[Fit, ...]  # one a seed and fold, in this order
    cases: CaseTable  # what was judged: test slides, every slide by the fold that did not learn from it, or validation
    evaluation: Evaluation | None  # None without any such slide

    def text(self) -> str:
        """Say in two lines how it went."""
        best = [f.best_epoch for f in self.fits]
        kept = ", ".join(map(str, best)) if len(best) <= 8 else f"{min(best)} to {max(best)}"
        lines = [f"bundle {self.bundle} ({self.hash[:12]}): kept epoch {kept} of {len(self.fits[0].history)}"]
        if self.evaluation is not None:
            several = len(self.evaluation.tasks) > 1
            lines += [(f"{t.task.name}: " if several else "") + sentence(self.evaluation, t) for t in self.evaluation.tasks]
        lines += [note.message for note in _unjudged(self.evaluation)]
        return "\n".join([*lines, f"see {self.work / 'index.html'}"])


def keep_model(out: Path, told: Told, machine: Machine) -> str:
    """Write the bundle before anything is judged, so that no error of judging can cost it; returns its hash.

    Args:
        out: bundle to write.
        told: the fits and what they were made from.
        machine: the leader writes.

    Raises:
        StoppedError: the bundle cannot be written.
    """
    if not machine.team.is_leader:
        return ""
    classifier, chosen, extra = _model(told.fits, told.refit)
    extra["training"] |= {"manifest_sha256": told.manifest.sha256, "warnings": sorted({n.code for n in told.all_notes})}
    try:
        return save_bundle(out, classifier, chosen, card=card_of(told, chosen), extra=extra)
    except OSError as error:
        raise StoppedError(f"{out}: the bundle cannot be written ({error.strerror}); make room and start the same "
                           "command again") from error  # fmt: skip


def conclude(out: Path, work: Path, told: Told, identity: str, machine: Machine) -> FinetuneResult:
    """Judge; write cases, report and the card with the figures.

    Args:
        out: the bundle.
        work: folder of the fits; the report goes there.
        told: the fits and what they were made from; the evaluation is still to come.
        identity: hash of the bundle.
        machine: the leader writes and draws; the others are done.

    Raises:
        StoppedError: the report cannot be written.
    """
    everything = join_cases([f.cases for f in told.fits])
    judged = everything.rows([i for i, part in enumerate(everything.parts) if part != "val"])
    if not len(judged):
        judged = everything  # validation slides are better than nothing, and the report says what their figures are not
    # validation cases choose the thresholds where a test split judges; folds judge by themselves
    chosen_by = everything if "test" in judged.parts else judged
    evaluation = evaluate_cases(chosen_by, n_resamples=told.n_resamples) if len(judged) else None
    told = replace(told, evaluation=evaluation, notes=(*told.notes, *_unjudged(evaluation)))
    if machine.team.is_leader:
        card = card_of(told, read_bundle_settings(out))
        try:
            write_whole(out / "README.md", card.encode())
        except OSError as error:
            raise StoppedError(f"{out}: the card cannot be written ({error.strerror})") from error
        facts = facts_of(told)
        if evaluation is not None:
            judging = [f for f in told.fits if f.job.train.seed == told.fits[0].job.train.seed]
            drawn = draw_worst(work, judging, evaluation, machine)
            more = tuple(f"{n.code}: {n.message}" for n in drawn.notes)
            facts = replace(facts, reports=drawn.reports, overlays=drawn.overlays, warnings=facts.warnings + more)
        write_report(work, evaluation, everything, facts)
    return FinetuneResult(
        out, identity, work, told.fits, judged_cases(judged)[0] if len(judged) else judged, evaluation
    )


def _unjudged(evaluation: Evaluation | None) -> tuple[Note, ...]:
    """Say that no slide has judged that had no part in the making."""
    if evaluation is not None and evaluation.judged != "val":
        return ()
    shown = "" if evaluation is None else "; figures are those of the validation slides, and flatter"
    return (Note("E_NO_TEST", f"no test slides: nothing is known of slides that had no part in its making{shown}"),)


def _model(
    fits: Sequence[Fit], refit: Fit | None
) -> tuple[IPSClassifier | EnsembleClassifier, ModelSettings, dict[str, Any]]:
    """Choose what becomes the bundle: of several seeds the first."""
    first = [f for f in fits if f.job.train.seed == fits[0].job.train.seed]
    bundles = [load_bundle(f.model) for f in ([refit] if refit is not None else first)]
    tasks = _common_temperature([f.tasks for f in first])
    settings = bundles[0].settings.replace(tasks=[t.model_dump() for t in tasks])
    members = [b.classifier for b in bundles if isinstance(b.classifier, IPSClassifier)]
    for member in members:
        member.settings = settings
    classifier = members[0] if len(members) == 1 else EnsembleClassifier(members)
    extra = dict(bundles[0].extra)
    if len(members) > 1:
        extra["training"] = {"members": [b.extra["training"] for b in bundles]}
        extra["learned_from"] = sorted({p for b in bundles for p in b.extra.get("learned_from", ())})
        ranges = [b.extra["colour_range"] for b in bundles]
        extra["colour_range"] = {
            k: [min(r[k][0] for r in ranges if k in r), max(r[k][1] for r in ranges if k in r)] for k in ranges[0]
        }
    return classifier, settings, extra


def _common_temperature(tasks: Sequence[tuple[TaskSettings, ...]]) -> tuple[TaskSettings, ...]:
    """Give each task the geometric mean of its folds' temperatures; each was found on validation slides of its own."""
    return tuple(same[0].replace(temperature=round(statistics.geometric_mean(t.temperature for t in same), 6))
                 for same in zip(*tasks, strict=True))  # fmt: skip
