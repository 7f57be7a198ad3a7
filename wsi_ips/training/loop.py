"""The loop over epochs: learn on every training slide, judge on the validation slides, keep the best, survive a kill.

Every step selects with the weights of that moment, without gradient, then learns on the selected tiles by the two-pass
gradient. Everything random is drawn from seed, epoch and slide alone, so a training that was killed goes on from its
checkpoint to the very same weights, and several processes do what one would. The test slides are never seen here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.engine.progress import Reporter
from wsi_ips.errors import ModelError, Note, SlideError, StoppedError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.weights import check_finite
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.bags import Bags, Planned
from wsi_ips.training.checkpoint import read_checkpoint, write_checkpoint
from wsi_ips.training.labelling import judge
from wsi_ips.training.losses import ClassWeights
from wsi_ips.training.optimise import Averaged, learning_stages, lr_factor, make_optimiser
from wsi_ips.training.schedule import Plan
from wsi_ips.training.selecting import STEPS, Audit, Moment, Picker, pooled_recall
from wsi_ips.training.stale import StaleStore
from wsi_ips.training.step import Batch, Learner, choose_micro_batch
from wsi_ips.training.team import Team

__all__ = ["Epoch", "Loop", "Setup", "TrainedModel"]


class Epoch(NamedTuple):
    """One line of the training log."""

    epoch: int
    loss: float
    val_loss: float  # NaN without validation slides
    val_score: float  # mean over tasks of the task's own metric, higher is better
    lr: float
    seconds: float
    n_scanned: int  # tiles encoded without gradient to select; validation left out
    n_learned: int  # tiles learned from
    recall: float  # audited share of the true top M that was found; NaN where every tile was scored
    true_recall: float  # the same, counted; NaN where it was not checked
    micro_batch: int


@dataclass
class TrainedModel:
    """What a training ends with."""

    classifier: IPSClassifier  # weights kept
    settings: ModelSettings
    best_epoch: int
    history: list[Epoch]
    colours: list[dict[str, float]]  # one summary a training slide
    notes: list[Note] = field(default_factory=list)
    is_complete: bool = True  # False: a slide could not be read any more, and it ended early


class Setup(NamedTuple):
    """What a training is given besides the model."""

    settings: ModelSettings
    train: TrainSettings
    bags: Bags
    team: Team
    folder: Path | None = None  # of checkpoint and stale embeddings; None keeps neither
    identity: str = ""  # of the training; a checkpoint of another one is refused
    class_weights: ClassWeights | None = None
    on_epoch: Callable[[Epoch], None] = lambda _: None


class Loop:
    """Trains one model; mutable. The classifier's learning parameters are those that require a gradient."""

    def __init__(self, classifier: IPSClassifier, setup: Setup, reporter: Reporter) -> None:
        self.classifier, self.s, self.reporter = classifier, setup, reporter
        store = StaleStore(setup.folder / "embeddings") if setup.folder else None
        self.store = store if setup.train.rescan.mode == "stale" else None
        self.picker = Picker(setup.bags, setup.settings, setup.train, self.store)
        self.optimiser = make_optimiser(classifier, setup.train)
        self.averaged = Averaged(classifier, setup.train.ema)
        self.history: list[Epoch] = []
        self.best: tuple[float, float] = (-math.inf, -math.inf)
        self.best_epoch, self.best_weights = 0, _weights(classifier)
        self.part = _Part()
        self.saved = time.monotonic()

    def run(self, learn: list[Planned], held: list[Planned]) -> TrainedModel:
        """Train.

        Args:
            learn: training slides, at least one.
            held: validation slides; without any the last epoch is the best.

        Raises:
            ModelError: the loss stopped being finite, or the checkpoint belongs to another training.
            StoppedError: checkpoint, last embeddings, log or temporary tiles cannot be written.
        """
        plan = Plan(learn, self.s.settings, self.s.train, self.s.team.size)
        learner = Learner(self.s.bags, self.s.settings.tasks, self.s.train, self.s.team, self.s.class_weights,
                          choose_micro_batch(self.classifier, self.s.train))  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lr_factor(self.s.train, plan.n_steps))
        self._restore(learner, schedule)
        notes: list[Note] = []
        for epoch in range(len(self.history) + 1, self.s.train.epochs + 1):
            # asked before an epoch, not after: a training that was killed when it had ended must not go on
            if self.s.train.patience and held and self._waited() >= self.s.train.patience:
                break
            try:
                self._learn(epoch, plan, learner, schedule)
                self._close(epoch, held, learner, schedule)
            except SlideError as error:
                if self.best_epoch == 0 or self.s.team.size > 1:
                    raise
                text = f"training ended in epoch {epoch}, the best so far is kept, test slides stay closed; the same command goes on: {error.message}"
                notes.append(Note(error.code, text))
                self.reporter.line(f"{error.code}: {text}")
                break
            except StoppedError:
                raise
            except OSError as error:
                where = error.filename or f"{self.s.folder} or the folder of temporary files"
                raise StoppedError(f"{where}: cannot be written or read ({error.strerror or error}); make room and start the "
                                   "same command again") from error  # fmt: skip
        self.classifier.load_state_dict(self.best_weights)
        self.classifier.eval()
        colours = [c for _, c in sorted(self.s.bags.colours.items())]
        return TrainedModel(self.classifier, self.s.settings, self.best_epoch, self.history, colours, notes, not notes)

    def _waited(self) -> int:
        """Epochs without a better one, those on random tiles not counted."""
        return len(self.history) - max(self.best_epoch, self.s.train.random_epochs)

    def _learn(self, epoch: int, plan: Plan, learner: Learner, schedule: Any) -> None:
        """Do the steps of an epoch that are not done yet."""
        s, part = self.s, self.part
        batches = plan.batches(epoch)
        is_full = self._is_full(epoch)
        self.classifier.encoder.set_trainable(learning_stages(s.train, epoch))
        check = s.train.rescan.check_every
        for step in range(part.n_steps, len(batches)):
            started, before = time.monotonic(), s.bags.n_encoded
            rows = batches[step]
            m = plan.memory_size(epoch, step)
            is_check = bool(check) and epoch % check == 0
            moments = [Moment(epoch, int(r), m, step, is_full, is_check) for r in s.team.share(list(rows))]
            self.classifier.eval()
            picks = [self.picker.pick(plan.slides[t.index], self.classifier, t) for t in moments]
            targets = np.array([plan.slides[r].member.targets for r in rows], dtype=np.float64)
            batch = Batch([plan.slides[t.index] for t in moments], picks, moments, targets)
            loss = learner.step(self.classifier, self.optimiser, batch)
            schedule.step()
            self.averaged.update(self.classifier)
            part.n_steps += 1
            part.loss += loss
            part.n_scanned += s.bags.n_encoded - before
            part.n_learned += sum(len(p.rows) for p in picks)
            part.audits += [p.audit for p in picks if p.audit is not None]
            part.seconds += time.monotonic() - started
            # several processes save at the end of epochs, where all are sure to be
            if s.team.size == 1 and time.monotonic() - self.saved >= s.train.checkpoint_seconds:
                self._save(learner, schedule)

    def _is_full(self, epoch: int) -> bool:
        """Whether every tile is scored: the first epochs, and after an epoch whose audit found too little."""
        how = self.s.train.rescan
        if how.mode == "full" or epoch <= self.s.train.random_epochs + how.full_epochs or not self.history:
            return True
        return self.history[-1].recall < how.min_recall

    def _close(self, epoch: int, held: list[Planned], learner: Learner, schedule: Any) -> None:
        """Judge, remember, save."""
        started = time.monotonic()
        s, parts = self.s, self.s.team.gather(self.part)
        if self.store is not None:
            for state in s.team.gather(self.store.state()):
                self.store.restore(self.store.state() | {k: v for k, v in state.items() if v // STEPS == epoch})
        for colours in s.team.gather(s.bags.colours):
            s.bags.colours.update(colours)
        before = s.bags.n_encoded
        found = judge(self.averaged.model, held, s.bags, s.team)
        s.bags.n_encoded = before
        if held and not math.isfinite(found.loss):
            raise ModelError(f"the validation loss of epoch {epoch} is {found.loss}; try a smaller lr", "E_NOT_FINITE")
        audits = [a for p in parts for a in p.audits]
        checked = [a.true_recall for a in audits if not math.isnan(a.true_recall)]
        weights = [a.m for a in audits if not math.isnan(a.true_recall)]
        e = Epoch(
            epoch, sum(p.loss for p in parts) / max(1, self.part.n_steps), found.loss, found.score,
            self.optimiser.param_groups[0]["lr"], self.part.seconds + time.monotonic() - started,
            sum(p.n_scanned for p in parts), sum(p.n_learned for p in parts), pooled_recall(audits),
            float(np.average(checked, weights=weights)) if checked else float("nan"), learner.micro_batch,
        )  # fmt: skip
        self.history.append(e)
        self.part = _Part()
        score = (round(found.score, 6), -found.loss) if held and s.train.keep == "best" else (float(epoch), 0.0)
        is_best = _above(score, self.best) or self.best_epoch == 0
        if is_best:
            self.best, self.best_epoch, self.best_weights = score, epoch, _weights(self.averaged.model)
        s.on_epoch(e)  # before the checkpoint: what is done again replaces its line, what is not would be missing
        self._save(learner, schedule)
        self.reporter.line(_say(e, s.train.epochs, is_best=is_best and bool(held) and s.train.keep == "best"))

    def _save(self, learner: Learner, schedule: Any) -> None:
        self.saved = time.monotonic()
        parts = self.s.team.gather(self.part._asdict())
        stores = self.s.team.gather(self.store.state() if self.store else {})
        if self.s.folder is not None and self.s.team.is_leader:
            self._write(learner, schedule, parts, stores)
        self.s.team.wait()  # no process adds embeddings while old ones are cleared away

    def _write(self, learner: Learner, schedule: Any, parts: list[Any], stores: list[Any]) -> None:
        assert self.s.folder is not None
        check_finite(self.classifier.state_dict(), "the checkpoint is kept as it was: the weights")
        write_checkpoint(self.s.folder / "checkpoint.pt", self.s.identity, {
            "weights": self.classifier.state_dict(), "optimiser": self.optimiser.state_dict(), "schedule": schedule.state_dict(),
            "averaged": self.averaged.state(), "n_averaged": self.averaged.n_steps, "best": list(self.best),
            "best_epoch": self.best_epoch, "best_weights": self.best_weights, "history": [list(e) for e in self.history],
            "parts": parts, "stores": stores, "colours": self.s.bags.colours, "micro_batch": learner.micro_batch,
        })  # fmt: skip
        if self.store is not None:
            self.store.prune()

    def _restore(self, learner: Learner, schedule: Any) -> None:
        found = read_checkpoint(self.s.folder / "checkpoint.pt", self.s.identity) if self.s.folder else None
        if found is None:
            return
        if len(found["parts"]) != self.s.team.size:
            n = len(found["parts"])
            raise ModelError(f"this training was begun by {n} processes; go on with as many, or choose another --out")
        self.classifier.load_state_dict(found["weights"])
        self.optimiser.load_state_dict(found["optimiser"])
        schedule.load_state_dict(found["schedule"])
        self.averaged.restore(found["averaged"], found["n_averaged"])
        self.best, self.best_epoch = (found["best"][0], found["best"][1]), found["best_epoch"]
        self.best_weights = found["best_weights"]
        self.history = [Epoch(*e) for e in found["history"]]
        self.part = _Part.of(found["parts"][self.s.team.rank])
        if self.store is not None:
            self.store.restore(_newest(found["stores"]))
        self.s.bags.colours.update(found["colours"])
        learner.micro_batch = min(learner.micro_batch, found["micro_batch"])
        self.reporter.line(f"goes on in epoch {len(self.history) + 1}, step {self.part.n_steps + 1}")


@dataclass
class _Part:
    """What an epoch has gathered so far in this process."""

    n_steps: int = 0
    loss: float = 0.0
    n_scanned: int = 0
    n_learned: int = 0
    seconds: float = 0.0
    audits: list[Audit] = field(default_factory=list)

    def _asdict(self) -> dict[str, Any]:
        return vars(self) | {"audits": [list(a) for a in self.audits]}

    @classmethod
    def of(cls, found: dict[str, Any]) -> _Part:
        return cls(**(found | {"audits": [Audit(*a) for a in found["audits"]]}))


def _weights(classifier: IPSClassifier) -> dict[str, torch.Tensor]:
    return copy.deepcopy({k: v.detach().cpu() for k, v in classifier.state_dict().items()})


def _newest(stores: list[dict[str, int]]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for state in stores:
        for slide_id, epoch in state.items():
            newest[slide_id] = max(epoch, newest.get(slide_id, 0))
    return newest


def _above(score: tuple[float, float], best: tuple[float, float]) -> bool:
    """Compare, an undefined score being the lowest."""
    return (-math.inf if math.isnan(score[0]) else score[0], score[1]) > (
        -math.inf if math.isnan(best[0]) else best[0], best[1],
    )  # fmt: skip


def _say(e: Epoch, epochs: int, *, is_best: bool) -> str:
    held = f"  val loss {e.val_loss:.4f}  val score {e.val_score:.3f}" if not math.isnan(e.val_loss) else ""
    recall = f"  recall {e.recall:.3f}" if not math.isnan(e.recall) else ""
    return (f"epoch {e.epoch}/{epochs}  loss {e.loss:.4f}{held}  lr {e.lr:.1e}  {e.n_scanned} scanned, {e.n_learned} learned "
            f"in {e.seconds:.1f} s{recall}" + ("  best" if is_best else ""))  # fmt: skip
