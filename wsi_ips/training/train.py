"""`finetune`: slide labels in, a bundle out, end to end from pixels.

Every step selects exactly, without gradient and with the weights of that moment, then learns on the selected tiles by
the two-pass gradient, whose memory depends on the micro-batch alone. The best epoch is chosen on the validation slides;
the test slides are never read here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.scan import plan_slide, read_tiles, scan_slide
from wsi_ips.errors import ManifestError, ModelError, Note, NoTissueError, SlideError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_encoder
from wsi_ips.model.gradient import two_pass_backward
from wsi_ips.recipe import TrainSettings
from wsi_ips.slide.reader import open_slide
from wsi_ips.stats.metrics import task_auroc
from wsi_ips.tasks import split_outputs
from wsi_ips.tiles.grid import TileGrid
from wsi_ips.training.augment import augment_tiles
from wsi_ips.training.cohort import Cohort, Member, refuse_absent
from wsi_ips.training.losses import check_trainable, slide_loss

__all__ = ["Epoch", "Planned", "TrainedModel", "build_classifier", "finetune", "plan_members"]

_NORM_TILES = 512


class Planned(NamedTuple):
    """A slide of the cohort with its tiles."""

    member: Member
    grid: TileGrid


class Epoch(NamedTuple):
    """One line of the training log."""

    epoch: int
    loss: float
    val_loss: float
    val_auroc: float
    lr: float
    seconds: float
    n_encoded: int  # tiles through the encoder: scans, twice the selected, validation


@dataclass
class TrainedModel:
    """What `finetune` ends with."""

    classifier: IPSClassifier  # weights of the best epoch
    settings: ModelSettings
    best_epoch: int
    history: list[Epoch]
    colours: list[dict[str, float]]  # one summary a training slide
    notes: list[Note] = field(default_factory=list)


def build_classifier(settings: ModelSettings, *, seed: int = 0, offline: bool = False) -> IPSClassifier:
    """Make a classifier; random parts come from the seed."""
    torch.manual_seed(seed)
    encoder = build_encoder(settings.encoder, settings.tile.size_px, offline=offline)
    return IPSClassifier(encoder, settings)


def plan_members(
    members: Sequence[Member], settings: ModelSettings, read: ReadSettings
) -> tuple[list[Planned], list[Note]]:
    """Open every slide once: tissue and grid; a slide that cannot be used is left out and named."""
    planned, notes = [], []
    for m in members:
        try:
            with open_slide(m.record.slide_path, m.record.mpp, icc=settings.icc) as slide:
                planned.append(Planned(m, plan_slide(slide, settings, read, m.record.mask_path).grid))
        except (SlideError, NoTissueError) as error:
            notes.append(Note(error.code, f"{m.record.slide_id} is not used: {error.message}"))
    return planned, notes


def finetune(
    cohort: Cohort,
    settings: ModelSettings,
    train: TrainSettings,
    read: ReadSettings,
    *,
    classifier: IPSClassifier,
    from_scratch: bool = False,
    reporter: Reporter | None = None,
) -> TrainedModel:
    """Train on a cohort.

    Args:
        cohort: from `split_cohort`.
        settings: of the model; `tasks` must be those of the cohort.
        train: how to learn.
        read: how to read.
        classifier: where to start from; on the device to learn on. It is changed.
        from_scratch: the encoder is untrained, so the statistics it is frozen on are measured first.
        reporter: shows progress.

    Raises:
        ConfigError: a kind of task that cannot be learned.
        ManifestError: too few slides are left.
        ModelError: the loss stopped being finite; says at which slides and learning rate.
    """
    check_trainable(settings.tasks)
    reporter = reporter or Reporter("training", 0, quiet=True)
    learn, notes = plan_members(cohort.train, settings, read)
    judge, more = plan_members(cohort.val, settings, read)
    for note in (*notes, *more):
        reporter.line(f"{note.code}: {note.message}")
    if len(learn) < 2 or not judge:
        raise ManifestError(
            [f"only {len(learn)} training and {len(judge)} validation slides can be used; see the reasons above"]
        )
    refuse_absent({"train": [p.member for p in learn], "val": [p.member for p in judge]}, settings.tasks)
    if from_scratch:
        _measure_norms(classifier, learn, settings, read, train.seed)
    return _Trainer(settings, train, read, classifier, reporter).run(learn, judge, [*notes, *more])


def _measure_norms(
    classifier: IPSClassifier, learn: list[Planned], settings: ModelSettings, read: ReadSettings, seed: int
) -> None:
    """Set frozen statistics from random training tiles, about as many from each slide."""
    rng = np.random.default_rng(seed)
    each, parts = max(1, _NORM_TILES // len(learn)), []
    for member, grid in learn:
        with open_slide(member.record.slide_path, member.record.mpp, icc=settings.icc) as slide:
            parts.append(read_tiles(slide, grid, rng.permutation(len(grid.coords))[:each], read))
    tiles = torch.from_numpy(np.concatenate(parts))
    classifier.encoder.set_norm_statistics(tiles)
    with torch.no_grad():
        classifier.set_projector_statistics(classifier.encoder(tiles))


class _Trainer:
    """The loop; holds the weights, the optimiser and the generators."""

    def __init__(
        self,
        settings: ModelSettings,
        train: TrainSettings,
        read: ReadSettings,
        classifier: IPSClassifier,
        reporter: Reporter,
    ) -> None:
        self.settings, self.train, self.read, self.reporter = settings, train, read, reporter
        self.classifier = classifier
        classifier.encoder.set_trainable(-1 if train.train_stages is None else train.train_stages)
        decay = [
            p for p in classifier.parameters() if p.requires_grad and p.ndim > 1 and p is not classifier.attention.query
        ]
        plain = [p for p in classifier.parameters() if p.requires_grad and not any(p is d for d in decay)]
        groups = [{"params": decay, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=train.lr)
        self.order = np.random.default_rng(train.seed)
        self.draws = torch.Generator().manual_seed(train.seed)
        self.colours: dict[str, dict[str, float]] = {}
        self.n_encoded, self.epoch = 0, 0

    def run(self, learn: list[Planned], judge: list[Planned], notes: list[Note]) -> TrainedModel:
        steps = math.ceil(len(learn) / self.train.batch_slides)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._lr_factor(steps))
        best: tuple[float, float] = (-1.0, -math.inf)
        best_epoch, weights, history = 0, copy.deepcopy(self.classifier.state_dict()), []
        for epoch in range(1, self.train.epochs + 1):
            try:
                history.append(self._epoch(epoch, steps, schedule, learn, judge))
            except SlideError as error:
                if best_epoch == 0:
                    raise
                notes.append(
                    Note(error.code, f"training ended in epoch {epoch}, the best so far is kept: {error.message}")
                )
                self.reporter.line(f"{error.code}: {notes[-1].message}")
                break
            score = (round(history[-1].val_auroc, 6), -history[-1].val_loss)
            if score > best:
                best, best_epoch, weights = score, epoch, copy.deepcopy(self.classifier.state_dict())
            self.reporter.line(_say(history[-1], self.train.epochs, is_best=best_epoch == epoch))
            waited = epoch - max(best_epoch, self.train.random_epochs)
            if self.train.patience and waited >= self.train.patience:
                break
        self.classifier.load_state_dict(weights)
        self.classifier.eval()
        return TrainedModel(self.classifier, self.settings, best_epoch, history, list(self.colours.values()), notes)

    def _epoch(self, epoch: int, steps: int, schedule: Any, learn: list[Planned], judge: list[Planned]) -> Epoch:
        """Learn on every training slide once, then judge; steps' loss and validation loss must be finite."""
        started, self.n_encoded, self.epoch, losses = time.monotonic(), 0, epoch, []
        for rows in np.array_split(self.order.permutation(len(learn)), steps):
            losses.append(self._step([learn[i] for i in rows]))
            schedule.step()
        val_loss, val_auroc = self._judge(judge)
        if not math.isfinite(val_loss):
            raise ModelError(f"the validation loss of epoch {epoch} is {val_loss}; try a smaller lr", "E_NOT_FINITE")
        lr, seconds = self.optimiser.param_groups[0]["lr"], time.monotonic() - started
        return Epoch(epoch, float(np.mean(losses)), val_loss, val_auroc, lr, seconds, self.n_encoded)

    def _lr_factor(self, steps: int) -> Any:
        warm, total = self.train.warmup_epochs * steps, max(1, self.train.epochs * steps)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            along = min(1.0, (step - warm) / max(1.0, total - warm))
            return 0.001 + 0.999 * 0.5 * (1.0 + math.cos(math.pi * along))

        return factor

    def _step(self, batch: list[Planned]) -> float:
        chosen = [self._select(p) for p in batch]
        m = max(len(c) for c in chosen)
        side, channels = chosen[0].shape[1], chosen[0].shape[3]
        tiles = torch.zeros(len(batch), m, side, side, channels, dtype=torch.uint8)
        mask = torch.zeros(len(batch), m, dtype=torch.bool)
        for i, pixels in enumerate(chosen):
            tiles[i, : len(pixels)] = augment_tiles(torch.from_numpy(pixels), self.train.augment, self.draws)
            mask[i, : len(pixels)] = True
        targets = _targets(batch).to(self.classifier.device)
        self.classifier.train()
        self.optimiser.zero_grad(set_to_none=True)
        try:
            step = two_pass_backward(self.classifier, tiles, mask, lambda z: slide_loss(z, targets, self.settings.tasks),
                                     self.train.micro_batch or 256)  # fmt: skip
        except ModelError as error:
            names = ", ".join(p.member.record.slide_id for p in batch)
            raise ModelError(f"{error}; slides {names}; learning rate {self.optimiser.param_groups[0]['lr']:.2g}. "
                             "Try a smaller lr; nothing was overwritten", error.code) from error  # fmt: skip
        torch.nn.utils.clip_grad_norm_(
            [p for p in self.classifier.parameters() if p.requires_grad], self.train.clip_norm
        )
        self.optimiser.step()
        self.n_encoded += 2 * int(mask.sum())
        return float(step.loss)

    def _select(self, planned: Planned) -> np.ndarray:
        """Scan a slide with the present weights and read its training tiles again: (m, S, S, C) uint8."""
        record, grid = planned.member.record, planned.grid
        self.classifier.eval()
        with open_slide(record.slide_path, record.mpp, icc=self.settings.icc) as slide:
            if self.epoch <= self.train.random_epochs:
                m = min(self.settings.selection.memory_size, len(grid.coords))
                return read_tiles(slide, grid, self.order.permutation(len(grid.coords))[:m], self.read)
            scan = scan_slide(slide, grid, self.classifier, self.read)
            if scan.colour is not None:
                self.colours[record.slide_id] = scan.colour
            self.n_encoded += len(scan.grid.coords)
            return read_tiles(slide, scan.grid, self._explored(scan.selected, len(scan.grid.coords)), self.read)

    def _explored(self, selected: np.ndarray, n_tiles: int) -> np.ndarray:
        """Exchange the last of the selected rows for random unselected ones."""
        others = np.setdiff1d(np.arange(n_tiles), selected)
        n = min(round(self.train.explore * len(selected)), len(others))
        return np.concatenate([selected[: len(selected) - n], self.order.permutation(others)[:n]])

    def _judge(self, judge: list[Planned]) -> tuple[float, float]:
        """Loss and mean AUROC on the validation slides."""
        self.classifier.eval()
        outputs = []
        for planned in judge:
            record = planned.member.record
            with open_slide(record.slide_path, record.mpp, icc=self.settings.icc) as slide:
                scan = scan_slide(slide, planned.grid, self.classifier, self.read)
            self.n_encoded += len(scan.grid.coords)
            outputs.append(self.classifier.read_out(scan.features).outputs)
        z, targets = np.stack(outputs), _targets(judge)
        loss = float(slide_loss(torch.from_numpy(z), targets, self.settings.tasks))
        aurocs = [
            task_auroc(part[known], y[known], task)
            for task, part, y in zip(
                self.settings.tasks, split_outputs(z, self.settings.tasks), targets.numpy().T, strict=True
            )
            if (known := y >= 0).any()
        ]
        return loss, float(np.mean(aurocs))


def _targets(batch: list[Planned]) -> torch.Tensor:
    return torch.tensor([p.member.targets for p in batch], dtype=torch.int64)


def _say(e: Epoch, epochs: int, *, is_best: bool) -> str:
    return (f"epoch {e.epoch}/{epochs}  loss {e.loss:.4f}  val loss {e.val_loss:.4f}  val AUROC {e.val_auroc:.3f}  "
            f"lr {e.lr:.1e}  {e.n_encoded} tiles in {e.seconds:.1f} s" + ("  best" if is_best else ""))  # fmt: skip
