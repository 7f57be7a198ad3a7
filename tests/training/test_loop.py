"""The loop over epochs on vectors in memory: which epochs score every tile, which weights are judged and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.progress import Reporter
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.recipe import TrainSettings
from wsi_ips.training import loop as loop_module
from wsi_ips.training.bags import FrozenBags, Planned
from wsi_ips.training.labelling import Labelled
from wsi_ips.training.loop import Loop, Setup
from wsi_ips.training.selecting import Moment, Pick, Picker
from wsi_ips.training.start import build_classifier
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team

WIDTH = 8


@pytest.fixture
def start() -> Callable[..., tuple[Loop, list[Planned]]]:
    """A loop over four slides of six vectors each, and the slides; settings of the training as given."""

    def make(**train: Any) -> tuple[Loop, list[Planned]]:
        settings = ModelSettings.model_validate({
            "encoder": {"name": "features", "width": WIDTH}, "attention": {"dim": 16, "n_heads": 2, "dropout": 0.0},
            "selection": {"memory_size": 4, "chunk_size": 8},
            "tasks": [{"name": "a", "kind": "binary", "classes": ["no", "yes"]}],
        })  # fmt: skip
        bags, rng = FrozenBags(settings, ReadSettings()), np.random.default_rng(0)
        slides = []
        for i in range(4):
            bags.held[f"s{i}"] = rng.normal(size=(6, WIDTH)).astype(np.float32)
            slides.append(Planned(Member(SlideRecord(f"s{i}", f"s{i}.h5", f"p{i}"), (float(i % 2),)), 6))
        setup = Setup(settings, TrainSettings(batch_slides=2, lr=1e-2, **train), bags, Team())
        return Loop(build_classifier(settings, seed=1), setup, Reporter("training", 0, quiet=True)), slides

    return make


def test_every_tile_is_scored_at_first_and_after_an_audit_that_found_too_little(
    start: Callable[..., tuple[Loop, list[Planned]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One random epoch and two full ones; then stale, but for the epoch behind one whose recall was 0.5."""
    loop, slides = start(epochs=7, random_epochs=1, rescan={"mode": "stale", "full_epochs": 2, "min_recall": 0.9})
    is_full: dict[int, bool] = {}
    real = Picker.pick

    def watch(self: Picker, planned: Planned, classifier: IPSClassifier, moment: Moment) -> Pick:
        is_full[moment.epoch] = moment.is_full
        return real(self, planned, classifier, moment)

    recalls = iter([float("nan"), float("nan"), float("nan"), 0.95, 0.5, float("nan"), 0.95])
    monkeypatch.setattr(Picker, "pick", watch)
    monkeypatch.setattr(loop_module, "pooled_recall", lambda _audits: next(recalls))
    loop.run(slides, slides)
    assert [epoch for epoch, full in is_full.items() if full] == [1, 2, 3, 6]


def _judged_by(
    loop: Loop, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Let epochs score as said; gathers the queries of the model that is judged and of the one that learns."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def judge(model: IPSClassifier, *_: Any) -> Labelled:
        seen.append((model.attention.query.detach().clone(), loop.classifier.attention.query.detach().clone()))
        return Labelled(1.0, scores[len(seen) - 1], np.zeros((4, 1)))

    monkeypatch.setattr(loop_module, "judge", judge)
    return seen


def test_averaged_weights_are_judged_and_the_best_of_them_kept(
    start: Callable[..., tuple[Loop, list[Planned]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an average, validation never sees the plain weights, and the model ends with the average of the best epoch."""
    loop, slides = start(epochs=3, ema=0.9)
    seen = _judged_by(loop, [0.5, 0.9, 0.7], monkeypatch)
    trained = loop.run(slides, slides)
    assert not any(torch.equal(judged, plain) for judged, plain in seen)
    assert trained.best_epoch == 2
    assert torch.equal(trained.classifier.attention.query, seen[1][0])


def test_the_weights_of_the_best_epoch_come_back(
    start: Callable[..., tuple[Loop, list[Planned]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs learn on behind the best one, and the model ends with the best one's weights all the same."""
    loop, slides = start(epochs=3)
    seen = _judged_by(loop, [0.9, 0.5, 0.7], monkeypatch)
    trained = loop.run(slides, slides)
    assert torch.equal(trained.classifier.attention.query, seen[0][0])
    assert not torch.equal(seen[0][0], seen[2][0])


@pytest.mark.parametrize(("scores", "train", "n_epochs"), [
    ([0.5, 0.9, 0.8, 0.7, 0.99], {"patience": 2}, 4),
    ([0.9, 0.5, 0.4, 0.99, 0.3], {"patience": 1, "random_epochs": 2}, 3),
    ([0.5, 0.9, 0.8, 0.7, 0.99], {}, 5),
])  # fmt: skip
def test_patience_waits_for_a_better_epoch_and_not_on_random_tiles(
    start: Callable[..., tuple[Loop, list[Planned]]], monkeypatch: pytest.MonkeyPatch, scores: list[float],
    train: dict[str, Any], n_epochs: int,
) -> None:  # fmt: skip
    """Two epochs without a better one end it; epochs on random tiles are no waiting; without patience all are done."""
    loop, slides = start(epochs=5, **train)
    _judged_by(loop, scores, monkeypatch)
    assert len(loop.run(slides, slides).history) == n_epochs
