"""From a labelled manifest to a bundle: the story of one training, told once for command line and pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wsi_ips.config import EncoderSettings, ModelSettings, TaskSettings, load_settings
from wsi_ips.engine.environment import available_cores, default_devices
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.worker import make_deterministic
from wsi_ips.errors import ConfigError, Note
from wsi_ips.manifest import Manifest
from wsi_ips.model.bundle import check_bundle_target, load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.hub import resolve_architecture
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.training.card import save_trained
from wsi_ips.training.cohort import split_cohort, tasks_of
from wsi_ips.training.train import TrainedModel, build_classifier, finetune

__all__ = ["FinetuneOptions", "finetune_manifest"]

_MANY_SLIDES = 200  # fewer do not carry an encoder


@dataclass(frozen=True)
class FinetuneOptions:
    """What a training is told besides its slides."""

    label_columns: tuple[str, ...] = ("label",)
    classes: tuple[str, ...] = ()  # order of the first column's classes; empty: sorted
    settings: Path | FinetuneSettings | None = None  # YAML with differences from the defaults, or settings
    init: Path | None = None  # bundle to start from
    seed: int | None = None  # instead of the settings' own
    device: str = "auto"
    allow_mismatch: bool = False
    offline: bool = False
    quiet: bool = False


def finetune_manifest(manifest: Manifest, out: str | Path, options: FinetuneOptions) -> str:
    """Train on a manifest and write the bundle; returns a line about it.

    Raises:
        ConfigError, ManifestError, ModelError: refused, with every reason.
    """
    make_deterministic(available_cores())
    check_bundle_target(out)
    given = options.settings
    chosen = given if isinstance(given, FinetuneSettings) else load_settings(FinetuneSettings, given)
    train = chosen.train if options.seed is None else chosen.train.replace(seed=options.seed)
    classes = {options.label_columns[0]: options.classes} if options.classes else None
    tasks = tasks_of(manifest, options.label_columns, classes)
    cohort = split_cohort(manifest, tasks, val_fraction=chosen.split.val_fraction, seed=train.seed)
    settings, classifier, notes = _start(chosen.model, tasks, train.seed, options)
    from_scratch = settings.encoder.weights == "none" and options.init is None
    stages, why = _stages(train.train_stages, len(cohort.train), from_scratch=from_scratch)
    classifier.to(default_devices(options.device, 1)[0])
    with Reporter("training", 0, quiet=options.quiet) as reporter:
        reporter.line(f"{len(cohort.train)} training, {len(cohort.val)} validation slides; {why}")
        for note in (*cohort.notes, *notes):
            reporter.line(f"{note.code}: {note.message}")
        trained = finetune(
            cohort,
            settings,
            train.replace(train_stages=stages),
            chosen.read,
            classifier=classifier,
            from_scratch=from_scratch,
            reporter=reporter,
        )
    trained.notes.extend(notes)
    bundle_hash = save_trained(out, trained, cohort, train, manifest)
    return _summary(trained, out, bundle_hash)


def _start(
    model: ModelSettings, tasks: tuple[TaskSettings, ...], seed: int, options: FinetuneOptions
) -> tuple[ModelSettings, IPSClassifier, list[Note]]:
    """Build what training starts from; the encoder must see what it was trained on."""
    settings = model.replace(tasks=[t.model_dump() for t in tasks])
    if options.init is None:
        own = _own_tile_px(settings.encoder, options.offline)
        differs = own is not None and own != settings.tile.size_px
        text = f"encoder {settings.encoder.name} was trained on {own} px, the tiles are {settings.tile.size_px} px"
        notes = _allowed(text, differs, options)
        return settings, build_classifier(settings, seed=seed, offline=options.offline), notes
    bundle = load_bundle(options.init)
    settings = _on_top_of(bundle.settings, model).replace(tasks=[t.model_dump() for t in tasks])
    text = f"bundle {options.init.name} was trained on {bundle.settings.tile}, the tiles are {settings.tile}"
    notes = _allowed(text, settings.tile != bundle.settings.tile, options)
    torch.manual_seed(seed)
    if settings == bundle.settings:
        return settings, bundle.classifier, notes
    return settings, IPSClassifier(bundle.classifier.encoder, settings), notes


def _on_top_of(own: ModelSettings, asked: ModelSettings) -> ModelSettings:
    """Take a bundle's settings with what was set otherwise; its weights decide encoder and attention."""
    said = asked.model_fields_set
    for name in ("encoder", "attention"):
        if name in said and getattr(asked, name) != getattr(own, name):
            raise ConfigError(f"model.{name}: a training that starts from a bundle keeps the bundle's; leave it out")
    return own.replace(**{k: getattr(asked, k).model_dump() for k in ("tile", "tissue", "selection") if k in said})


def _allowed(text: str, differs: bool, options: FinetuneOptions) -> list[Note]:
    """Refuse a mismatch, or record it when it was asked for."""
    if differs and not options.allow_mismatch:
        raise ConfigError(f"{text}: set tile to what it was trained on, or say --allow-mismatch")
    return [Note("E_MISMATCH", text)] if differs else []


def _own_tile_px(encoder: EncoderSettings, offline: bool) -> int | None:
    """Side of the tiles that an encoder's own weights were trained on; None for a start from scratch or a local file."""
    if encoder.weights != "pretrained":
        return None
    size = resolve_architecture(encoder.name, offline).cfg.get("input_size")
    return int(size[-1]) if size else None


def _stages(asked: int | None, n_train: int, *, from_scratch: bool) -> tuple[int, str]:
    """Decide which stages of the encoder learn, and say why."""
    if asked is not None:
        return asked, f"encoder stages that learn: {'all' if asked < 0 else asked}, as set"
    if from_scratch:
        return -1, "the encoder is untrained, so all of it learns"
    if n_train < _MANY_SLIDES:
        return 0, f"fewer than {_MANY_SLIDES} training slides: the encoder stays as it is, the head learns"
    return 1, "the last stage of the encoder and the head learn"


def _summary(trained: TrainedModel, out: str | Path, bundle_hash: str) -> str:
    best = trained.history[trained.best_epoch - 1]
    return (f"bundle {out} ({bundle_hash[:12]}): best epoch {trained.best_epoch} of {len(trained.history)}, "
            f"validation AUROC {best.val_auroc:.3f} (chose the epoch, so it flatters)")  # fmt: skip
