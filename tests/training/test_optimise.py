"""Groups, schedule and averaged weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.progress import Reporter
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.bags import PixelBags, Planned
from wsi_ips.training.loop import Loop, Setup
from wsi_ips.training.optimise import Averaged, learning_stages, lr_factor, make_optimiser
from wsi_ips.training.start import build_classifier
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team


def test_steps_shrink_towards_the_stem(tiny_settings: ModelSettings) -> None:
    """Stage k from the head learns at lr x layer_decay^k; every learning parameter is in one group."""
    classifier = build_classifier(tiny_settings)
    optimiser = make_optimiser(classifier, TrainSettings(lr=1.0, layer_decay=0.5))
    where = {id(p): g for g in optimiser.param_groups for p in g["params"]}
    assert (
        len(where)
        == sum(p.requires_grad for p in classifier.parameters())
        == sum(len(g["params"]) for g in optimiser.param_groups)
    )
    stages = classifier.encoder.parameter_groups()
    assert where[id(classifier.attention.query)]["lr"] == 1.0
    for k, stage in enumerate(reversed(stages), 1):
        assert {where[id(p)]["lr"] for p in stage} == {0.5**k}


def test_vectors_and_queries_are_not_decayed(tiny_settings: ModelSettings) -> None:
    """Weight decay acts on matrices and kernels alone."""
    classifier = build_classifier(tiny_settings)
    for group in make_optimiser(classifier, TrainSettings(weight_decay=0.3)).param_groups:
        for p in group["params"]:
            is_kernel = p.ndim > 1 and p is not classifier.attention.query
            assert group["weight_decay"] == (0.3 if is_kernel else 0.0)


def test_the_rate_rises_then_falls_to_a_thousandth() -> None:
    """Linear over the warm-up, cosine behind it."""
    factor = lr_factor(TrainSettings(epochs=10, warmup_epochs=2), steps=5)
    rates = np.array([factor(s) for s in range(51)])
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 11)
    assert rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[30] == pytest.approx(0.001 + 0.999 * 0.5)
    assert rates[50] == pytest.approx(0.001)


def test_averaged_weights_follow_the_written_rule(tiny_settings: ModelSettings) -> None:
    """After t steps: w_t = d_t w_{t-1} + (1 - d_t) x_t with d_t = min(ema, (1 + t) / (10 + t)); the model itself stays."""
    classifier = build_classifier(tiny_settings)
    averaged = Averaged(classifier, 0.25)
    expected = classifier.attention.query.detach().clone()
    for t in range(1, 6):
        with torch.no_grad():
            classifier.attention.query.fill_(float(t))
        averaged.update(classifier)
        decay = min(0.25, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * t
    assert torch.allclose(averaged.model.attention.query, expected)
    assert torch.equal(classifier.attention.query, torch.full_like(expected, 5.0))
    assert Averaged(classifier, 0.0).model is classifier


def test_the_head_learns_alone_in_the_first_and_last_epochs_as_asked(tiny_settings: ModelSettings) -> None:
    """Between them as many stages as are set; the head learns throughout, and what does not learn is not decayed either."""
    train = TrainSettings(epochs=6, head_first=2, head_last=1, train_stages=3, weight_decay=0.5)
    assert [learning_stages(train, epoch) for epoch in range(1, 7)] == [0, 0, 3, 3, 3, 0]
    assert learning_stages(TrainSettings(), 1) == -1
    with pytest.raises(ValidationError, match="leave the encoder no epoch of 6"):
        TrainSettings(epochs=6, head_first=4, head_last=2)
    slides = [Planned(Member(SlideRecord(f"s{i}", f"s{i}", f"p{i}"), (float(i),)), 6) for i in range(2)]
    bags = _Noise(tiny_settings, ReadSettings())
    classifier = build_classifier(tiny_settings)
    before = {n: p.clone() for n, p in classifier.named_parameters()}
    moved: list[set[str]] = []

    def watch(_: object) -> None:
        moved.append({n for n, p in classifier.named_parameters() if not torch.equal(p, before[n])})
        before.update({n: p.clone() for n, p in classifier.named_parameters()})

    train = TrainSettings(epochs=3, head_first=1, head_last=1, batch_slides=2, weight_decay=0.5, keep="last")
    Loop(classifier, Setup(tiny_settings, train, bags, Team(), on_epoch=watch), Reporter("training", 0, quiet=True)).run(slides, [])
    encoder = {n for n in before if n.startswith("encoder.")}
    assert [bool(names & encoder) for names in moved] == [False, True, False]
    assert all("attention.to_key.weight" in names for names in moved)


class _Noise(PixelBags):
    """Bags of noise that need no slide."""

    def tiles(self, planned: Planned, rows: np.ndarray) -> Iterator[np.ndarray]:
        yield np.random.default_rng(planned.n_tiles).integers(0, 256, (len(rows), 32, 32, 3), dtype=np.uint8)
