"""One optimiser step over some slides: read, augment, exact gradient, sum over processes, clip, move.

Shapes: B slides of the step, b of this process, m instances of a slide, P outputs, Q targets, T tasks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from wsi_ips.config import TaskSettings
from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.gradient import BagInput, bytes_per_tile, one_pass_backward, two_pass_backward
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.augment import augment_tiles
from wsi_ips.training.bags import Bags, PixelBags, Planned
from wsi_ips.training.losses import ClassWeights, MixedTargets, known, slide_loss
from wsi_ips.training.mix import mix_bags, mix_tiles
from wsi_ips.training.optimise import clip
from wsi_ips.training.selecting import Moment, Pick
from wsi_ips.training.spool import TileSpool
from wsi_ips.training.team import Team

__all__ = ["Batch", "Learner", "choose_micro_batch"]

_LARGEST = 256  # tiles; more brings no speed on any device
_CPU_BUDGET_GB = 1.0
_GPU_SHARE = 0.6  # of free memory


class Batch(NamedTuple):
    """A step's slides."""

    slides: list[Planned]  # those of this process
    picks: list[Pick]
    moments: list[Moment]
    all_targets: np.ndarray  # (B, Q) of the whole step, NaN where unknown


class _Instances(NamedTuple):
    """What one bag brings, and what it is held against."""

    instances: Any  # (m, S, S, C) uint8 (tensor or spool), or (m, W) float32
    target: np.ndarray  # (Q,)
    other_target: np.ndarray  # (Q,) of the slide mixed in
    share: float  # of the own target


class Learner:
    """Does steps; holds the size of the micro-batch, which shrinks when memory gives out."""

    def __init__(
        self, bags: Bags, tasks: tuple[TaskSettings, ...], train: TrainSettings, team: Team,
        class_weights: ClassWeights | None, micro_batch: int,
    ) -> None:  # fmt: skip
        self.bags, self.tasks, self.train, self.team = bags, tasks, train, team
        self.class_weights, self.micro_batch = class_weights, micro_batch

    @property
    def _mixes(self) -> bool:
        return self.train.augment.bag_mix > 0.0 or self.train.augment.tile_mix > 0.0

    def step(self, classifier: IPSClassifier, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
        """Learn from a batch; returns this process's part of the loss.

        Raises:
            ModelError: the loss is not finite, or one tile is too much for the memory; says what to change.
        """
        mine = self._mixed([self._read(*three) for three in zip(batch.slides, batch.picks, batch.moments, strict=True)],
                           batch.moments)  # fmt: skip
        self.bags.end_step()
        targets = _targets(mine, batch.all_targets.shape[1], is_mixed=self._mixes)
        totals = self._totals(targets, batch)
        optimiser.zero_grad(set_to_none=True)  # here: a process without a slide in this step adds nothing

        def loss_of(outputs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            loss = slide_loss(outputs, targets, self.tasks, class_weights=self.class_weights, totals=totals)
            return loss - self.train.entropy * entropy.sum() / (len(batch.all_targets) * entropy.shape[1])

        inputs = [
            BagInput(i.instances, p.others_tensor, _dropout_seed(self.train, m), p.rows, p.other_rows)
            for i, p, m in zip(mine, batch.picks, batch.moments, strict=True)
        ]
        classifier.train()
        loss = self._backward(classifier, optimiser, inputs, loss_of, batch) if inputs else 0.0
        for i in mine:
            if isinstance(i.instances, TileSpool):
                i.instances.close()
        parameters = [p for g in optimiser.param_groups for p in g["params"] if p.requires_grad]
        self.team.sum_gradients(parameters)
        norm = clip(parameters, self.train.clip_norm)
        if not math.isfinite(norm):  # before it reaches a weight: a finite loss may have such a gradient
            raise self._not_finite(f"the gradient is not finite (norm {norm})", optimiser, batch)
        optimiser.step()
        return loss

    def _not_finite(self, what: str, optimiser: torch.optim.Optimizer, batch: Batch) -> ModelError:
        names = ", ".join(p.member.record.slide_id for p in batch.slides)
        when = f"epoch {batch.moments[0].epoch}, step {batch.moments[0].step + 1}; " if batch.moments else ""
        return ModelError(f"{what}; {when}slides {names}; learning rate {optimiser.param_groups[0]['lr']:.2g}. "
                          "Try a smaller lr; nothing was overwritten", "E_NOT_FINITE")  # fmt: skip

    def _totals(self, targets: torch.Tensor | MixedTargets, batch: Batch) -> torch.Tensor:
        """How many slides of the whole step, those of other processes too, have each task's target: (T,)."""
        if not isinstance(targets, MixedTargets):
            return known(torch.from_numpy(batch.all_targets), self.tasks).sum(dim=0)
        parts = self.team.gather(known(targets, self.tasks).sum(dim=0).tolist())
        return torch.tensor(parts, dtype=torch.float64).sum(dim=0)

    def _backward(
        self, classifier: IPSClassifier, optimiser: torch.optim.Optimizer, inputs: list[BagInput], loss_of: Any, batch: Batch
    ) -> float:  # fmt: skip
        names = ", ".join(p.member.record.slide_id for p in batch.slides)
        while True:
            optimiser.zero_grad(set_to_none=True)  # a failed try may have added some
            try:
                if self._normalises(classifier):
                    return float(one_pass_backward(classifier, inputs, loss_of).loss)
                return float(two_pass_backward(classifier, inputs, loss_of, self.micro_batch).loss)
            except ModelError as error:
                if error.code != "E_NOT_FINITE":
                    raise
                raise self._not_finite(str(error), optimiser, batch) from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self._normalises(classifier):
                    raise ModelError(f"memory gives out with all tiles of a step at once, as norms: batch asks (slides {names}); "
                                     "use fewer batch_slides, a smaller memory_size, or norms: frozen", "E_MEMORY") from error  # fmt: skip
                if self.micro_batch == 1:
                    raise ModelError(f"memory gives out with one tile at a time (slides {names}); use a smaller encoder "
                                     "or tile, or another device", "E_MEMORY") from error  # fmt: skip
            self.micro_batch = max(1, self.micro_batch // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _normalises(self, classifier: IPSClassifier) -> bool:
        """Whether the encoder learns on batch statistics."""
        learns = any(p.requires_grad for p in classifier.encoder.parameters())
        return self.train.norms == "batch" and self.bags.are_tiles and learns

    def _read(self, planned: Planned, pick: Pick, moment: Moment) -> _Instances:
        target = np.array(planned.member.targets, dtype=np.float64)
        if pick.embeddings is not None:
            return _Instances(torch.from_numpy(pick.embeddings), target, target, 1.0)
        assert isinstance(self.bags, PixelBags)
        generator = torch.Generator().manual_seed(int(moment.rng(self.train.seed, 3).integers(1 << 62)))
        spool = TileSpool()
        for tiles in self.bags.tiles(planned, pick.rows):
            spool.append(augment_tiles(torch.from_numpy(tiles), self.train.augment, generator))
        return _Instances(spool, target, target, 1.0)

    def _mixed(self, mine: list[_Instances], moments: list[Moment]) -> list[_Instances]:
        """Paste tiles of one bag into another, where the settings ask for it; partners come from this process."""
        how = self.train.augment
        if len(mine) < 2 or not self._mixes:
            return mine
        out = []
        for i, moment in enumerate(moments):
            rng = moment.rng(self.train.seed, 4)
            generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
            partner = mine[(i + 1 + int(rng.integers(len(mine) - 1))) % len(mine)]
            a, b = mine[i].instances, partner.instances
            if rng.random() < how.bag_mix:
                mixed, share = mix_bags(a[:], b[:], generator)
            elif rng.random() < how.tile_mix and self.bags.are_tiles:
                mixed, share = mix_tiles(a[:], b[:], generator)
            else:
                out.append(mine[i])
                continue
            out.append(_Instances(mixed, mine[i].target, partner.target, share))
        return out


def choose_micro_batch(classifier: IPSClassifier, train: TrainSettings) -> int:
    """Tiles encoded with gradient at a time: as set, or as many as the memory budget holds, at most 256.

    What one tile keeps for the backward pass is measured on two; half the budget is left for what passes through.
    """
    if train.micro_batch is not None or not classifier.takes_tiles:
        return train.micro_batch or _LARGEST
    tile, device = classifier.settings.tile.size_px, classifier.device
    tiles = torch.full((2, tile, tile, classifier.settings.encoder.in_channels), 128, dtype=torch.uint8)
    need = max(1, bytes_per_tile(classifier, tiles))
    budget = (train.memory_gb or _CPU_BUDGET_GB) * 2**30
    if train.memory_gb is None and device.type == "cuda":
        budget = _GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    return int(min(_LARGEST, max(1, budget / 2 // need)))


def _targets(mine: list[_Instances], n_targets: int, *, is_mixed: bool) -> torch.Tensor | MixedTargets:
    own, others = (
        torch.from_numpy(np.array(rows, dtype=np.float64).reshape(len(mine), n_targets))
        for rows in ([i.target for i in mine], [i.other_target for i in mine])
    )
    if not is_mixed:
        return own
    return MixedTargets(own, others, torch.tensor([i.share for i in mine], dtype=torch.float64))


def _dropout_seed(train: TrainSettings, moment: Moment) -> int:
    return int(moment.rng(train.seed, 5).integers(1 << 62))
