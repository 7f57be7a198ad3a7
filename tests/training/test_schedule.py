"""Who comes when, and with which M: drawn from the seed, other in every epoch and step, everybody once."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.config import ModelSettings
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.bags import Planned
from wsi_ips.training.schedule import Plan
from wsi_ips.training.targets import Member


def _slides(sizes: list[int]) -> list[Planned]:
    return [
        Planned(Member(SlideRecord(f"s{i}", f"s{i}.svs", f"p{i}"), (float(i % 2),)), n) for i, n in enumerate(sizes)
    ]


def test_an_epoch_has_every_slide_once_in_an_order_of_its_own(tiny_settings: ModelSettings) -> None:
    """Ten slides in steps of four are three steps; another epoch or seed is another order, the same one the same."""
    plan = Plan(_slides([6] * 10), tiny_settings, TrainSettings(batch_slides=4), 1)
    orders = [np.concatenate(plan.batches(epoch)).tolist() for epoch in (1, 2)]
    assert [len(b) for b in plan.batches(1)] == [4, 3, 3]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1]
    assert np.concatenate(plan.batches(1)).tolist() == orders[0]
    other = Plan(_slides([6] * 10), tiny_settings, TrainSettings(batch_slides=4, seed=1), 1)
    assert np.concatenate(other.batches(1)).tolist() != orders[0]


def test_buckets_bring_slides_of_one_size_together(tiny_settings: ModelSettings) -> None:
    """Sixteen slides of 1 to 16 tiles, two a step: the two differ by one tile, and steps come in no order of size."""
    plan = Plan(_slides(np.random.default_rng(0).permutation(np.arange(1, 17)).tolist()), tiny_settings,
                TrainSettings(batch_slides=2, bucket=True), 1)  # fmt: skip
    steps = [sorted(plan.slides[i].n_tiles for i in rows) for rows in plan.batches(1)]
    assert sorted(steps) == [[n, n + 1] for n in range(1, 17, 2)]
    assert steps != sorted(steps)


def test_elastic_memory_is_drawn_anew_each_step_around_m(tiny_settings: ModelSettings) -> None:
    """M = 64 and elastic 4: over many steps 16 to 256, half of them below 64; without elastic always 64."""
    settings = tiny_settings.replace(selection={"memory_size": 64})
    plan = Plan(_slides([6]), settings, TrainSettings(elastic=4.0), 1)
    drawn = np.array([plan.memory_size(epoch, step) for epoch in (1, 2) for step in range(200)])
    assert 16 <= drawn.min() < 20
    assert 210 < drawn.max() <= 256
    assert (drawn < 64).mean() == pytest.approx(0.5, abs=0.1)
    assert (drawn[:200] != drawn[200:]).any()
    assert {Plan(_slides([6]), settings, TrainSettings(), 1).memory_size(1, s) for s in range(5)} == {64}
