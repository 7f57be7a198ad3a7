"""Who comes when: the order of slides in each epoch, their steps, and M of each step; all from the seed."""

from __future__ import annotations

import math

import numpy as np

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ConfigError
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.bags import Planned

__all__ = ["Plan"]

_WINDOW = 8  # steps among which slides are sorted by size


class Plan:
    """The order of a training.

    Args:
        slides: training slides.
        settings: of the model.
        train: of the training.
        n_processes: several wait for each other, so their slides should be of about one size.
    """

    def __init__(self, slides: list[Planned], settings: ModelSettings, train: TrainSettings, n_processes: int) -> None:
        self.slides, self._train, self._m = slides, train, settings.selection.memory_size
        self.n_steps = math.ceil(len(slides) / train.batch_slides)
        self._buckets = train.bucket if train.bucket is not None else n_processes > 1
        kind = settings.tasks[0].kind
        if train.sampling == "balanced" and kind in ("regression", "survival", "multilabel"):
            raise ConfigError(
                f"sampling balanced: the first task is {kind}, which has no one class a slide; use uniform"
            )
        # classes of the first task, for balanced sampling; -1 where unknown
        first = [p.member.targets[0] for p in slides]
        self._class_of = np.array([-1 if math.isnan(t) else int(t) for t in first])

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Rows of the slides of every step of an epoch."""
        rng = np.random.default_rng([self._train.seed, epoch, 1, 1, 1, 1])
        n = len(self.slides)
        if self._train.sampling == "balanced":
            unknown = np.flatnonzero(self._class_of < 0)  # they teach the other tasks, each once an epoch as ever
            groups = [np.flatnonzero(self._class_of == c) for c in np.unique(self._class_of) if c >= 0]
            drawn = [int(rng.choice(groups[i % len(groups)])) for i in range(n - len(unknown))]
            order = rng.permutation(np.array([*drawn, *unknown]))
        else:
            order = rng.permutation(n)
        if not self._buckets:
            return np.array_split(order, self.n_steps)
        sizes = np.array([p.n_tiles for p in self.slides])
        window = _WINDOW * self._train.batch_slides
        parts = [order[i : i + window] for i in range(0, n, window)]
        order = np.concatenate([part[np.argsort(sizes[part], kind="stable")] for part in parts])
        steps = np.array_split(order, self.n_steps)
        return [steps[i] for i in rng.permutation(len(steps))]

    def memory_size(self, epoch: int, step: int) -> int:
        """M of a step: fixed, or drawn log-uniformly around it (`elastic`)."""
        if self._train.elastic == 1.0:
            return self._m
        draw = np.random.default_rng([self._train.seed, epoch, step, 7, 7, 7]).uniform(-1.0, 1.0)
        return max(1, round(self._m * self._train.elastic**draw))
