"""Groups, schedule and averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.optimise import Averaged, lr_factor, make_optimiser
from wsi_ips.training.start import build_classifier


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
