"""One optimiser step: what it adds up, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import TrainSettings
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.bags import FrozenBags, Planned
from wsi_ips.training.schedule import Plan
from wsi_ips.training.selecting import Moment, Pick
from wsi_ips.training.start import build_classifier
from wsi_ips.training.step import Batch, Learner
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team

TASKS = (TaskSettings(name="a", classes=("no", "yes")), TaskSettings(name="b", classes=("no", "yes")))
NAN = float("nan")


class _Watched(Team):
    """One process that remembers what it was asked to add up."""

    def sum_gradients(self, parameters: Any) -> None:
        self.found = [None if p.grad is None else p.grad.clone() for p in parameters]


def _planned(name: str, *targets: float, n: int = 6) -> Planned:
    return Planned(Member(SlideRecord(name, f"{name}.svs", name), targets), n)


def _batch(slides: list[Planned], width: int, all_targets: np.ndarray, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    picks = [
        Pick(np.arange(s.n_tiles), None, rng.normal(size=(s.n_tiles, width)).astype(np.float32), None) for s in slides
    ]
    return Batch(slides, picks, [Moment(1, i, 6) for i in range(len(slides))], all_targets)


@pytest.fixture
def learner(tiny_settings: ModelSettings):  # type: ignore[no-untyped-def]
    """A learner for two tasks, its classifier and optimiser."""

    def make(**train: Any):  # type: ignore[no-untyped-def]
        settings = tiny_settings.replace(tasks=[t.model_dump() for t in TASKS])
        classifier = build_classifier(settings, seed=1)
        chosen = TrainSettings(**train)
        optimiser = torch.optim.SGD(classifier.attention.parameters(), lr=1e-3)
        bags = FrozenBags(settings, ReadSettings())
        return Learner(bags, TASKS, chosen, _Watched(), None, 4), classifier, optimiser

    return make


def test_a_process_without_a_slide_adds_nothing(learner) -> None:  # type: ignore[no-untyped-def]
    """The gradient of the step before is not summed again."""
    it, classifier, optimiser = learner()
    targets = np.array([[1.0, 0.0]])
    it.step(classifier, optimiser, _batch([_planned("s", 1.0, 0.0)], classifier.encoder.width, targets))
    assert any(g is not None and g.abs().max() > 0 for g in it.team.found)
    assert it.step(classifier, optimiser, _batch([], classifier.encoder.width, targets)) == 0.0
    assert all(g is None for g in it.team.found)


def test_a_mixture_counts_by_what_is_known_of_both(learner) -> None:  # type: ignore[no-untyped-def]
    """Task b is known of one slide of three: its loss is a mean over that part, however slides are mixed."""
    it, classifier, optimiser = learner(augment={"bag_mix": 1.0})
    torch.nn.init.zeros_(classifier.heads[0].weight), torch.nn.init.zeros_(classifier.heads[0].bias)
    torch.nn.init.zeros_(classifier.heads[1].weight), torch.nn.init.zeros_(classifier.heads[1].bias)
    slides = [_planned("x", 1.0, 1.0), _planned("y", 0.0, NAN), _planned("z", 1.0, NAN)]
    targets = np.array([s.member.targets for s in slides])
    for seed in range(3):
        batch = _batch(slides, classifier.encoder.width, targets, seed)
        # logits of 0: each known target costs log 2, and so does every mean over tasks and slides
        assert it.step(classifier, optimiser, batch) == pytest.approx(np.log(2.0), abs=1e-3)


def test_balanced_sampling_leaves_unknown_slides_their_share(tiny_settings: ModelSettings) -> None:
    """Ninety of one class, nine of the other, one unknown: the classes are drawn equally, the unknown once."""
    slides = [_planned(f"s{i}", 0.0 if i < 90 else 1.0 if i < 99 else NAN) for i in range(100)]
    rows = np.concatenate(Plan(slides, tiny_settings, TrainSettings(sampling="balanced"), 1).batches(1))
    assert len(rows) == 100
    assert np.sum(rows == 99) == 1
    assert abs(int(np.sum(rows < 90)) - int(np.sum((rows >= 90) & (rows < 99)))) <= 1
