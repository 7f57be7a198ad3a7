"""Where a training starts: a head is kept only when it answers the same questions, and random parts follow the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.model.bundle import load_bundle
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.start import Start, choose_stages, make_start


def _start(tiny_bundle: Path, tasks: tuple[TaskSettings, ...]) -> Start:
    return make_start(
        ModelSettings(), tasks, (), init=tiny_bundle, offline=True, allow_mismatch=False, precision="float32"
    )


def test_a_head_of_the_same_classes_goes_on_learning(tiny_bundle: Path) -> None:
    """The model that training starts from is the bundle's, to the last weight."""
    bundle = load_bundle(tiny_bundle)
    start = _start(tiny_bundle, bundle.settings.tasks)
    made, own = start.make(start.settings, 5).state_dict(), bundle.single.state_dict()
    assert not start.is_new_head
    assert all(torch.equal(made[k], own[k]) for k in own)


def test_classes_in_another_order_need_a_new_head(tiny_bundle: Path) -> None:
    """The old one would call every class by the other's name: the encoder stays, the head is drawn from the seed."""
    bundle = load_bundle(tiny_bundle)
    task = bundle.settings.tasks[0]
    start = _start(tiny_bundle, (task.replace(classes=task.classes[::-1]), *bundle.settings.tasks[1:]))
    assert start.is_new_head
    made = {seed: start.make(start.settings, seed).state_dict() for seed in (5, 6)}
    own = bundle.single.state_dict()
    assert all(torch.equal(made[5][k], own[k]) for k in own if k.startswith("encoder."))
    for other in (own, made[6]):
        assert not torch.equal(made[5]["attention.query"], other["attention.query"])
    again = start.make(start.settings, 5).state_dict()
    assert all(torch.equal(made[5][k], again[k]) for k in again)


@pytest.mark.parametrize(("n_train", "stages"), [(199, 0), (200, 1)])
def test_few_slides_do_not_move_a_trained_encoder(tiny_bundle: Path, n_train: int, stages: int) -> None:
    """Below 200 training slides the head alone learns, from there on the last stage, too; what is asked for wins."""
    start = _start(tiny_bundle, load_bundle(tiny_bundle).settings.tasks)
    assert choose_stages(None, start, n_train)[0] == stages
    assert choose_stages(3, start, n_train)[0] == 3
    assert choose_stages(None, start._replace(is_scratch=True), n_train)[0] == -1
