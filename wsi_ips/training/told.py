"""What a finished training tells: its report's facts and its model's card, from the fits alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_ips.config import ModelSettings, dump_settings
from wsi_ips.engine.environment import package_versions
from wsi_ips.errors import Note
from wsi_ips.manifest import Manifest
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.report.figures import Learning
from wsi_ips.report.training_page import Grid
from wsi_ips.training.card import CardFacts, model_card
from wsi_ips.training.cases import CaseTable
from wsi_ips.training.evaluation import Evaluation, evaluate_cases
from wsi_ips.training.evaluation_report import ReportFacts
from wsi_ips.training.fit import Fit
from wsi_ips.training.loop import Epoch
from wsi_ips.training.targets import Member
from wsi_ips.training.wording import splits_grid

__all__ = ["Told", "card_of", "facts_of"]

_FACTS = {"E_SPLIT_MADE": "splits", "E_NEW_HEAD": "start"}  # notes that are no warnings, and under what they are told


@dataclass(frozen=True)
class Told:
    """Everything a report is made from."""

    manifest: Manifest
    settings: FinetuneSettings
    fits: tuple[Fit, ...]
    refit: Fit | None
    evaluation: Evaluation | None
    sanity: CaseTable | None
    notes: tuple[Note, ...] = ()  # of splits and start
    why: str = ""  # which stages learned
    n_resamples: int = 1000

    @property
    def all_notes(self) -> tuple[Note, ...]:
        """Notes of the story and of every fit, each once."""
        fits = [n for f in (*self.fits, *([self.refit] if self.refit else [])) for n in f.notes]
        return tuple(dict.fromkeys([*self.notes, *fits]))


def facts_of(told: Told) -> ReportFacts:
    """Gather what the report says besides its numbers."""
    first = told.fits[0]
    several = len(told.fits) > 1
    learning = tuple(
        Learning(f.job.name if several else "", [e.loss for e in f.history], [e.val_loss for e in f.history],
                 [e.val_score for e in f.history], f.best_epoch) for f in told.fits
    )  # fmt: skip
    recall = [e.recall for e in first.history]
    learns = told.settings.train.train_stages != 0  # else no tile goes through the encoder but once, to be kept
    is_stale = told.settings.train.rescan.mode == "stale" and not all(np.isnan(recall))
    is_leak, sanity_line, sanity_extra = _sanity(told)
    made = _made_from(told) + ((("sanity check", sanity_line),) if sanity_line and not is_leak else ())
    return ReportFacts(
        title="Finetuning", made_from=made, splits=_splits(told), learning=learning,
        warnings=_warnings(told) + ((sanity_line,) if is_leak else ()),
        epochs=_epochs(told), n_encoded=tuple(float(_forwards(told, e)) for e in first.history) if learns else (),
        recall=tuple(recall) if is_stale else (), min_recall=told.settings.train.rescan.min_recall if is_stale else None,
        settings=dump_settings(told.settings), versions=tuple(package_versions().items()),
        extra={"fits": [{"name": f.job.name, "best_epoch": f.best_epoch, "n_scanned": [e.n_scanned for e in f.history],
                         "n_learned": [e.n_learned for e in f.history],
                         "encoder_forwards": [_forwards(told, e) for e in f.history],
                         "recall": [None if np.isnan(e.recall) else e.recall for e in f.history],
                         "true_recall": [None if np.isnan(e.true_recall) else e.true_recall for e in f.history],
                         "seconds": round(sum(e.seconds for e in f.history), 1),
                         "temperatures": [t.temperature for t in f.tasks]} for f in told.fits]} | sanity_extra,
    )  # fmt: skip


def _forwards(told: Told, e: Epoch) -> int:
    """Tiles through the encoder in an epoch's training: scored once each, learned from twice each (two-pass gradient)."""
    return e.n_scanned + (2 * e.n_learned if told.settings.train.train_stages != 0 else 0)


def _epochs(told: Told) -> Grid:
    """Every epoch of every training in numbers."""
    def text(value: float, digits: int = 4) -> str:
        return "" if np.isnan(value) else f"{value:.{digits}f}"

    rows = tuple(
        (f.job.name, str(e.epoch), text(e.loss), text(e.val_loss), text(e.val_score), str(e.n_scanned), str(e.n_learned),
         str(_forwards(told, e)), text(e.recall, 3), text(e.true_recall, 3), text(e.seconds, 1))
        for f in (*told.fits, *([told.refit] if told.refit else [])) for e in f.history
    )  # fmt: skip
    head = ("training", "epoch", "loss", "val loss", "val score", "scored", "learned", "encoder forwards", "recall (audit)",
            "recall (count)", "seconds")  # fmt: skip
    return Grid(head, rows, "Tiles scored to select, and tiles learned from; encoder forwards: scored once, learned from twice. Passes over "
                "validation slides, and those made only to count the recall, are not in them. Recall: found share of the true top M, as "
                "the audit estimates it, and as a pass over all tiles counts it.")  # fmt: skip


def card_of(told: Told, settings: ModelSettings) -> str:
    """Write the model card."""
    is_leak, sanity_line, _ = _sanity(told)
    made = _made_from(told) + ((("sanity check", sanity_line),) if sanity_line and not is_leak else ())
    warnings = _warnings(told) + ((sanity_line,) if is_leak else ())
    named = all(n.code != "E_NO_PATIENT" for n in told.all_notes)
    return model_card(settings, CardFacts(_splits(told), told.evaluation, made, warnings, named))


def _warnings(told: Told) -> tuple[str, ...]:
    return tuple(f"{n.code}: {n.message}" for n in told.all_notes if n.code not in _FACTS)


def _made_from(told: Told) -> tuple[tuple[str, str], ...]:
    train, first = told.settings.train, told.fits[0]
    n_seeds = len({f.job.train.seed for f in told.fits})
    n_folds = len(told.fits) // n_seeds
    if told.refit is not None:
        model = f"refit on all {len(told.refit.job.cohort.train)} slides, {told.refit.job.train.epochs} epochs"
    else:
        model = f"ensemble of {n_folds} folds" if n_folds > 1 else "one training"
    best = [f.best_epoch for f in told.fits]
    chosen = ", ".join(map(str, best)) if len(best) <= 8 else f"{min(best)} to {max(best)}, median {np.median(best):g},"
    return (
        ("model", model + (f"; first of {n_seeds} seeds" if n_seeds > 1 else "")),
        ("what learned", told.why),
        ("epoch chosen on validation slides" if train.keep == "best" else "epoch kept, the last", f"{chosen} of {len(first.history)}"),
        ("seed", str(train.seed)), ("peak learning rate", f"{train.lr:g}"), ("slides a step", str(train.batch_slides)),
        ("manifest", f"{told.manifest.path.name}, SHA-256 {told.manifest.sha256[:12]}"),
        *((_FACTS[n.code], n.message) for n in told.all_notes if n.code in _FACTS),
    )  # fmt: skip


def _splits(told: Told) -> Grid:
    sides: dict[str, tuple[Member, ...]] = {}
    one_seed = [f for f in told.fits if f.job.train.seed == told.fits[0].job.train.seed]
    for f in one_seed:
        name = f"{f.job.cohort.name}: " if f.job.cohort.name else ""
        cohort = f.job.cohort
        sides |= {f"{name}training": cohort.train, f"{name}validation": cohort.val, f"{name}test": cohort.test}
    return splits_grid(sides, told.fits[0].tasks)


def _sanity(told: Told) -> tuple[bool, str, dict[str, object]]:
    """Whether the training on shuffled labels found more than chance, what it found in words, and in numbers."""
    if told.sanity is None or not len(told.sanity):
        return False, "", {}
    found = evaluate_cases(told.sanity, n_resamples=told.n_resamples, everyone=True).tasks[0]
    value = found.metrics[found.primary]
    chance = 0.5 if found.primary in ("auroc", "c_index") else 0.0
    verdict = (
        "more than chance: labels reach the held-out slides in some way; look for patients on two sides"
        if value.low > chance
        else "as chance has it: the way from slides to figures gives nothing away (doubles under two names would not show)"
    )
    line = (f"sanity check, trained on shuffled labels: {found.primary} {value.value:.3f} (95 % interval {value.low:.3f} to "
            f"{value.high:.3f}) on {value.n} held-out slides; {chance:g} is chance; {verdict}")  # fmt: skip
    return value.low > chance, line, {
        "sanity": {"metric": found.primary, "value": value.value, "low": value.low, "high": value.high, "n": value.n}
    }
