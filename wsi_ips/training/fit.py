"""One training of a cohort from start to calibrated model and its held-out cases, in a folder of its own.

A fit is done when its `fit.json` stands; a second start reads it instead of training again. Until then the checkpoint
beside it says how far it came. Validation slides choose the epoch and the temperature; test slides are opened once,
after that.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.engine.colour import cohort_range
from wsi_ips.engine.environment import package_versions
from wsi_ips.errors import ManifestError, ModelError, Note, StoppedError
from wsi_ips.files import write_whole
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.recipe import TrainSettings
from wsi_ips.stats.calibration import fit_temperature
from wsi_ips.tasks import TaskSettings, split_outputs, split_targets
from wsi_ips.training.bags import Bags, FileBags, FrozenBags, PixelBags, Planned
from wsi_ips.training.cases import CaseTable, case_bytes, read_cases
from wsi_ips.training.cohort import Cohort, refuse_absent
from wsi_ips.training.events import EventLog
from wsi_ips.training.labelling import label_readable, label_slides
from wsi_ips.training.loop import Epoch, Loop, Setup, TrainedModel
from wsi_ips.training.losses import balanced_weights
from wsi_ips.training.machine import Machine, computing_with, memory_told
from wsi_ips.training.norms import measure_norms, measure_projector
from wsi_ips.training.workfolder import patient_hash

__all__ = ["Fit", "FitJob", "run_fit"]


@dataclass(frozen=True)
class FitJob:
    """One training to do."""

    name: str  # "seed 0", "seed 0, fold 2"
    folder: Path
    part: str  # what its test slides are called among all cases: "test", "fold 2"
    cohort: Cohort
    settings: ModelSettings  # tasks resolved
    train: TrainSettings  # stages decided
    is_scratch: bool  # the encoder is untrained, so the statistics it is frozen on are measured first
    is_new_head: bool  # so is the projector, and so are its
    start_hash: str  # of what it starts from: a bundle, or a local file of weights
    contents: Mapping[str, str]  # hash of each slide's file by slide id

    @property
    def identity(self) -> str:
        """Hash of all that decides the trained weights: settings, slides that teach or choose, targets, start."""
        sides = {side: self._side(side) for side in ("train", "val")}
        train = self.train.model_dump(mode="json", exclude={"checkpoint_seconds", "memory_gb", "micro_batch"})
        content = [self.settings.model_dump(mode="json"), train, sides, self.is_scratch, self.start_hash]
        return _hash(content)

    @property
    def judged_identity(self) -> str:
        """Hash of all that decides the figures: the weights' identity, test slides, sites."""
        sites = [m.record.site for side in ("val", "test") for m in getattr(self.cohort, side)]
        return _hash([self.identity, self._side("test"), sites])

    def _side(self, side: str) -> list[list[object]]:
        return [[m.record.slide_id, m.record.patient_id, m.record.mpp, m.record.mask_path,
                 self.contents.get(m.record.slide_id, ""), *map(str, m.targets)]
                for m in getattr(self.cohort, side)]  # fmt: skip


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Fit(NamedTuple):
    """What a training ended with; its model stands in `folder / "model"`."""

    job: FitJob
    tasks: tuple[TaskSettings, ...]  # with temperatures
    best_epoch: int
    history: list[Epoch]
    notes: tuple[Note, ...]
    cases: CaseTable  # validation ("val") and test slides
    is_complete: bool = True  # False: a slide could not be read any more, and the training ended early

    @property
    def model(self) -> Path:
        """Its bundle."""
        return self.job.folder / "model"


def run_fit(job: FitJob, start: Callable[[], IPSClassifier], machine: Machine) -> Fit:
    """Train, calibrate, judge; or read what an earlier start has finished.

    Args:
        job: what.
        start: makes the model that training starts from; on the CPU.
        machine: on what.

    Raises:
        ManifestError: too few slides can be used. ModelError, StoppedError: see `Loop.run`.
    """
    found = _read_done(job)
    if found is not None:
        machine.reporter.line(f"{job.name}: done before")
        return found
    classifier = start()
    stages = -1 if job.train.train_stages is None else job.train.train_stages
    classifier.encoder.set_trainable(stages)
    classifier.to(machine.team.device)
    bags = _bags(job, machine, learns=classifier.takes_tiles and stages != 0)
    learn, notes = bags.plan(job.cohort.train)
    held, more = bags.plan(job.cohort.val)
    notes += more
    for note in notes:
        machine.reporter.line(f"{note.code}: {note.message}")
    _refuse_few(job, learn, held)
    if job.is_scratch:
        sample = PixelBags(job.settings, machine.read, slides=machine.slides)
        measure_norms(classifier, learn, sample, job.train.seed)
    if job.is_new_head and job.settings.attention.projector_norm == "batch":
        measure_projector(classifier, learn, bags, job.train.seed)
    weights = None
    if job.train.class_weights == "balanced":
        weights = balanced_weights(np.array([p.member.targets for p in learn], dtype=np.float64), job.settings.tasks)
    log = EventLog(job.folder) if machine.team.is_leader else None
    setup = Setup(job.settings, job.train, bags, machine.team, job.folder, job.identity, weights,
                  log.epoch if log else lambda _: None)  # fmt: skip
    threads = 1 if isinstance(bags, FileBags) else torch.get_num_threads()
    with computing_with(threads), memory_told(job.name, job.settings.selection.chunk_size):
        trained = Loop(classifier, setup, machine.reporter).run(learn, held)
        return _finish(job, trained, bags, held, notes, machine)


def _bags(job: FitJob, machine: Machine, *, learns: bool) -> Bags:
    if job.settings.encoder.name == "features":
        return FileBags(job.settings, machine.read)
    if not learns:
        return FrozenBags(job.settings, machine.read, machine.cache, machine.slides)
    return PixelBags(job.settings, machine.read, slides=machine.slides)


def _refuse_few(job: FitJob, learn: list[Planned], held: list[Planned]) -> None:
    if len(learn) < 2 or (job.cohort.val and not held):
        raise ManifestError([f"{job.name}: only {len(learn)} training and {len(held)} validation slides can be used; "
                             "see the reasons above"])  # fmt: skip
    sides = {"train": [p.member for p in learn]} | ({"val": [p.member for p in held]} if held else {})
    refuse_absent(sides, job.settings.tasks)


def _finish(
    job: FitJob, trained: TrainedModel, bags: Bags, held: list[Planned], notes: list[Note], machine: Machine
) -> Fit:
    """Calibrate on the validation slides, then open the test slides, once: not while the training is still to go on."""
    team = machine.team
    outputs = label_slides(trained.classifier, held, bags, team)
    tasks = _calibrated(outputs, held, job.settings.tasks)
    settings = job.settings.replace(tasks=[t.model_dump() for t in tasks])
    tested, more = bags.plan(job.cohort.test if trained.is_complete else ())
    notes = [*notes, *more, *trained.notes]
    test_outputs, failed = label_readable(trained.classifier, tested, bags, team)
    for row, error in sorted(failed.items()):  # what was learned is worth more than one slide's figure
        note = Note(error.code, f"{tested[row].member.record.slide_id} is not judged: {error.message}")
        machine.reporter.line(f"{note.code}: {note.message}")
        notes.append(note)
    tested, test_outputs = (
        [p for i, p in enumerate(tested) if i not in failed],
        np.delete(test_outputs, sorted(failed), 0),
    )
    planned = [*held, *tested]
    parts = ("val",) * len(held) + (job.part,) * len(tested)
    records = [p.member.record for p in planned]
    cases = CaseTable(
        tuple(r.slide_id for r in records), tuple(r.patient_id for r in records), tuple(r.site for r in records), parts,
        np.concatenate([outputs, test_outputs]), _targets(planned, tasks),
        tasks, (job.train.seed,) * len(planned),
    )  # fmt: skip
    fit = Fit(job, tasks, trained.best_epoch, trained.history, tuple(notes), cases, trained.is_complete)
    if team.is_leader:
        _write(fit, trained, settings)
    team.wait()
    return fit


def _calibrated(outputs: np.ndarray, held: list[Planned], tasks: tuple[TaskSettings, ...]) -> tuple[TaskSettings, ...]:
    """Give every task the temperature that fits the validation slides best."""
    if not held:
        return tasks
    targets = np.array([p.member.targets for p in held], dtype=np.float64)
    parts = zip(tasks, split_outputs(outputs, tasks), split_targets(targets, tasks), strict=True)
    return tuple(t.replace(temperature=round(fit_temperature(z, y, t), 6)) for t, z, y in parts)


def _write(fit: Fit, trained: TrainedModel, settings: ModelSettings) -> None:
    job = fit.job
    extra = {
        "training": {"settings": job.train.model_dump(mode="json"), "best_epoch": fit.best_epoch, "name": job.name,
                     "history": [_plain(e) for e in fit.history], "identity": job.identity,
                     "n_train": len(job.cohort.train), "n_val": len(job.cohort.val)},
        "learned_from": sorted({patient_hash(m.record.patient_id) for m in (*job.cohort.train, *job.cohort.val)}),
        "colour_range": {k: list(v) for k, v in cohort_range(trained.colours).items()},
        "packages": package_versions(),
    }  # fmt: skip
    done = {"identity": job.identity, "judged": job.judged_identity, "best_epoch": fit.best_epoch, "history": [_timed(e) for e in fit.history],
            "notes": [list(n) for n in fit.notes]}  # fmt: skip
    try:
        save_bundle(
            job.folder / "model",
            trained.classifier,
            settings,
            card=f"# {job.name}\n\nPart of a training.\n",
            extra=extra,
        )
        write_whole(job.folder / "cases.csv", case_bytes(fit.cases))
        if fit.is_complete:
            write_whole(job.folder / "fit.json", json.dumps(done, indent=1).encode())
            (job.folder / "checkpoint.pt").unlink(missing_ok=True)  # hundreds of megabytes that nothing needs now
            shutil.rmtree(job.folder / "embeddings", ignore_errors=True)
    except OSError as error:
        raise StoppedError(f"{job.folder}: cannot be written ({error.strerror}); make room and start the same command "
                           "again") from error  # fmt: skip


def _read_done(job: FitJob) -> Fit | None:
    path = job.folder / "fit.json"
    if not path.is_file():
        return None
    done = json.loads(path.read_text(encoding="utf-8"))
    if done["identity"] != job.identity:
        raise ModelError(f"{job.folder}: holds another training (other slides, labels, settings, seed or start); choose "
                         "another --out, or delete that folder")  # fmt: skip
    if done["judged"] != job.judged_identity:
        raise ModelError(f"{job.folder}: this training was judged on other test slides, labels or sites, and test slides judge "
                         "once; `wsi-ips evaluate` judges a bundle on new ones; or choose another --out")  # fmt: skip
    tasks = load_bundle(job.folder / "model").settings.tasks
    history = [Epoch._make(float("nan") if v is None else v for v in e) for e in done["history"]]
    notes = tuple(Note(*n) for n in done["notes"])
    return Fit(job, tasks, done["best_epoch"], history, notes, read_cases(job.folder / "cases.csv", tasks))


def _targets(planned: list[Planned], tasks: tuple[TaskSettings, ...]) -> np.ndarray:
    rows = np.array([p.member.targets for p in planned], dtype=np.float64)
    return rows.reshape(len(planned), sum(t.n_targets for t in tasks))


def _timed(epoch: Epoch) -> list[Any]:
    return [None if isinstance(v, float) and math.isnan(v) else v for v in epoch]


def _plain(epoch: Epoch) -> dict[str, Any]:
    """An epoch without what machine and cache decide: the same training gives the same bundle, down to its hash."""
    named = dict(zip(Epoch._fields, _timed(epoch), strict=True))
    return {k: v for k, v in named.items() if k not in ("seconds", "n_scanned", "micro_batch")}
