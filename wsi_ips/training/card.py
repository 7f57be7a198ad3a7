"""From a trained model to a bundle that says what it is: the model card and what travels along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_ips.config import TaskSettings
from wsi_ips.engine.colour import cohort_range
from wsi_ips.engine.environment import package_versions
from wsi_ips.errors import StoppedError
from wsi_ips.manifest import Manifest
from wsi_ips.model.bundle import save_bundle
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.cohort import Cohort, Member
from wsi_ips.training.train import Epoch, TrainedModel

__all__ = ["model_card", "save_trained"]


def save_trained(
    out: str | Path, trained: TrainedModel, cohort: Cohort, train: TrainSettings, manifest: Manifest
) -> str:
    """Write the bundle of a finished training; returns its hash.

    Raises:
        ModelError: the folder holds something else.
    """
    extra: dict[str, Any] = {
        "training": {
            "settings": train.model_dump(mode="json"), "best_epoch": trained.best_epoch,
            "history": [_untimed(e) for e in trained.history],
            "manifest_sha256": manifest.sha256, "n_train": len(cohort.train), "n_val": len(cohort.val),
            "n_patients": len({m.record.patient_id for m in (*cohort.train, *cohort.val)}),
            "notes": dict(Counter(n.code for n in (*cohort.notes, *trained.notes))),
        },
        "colour_range": {k: list(v) for k, v in cohort_range(trained.colours).items()},
        "packages": package_versions(),
    }  # fmt: skip
    card = model_card(trained, cohort, train)
    try:
        return save_bundle(out, trained.classifier, trained.settings, card=card, extra=extra)
    except OSError as error:
        raise StoppedError(f"{out}: the bundle cannot be written ({error.strerror})") from error


def _untimed(epoch: Epoch) -> dict[str, Any]:
    """An epoch without its seconds: the same training gives the same bundle, down to its hash."""
    return {k: v for k, v in epoch._asdict().items() if k != "seconds"}


def model_card(trained: TrainedModel, cohort: Cohort, train: TrainSettings) -> str:
    """Say in Markdown what the model is for, what it learned from and where it must not be trusted."""
    s, best = trained.settings, trained.history[trained.best_epoch - 1] if trained.best_epoch else trained.history[-1]
    lines = [
        f"# Slide classifier: {', '.join(t.name for t in s.tasks)}", "",
        "**Research use only, not for diagnosis.** A label rests on the selected tiles alone; attention shows where the model "
        "looked, not where disease is.", "",
        "## What it answers", "",
        *(f"- `{t.name}` ({t.kind}): {', '.join(t.classes)}" for t in s.tasks), "",
        "## What it sees", "",
        f"- Tiles of {s.tile.size_px} px at {s.tile.mpp} µm/px, brightfield RGB; encoder `{s.encoder.name}` "
        f"(weights at the start: {Path(s.encoder.weights).name}); M = {s.selection.memory_size}, selection {s.selection.mode}.",
        "- Stain, scanner and focus as in the training slides; a slide outside their range is marked E_OUT_OF_RANGE.", "",
        "## What it learned from", "",
        "| | slides | patients | " + " | ".join(f"{t.name}: {c}" for t in s.tasks for c in t.classes) + " |",
        "|---|---|---|" + "---|" * sum(len(t.classes) for t in s.tasks),
        *(_side(name, members, s.tasks) for name, members in (("training", cohort.train), ("validation", cohort.val))), "",
        f"Split by patient. Best of {len(trained.history)} epochs by validation: epoch {trained.best_epoch}, AUROC "
        f"{best.val_auroc:.3f}, loss {best.val_loss:.4f}. This figure chose the epoch, so it flatters; judge on other slides.",
        f"Seed {train.seed}; learning rate {train.lr}; all settings stand in config.json.", "",
        "## What is not known", "",
        "- Probabilities are not calibrated. No external cohort was tried. Other stains, organs, scanners, frozen sections, pen "
        "and blur were not tested unless the training slides held them.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _side(name: str, members: Sequence[Member], tasks: tuple[TaskSettings, ...]) -> str:
    counts = [Counter(m.targets[i] for m in members)[k] for i, t in enumerate(tasks) for k in range(len(t.classes))]
    patients = len({m.record.patient_id for m in members})
    return f"| {name} | {len(members)} | {patients} | " + " | ".join(map(str, counts)) + " |"
