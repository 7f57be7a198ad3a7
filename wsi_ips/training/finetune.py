"""From a labelled manifest to a bundle and the proof of what it is worth: the story, told once.

Tasks, splits, one fit a seed and fold, one model from them, its report. Everything between lies in a work folder beside
the bundle; killed at any moment and started again, the same command goes on and ends with the same model.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.config import ModelSettings, TaskSettings, load_settings
from wsi_ips.engine.embeddings import open_cache
from wsi_ips.engine.environment import available_cores, default_devices
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.worker import make_deterministic
from wsi_ips.errors import ConfigError, Note
from wsi_ips.manifest import Manifest
from wsi_ips.minimums import refuse_too_old
from wsi_ips.model.bundle import check_bundle_target
from wsi_ips.recipe import AugmentSettings, FinetuneSettings, SplitSettings, TrainSettings
from wsi_ips.slide.metadata import fingerprint
from wsi_ips.tasks import TaskKind
from wsi_ips.training.cases import CaseTable
from wsi_ips.training.cohort import Cohort, members_of, resolve_tasks, tasks_of
from wsi_ips.training.fit import Fit, FitJob, run_fit
from wsi_ips.training.held import HeldSlides, Opener
from wsi_ips.training.machine import Machine
from wsi_ips.training.outcome import FinetuneResult, conclude, keep_model
from wsi_ips.training.sanity import shuffled
from wsi_ips.training.splits import make_cohort_split, make_folds
from wsi_ips.training.start import Start, choose_stages, make_start
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team, processes_here
from wsi_ips.training.told import Told
from wsi_ips.training.workfolder import work_folder

__all__ = ["FinetuneOptions", "FinetuneResult", "finetune_manifest", "label_columns"]


@dataclass(frozen=True)
class FinetuneOptions:
    """What a training is told besides its slides."""

    label_columns: tuple[str, ...] = ("label",)
    classes: tuple[str, ...] = ()  # order of the first column's classes; empty: sorted
    kinds: Mapping[str, TaskKind] | None = None  # kind of task by label column; default: by the number of classes
    events: Mapping[str, str] | None = None  # survival: column of events by column of times
    settings: Path | FinetuneSettings | None = None  # YAML with differences from the defaults, or settings
    init: Path | None = None  # bundle to start from
    seed: int | None = None  # instead of the settings' own
    folds: int | None = None
    seeds: int | None = None  # how many
    memory_gb: float | None = None
    n_resamples: int = 1000  # behind every interval
    sanity: bool = False  # train on shuffled labels, too, where nothing can be learned
    device: str = "auto"
    allow_mismatch: bool = False
    offline: bool = False
    cache: str | None = None  # folder of the embedding cache, or "off"; None: the default place
    strict: bool = False  # know slides by all their bytes instead of samples
    opener: Opener | None = None  # gives the slide of a record where it is no file; slide_path must then say all of its content
    quiet: bool = False


@dataclass(frozen=True)
class _Story:
    """What is decided before the first fit."""

    settings: FinetuneSettings
    members: tuple[Member, ...]
    cohorts: list[Cohort]  # one a fold, or the only one
    start: Start
    work: Path
    notes: tuple[Note, ...]
    contents: Mapping[str, str]  # hash of each slide's file by slide id


def finetune_manifest(manifest: Manifest, out: str | Path, options: FinetuneOptions) -> FinetuneResult:
    """Train on a manifest; write the bundle to `out`, checkpoints, cases and report to `<out>.training`.

    Raises:
        ConfigError, ManifestError, ModelError: refused, with every reason.
        StoppedError: the environment gave out; the same command goes on.
    """
    refuse_too_old()
    make_deterministic(max(1, available_cores() // processes_here()))
    check_bundle_target(out)
    settings = _settings(options)
    team = Team(default_devices(options.device, 1)[0])
    story = _prepare(manifest, Path(out), settings, options)
    jobs = [_job(story, cohort, seed) for seed in range(settings.split.n_seeds) for cohort in story.cohorts]
    first = [job.identity for job in jobs[: len(story.cohorts)]]
    with (
        work_folder(story.work, first, is_leader=team.is_leader),
        Reporter("training", 0, quiet=options.quiet or not team.is_leader) as reporter,
    ):
        cache = open_cache(options.cache, strict=options.strict)
        machine = Machine(settings.read, cache, team, reporter, _slides(settings, options))
        for note in story.notes:
            reporter.line(f"{note.code}: {note.message}")
        fits = []
        for job in jobs:
            reporter.line(f"{job.name}: {len(job.cohort.train)} training, {len(job.cohort.val)} validation, "
                          f"{len(job.cohort.test)} test slides; {story.start.why}")  # fmt: skip
            fits.append(run_fit(job, lambda job=job: story.start.make(job.settings, job.train.seed), machine))  # type: ignore[misc]
        refit = _refit(story, fits, machine)
        told = Told(
            manifest, story.settings, tuple(fits), refit, None, None, story.notes, story.start.why, options.n_resamples
        )
        identity = keep_model(Path(out), told, machine)
        if options.sanity:
            told = replace(told, sanity=_sanity(story, jobs[0], machine))
        return conclude(Path(out), story.work, told, identity, machine)


def _slides(settings: FinetuneSettings, options: FinetuneOptions) -> HeldSlides:
    """Hold what files cost to decode; what a function gives it may hold itself."""
    return HeldSlides(0.0 if options.opener else settings.read.hold_gb, options.opener)


def label_columns(
    settings: FinetuneSettings, columns: tuple[str, ...], events: Mapping[str, str] | None
) -> tuple[str, ...]:
    """Name the columns a manifest must be read with: those of the settings' tasks, or those given, and their events."""
    if "tasks" in settings.model.model_fields_set:
        return tuple(dict.fromkeys(c for t in settings.model.tasks for c in t.columns if c))
    return tuple(dict.fromkeys([*columns, *(events or {}).values()]))


def _settings(options: FinetuneOptions) -> FinetuneSettings:
    given = options.settings
    chosen = given if isinstance(given, FinetuneSettings) else load_settings(FinetuneSettings, given)
    train = {k: v for k, v in (("seed", options.seed), ("memory_gb", options.memory_gb)) if v is not None}
    split = {k: v for k, v in (("n_folds", options.folds), ("n_seeds", options.seeds)) if v is not None}
    # what was set in the model's settings and what is default decides later: they stay the very object
    return chosen.model_copy(update={"train": chosen.train.replace(**train), "split": chosen.split.replace(**split)})


def _prepare(manifest: Manifest, out: Path, settings: FinetuneSettings, options: FinetuneOptions) -> _Story:
    """Tasks, splits, start: everything that can be refused before the first slide is read."""
    asked = _asked(manifest, settings.model, options)
    draft = resolve_tasks(manifest, asked)
    members = members_of(manifest, draft)
    split, seed = settings.split, settings.train.seed
    cohorts = (
        make_folds(members, draft, split, seed)
        if split.n_folds > 1
        else [make_cohort_split(members, draft, split, seed)]
    )
    # folds share one scale, or their models could not be put together; a single training's comes from its own slides
    inside = {m.record.slide_id for c in cohorts for m in c.train}
    tasks = resolve_tasks(manifest, asked, [m.record for m in members if m.record.slide_id in inside])
    start = make_start(settings.model, tasks, members, init=options.init, offline=options.offline,
                       allow_mismatch=options.allow_mismatch, precision=settings.train.precision)  # fmt: skip
    asked_stages = settings.train.train_stages
    stages, why = choose_stages(asked_stages, start, max(len(c.train) for c in cohorts))
    start = start._replace(why=why)
    settings = settings.model_copy(update={
        "model": start.settings, "train": settings.train.replace(train_stages=stages),
    })  # fmt: skip
    notes = tuple(dict.fromkeys([
        *start.notes, *(n for c in cohorts for n in c.notes), *_unused(members, split), *_idle(settings.train, asked_stages),
    ]))  # fmt: skip
    contents = (_contents(cohorts, is_file=start.settings.encoder.name == "features", strict=options.strict)
                if options.opener is None else {m.record.slide_id: m.record.slide_path for m in members})  # fmt: skip
    return _Story(settings, members, cohorts, start, out.with_name(out.name + ".training"), notes, contents)


def _asked(manifest: Manifest, model: ModelSettings, options: FinetuneOptions) -> tuple[TaskSettings, ...]:
    first = options.label_columns[0]
    if "tasks" in model.model_fields_set:
        if options.label_columns != ("label",) or options.classes or options.kinds or options.events:
            raise ConfigError(
                "the settings name tasks, and the command line labels, classes, kinds or events: say it in one place"
            )
        return model.tasks
    classes = {first: options.classes} if options.classes else None
    return tasks_of(manifest, options.label_columns, classes, options.kinds, options.events)


def _unused(members: tuple[Member, ...], split: SplitSettings) -> list[Note]:
    """Say what of the manifest has no part in this training, though it looks as if it should."""
    folds = sorted({k for m in members for k in m.record.folds})
    tests = [m for m in members if m.record.split == "test"]
    if folds and split.n_folds == 0:
        return [Note("E_FOLDS_UNUSED", f"columns {', '.join(folds)} are not used; --folds cross-validates by them")]
    unused = sum(not m.record.split for m in members if m.is_labelled)
    if any(m.record.split for m in members) and unused and not split.n_folds:
        return [Note("E_NO_SPLIT", f"{unused} labelled slides have an empty 'split' and are not used")]
    if tests and split.n_folds:
        return [Note("E_TEST_UNUSED", f"{len(tests)} slides of split test are in no fold and are not judged here; "
                     "classify them with the bundle, then evaluate")]  # fmt: skip
    return []


def _idle(train: TrainSettings, asked_stages: int | None) -> list[Note]:
    """Say which settings have no effect when the head alone learns, from embeddings, and which work against another."""
    notes = []
    if train.class_weights == "balanced" and train.sampling == "balanced":
        notes.append(Note("E_SETTING_UNUSED", "class_weights and sampling are both balanced: rare classes count twice over; "
                          "use one of them"))  # fmt: skip
    if train.train_stages != 0:
        return notes
    usual = AugmentSettings()
    idle = [f"augment.{k}" for k in AugmentSettings.model_fields
            if k != "bag_mix" and getattr(train.augment, k) != getattr(usual, k)]  # fmt: skip
    idle += ["rescan.mode"] if train.rescan.mode == "stale" else []
    idle += ["layer_decay"] if train.layer_decay != 1.0 else []
    idle += ["train_stages"] if asked_stages not in (None, 0) else []
    text = (
        f"only the head learns, from embeddings that stay the same: {', '.join(idle)} have no effect; see train_stages"
    )
    return notes + ([Note("E_SETTING_UNUSED", text)] if idle else [])


def _contents(cohorts: list[Cohort], *, is_file: bool, strict: bool) -> dict[str, str]:
    """Sample (or hash) every slide and hash every mask, so that a training does not go on from what other tiles have taught."""
    found = {}
    for m in (m for c in cohorts for m in (*c.train, *c.val, *c.test)):
        r = m.record
        if r.slide_id not in found:
            try:
                found[r.slide_id] = fingerprint((r.features_path or "") if is_file else r.slide_path, strict=strict)["sha256"]
                if r.mask_path and not is_file:
                    found[r.slide_id] += fingerprint(r.mask_path, strict=True)["sha256"]
            except OSError:
                found[r.slide_id] = ""  # named as unusable when it is opened
    return found


def _job(story: _Story, cohort: Cohort, seed: int) -> FitJob:
    train: TrainSettings = story.settings.train
    folder = story.work / f"seed_{train.seed + seed}" / (cohort.name.replace(" ", "_") or "fit")
    name = f"seed {train.seed + seed}" + (f", {cohort.name}" if cohort.name else "")
    return FitJob(name, folder, cohort.name or "test", cohort, story.settings.model, train.replace(seed=train.seed + seed),
                  story.start.is_scratch, story.start.is_new_head, story.start.hash, story.contents)  # fmt: skip


def _sanity(story: _Story, job: FitJob, machine: Machine) -> CaseTable:
    """Train on shuffled labels and judge on slides whose shuffled labels it has not seen: chance is expected."""
    cohort = shuffled(job.cohort, job.train.seed)
    chance = replace(job, name="shuffled labels", folder=story.work / "sanity", part="shuffled", cohort=cohort)
    fit = run_fit(chance, lambda: story.start.make(job.settings, job.train.seed), machine)
    return fit.cases.in_part("shuffled")


def _refit(story: _Story, fits: list[Fit], machine: Machine) -> Fit | None:
    """Train once more on all slides of the folds, for as many epochs as the first seed's folds needed in the middle."""
    if len(story.cohorts) == 1 or story.settings.split.final != "refit":
        return None
    first = fits[0].job
    folds = [f for f in fits if f.job.train.seed == first.train.seed]
    if not all(f.is_complete for f in folds):
        return None  # the same command goes on with the fold that ended early
    everyone = {
        m.record.slide_id: m for f in folds for m in (*f.job.cohort.train, *f.job.cohort.val, *f.job.cohort.test)
    }
    cohort = Cohort(tuple(everyone[k] for k in sorted(everyone)), (), (), ())
    epochs = max(round(statistics.median(f.best_epoch for f in folds)), first.train.random_epochs + 1)
    train = first.train.replace(epochs=epochs, patience=0)
    job = replace(first, name="refit", folder=story.work / "refit", part="test", cohort=cohort, train=train)
    return run_fit(job, lambda: story.start.make(job.settings, train.seed), machine)
