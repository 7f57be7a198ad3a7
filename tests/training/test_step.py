"""One optimiser step: what it adds up, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.errors import ModelError
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.gradient import Step
from wsi_ips.recipe import TrainSettings
from wsi_ips.tasks import TaskSettings
from wsi_ips.training import step as step_module
from wsi_ips.training.bags import FrozenBags, PixelBags, Planned
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
        Pick(np.arange(s.n_tiles), None, None, rng.normal(size=(s.n_tiles, width)).astype(np.float32), None) for s in slides
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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the backward pass and the loss of the last step were given; the pass itself is left out."""
    found: dict[str, Any] = {}

    def backward(classifier: Any, bags: Any, loss_of: Any, micro_batch: int) -> Step:
        found["bags"] = [(bag.instances[:].clone(), bag.others, bag.seed) for bag in bags]
        found["is_training"] = classifier.training
        outputs = torch.zeros(len(bags), 2, requires_grad=True)
        return Step(loss_of(outputs, torch.ones(len(bags), 2)).detach(), outputs)

    def loss(outputs: torch.Tensor, targets: Any, *_: Any, **__: Any) -> torch.Tensor:
        found["targets"] = targets
        return outputs.sum()

    monkeypatch.setattr(step_module, "two_pass_backward", backward)
    monkeypatch.setattr(step_module, "slide_loss", loss)
    return found


def test_the_gradient_is_clipped_before_the_step(learner) -> None:  # type: ignore[no-untyped-def]
    """At a rate of 1 no step is longer than the largest norm."""
    it, classifier, optimiser = learner(clip_norm=0.01)
    optimiser.param_groups[0]["lr"] = 1.0
    before = [p.detach().clone() for p in classifier.attention.parameters()]
    it.step(classifier, optimiser, _batch([_planned("s", 1.0, 0.0)], classifier.encoder.width, np.array([[1.0, 0.0]])))
    moved = sum(
        float((p.detach() - b).square().sum()) for p, b in zip(classifier.attention.parameters(), before, strict=True)
    )
    assert moved**0.5 == pytest.approx(0.01, rel=1e-3)


def test_spread_attention_is_rewarded(learner) -> None:  # type: ignore[no-untyped-def]
    """Queries of 0 look everywhere alike, relative entropy 1: the loss is smaller by the weight of the reward."""
    losses = []
    for entropy in (0.0, 0.25):
        it, classifier, optimiser = learner(entropy=entropy)
        torch.nn.init.zeros_(classifier.attention.query)
        batch = _batch([_planned("s", 1.0, 0.0)], classifier.encoder.width, np.array([[1.0, 0.0]]))
        losses.append(it.step(classifier, optimiser, batch))
    assert losses[0] - losses[1] == pytest.approx(0.25, abs=1e-4)


def test_class_weights_reach_the_loss(learner) -> None:  # type: ignore[no-untyped-def]
    """Logits of 0 cost log 2; the class of task a counts three times, that of b once: twice log 2 on the mean."""
    it, classifier, optimiser = learner()
    it.class_weights = ((1.0, 3.0), (1.0, 1.0))
    for head in classifier.heads:
        torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    batch = _batch([_planned("s", 1.0, 0.0)], classifier.encoder.width, np.array([[1.0, 0.0]]))
    assert it.step(classifier, optimiser, batch) == pytest.approx(2 * np.log(2.0), abs=1e-3)


def test_a_mixture_keeps_its_own_label_by_the_larger_share(learner, seen: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    """Two slides of two classes: what a bag is held against is its own label by 0.5 or more, and the other's for the rest."""
    it, classifier, optimiser = learner(augment={"bag_mix": 1.0})
    targets = np.array([[1.0, 0.0], [0.0, 1.0]])
    slides = [_planned("x", *targets[0], n=20), _planned("y", *targets[1], n=20)]
    batch = _batch(slides, classifier.encoder.width, targets)
    it.step(classifier, optimiser, batch)
    mixed = seen["targets"]
    assert mixed.targets.tolist() == targets.tolist()
    assert mixed.others.tolist() == targets[::-1].tolist()
    own = [float(np.isin(bag[0].numpy()[:, 0], pick.embeddings[:, 0]).mean())
           for bag, pick in zip(seen["bags"], batch.picks, strict=True)]  # fmt: skip
    assert mixed.share.tolist() == pytest.approx(own)
    assert all(0.5 <= share < 1.0 for share in own)


def test_a_step_learns_with_dropout_of_each_slides_own_and_with_the_context(learner, seen: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    """The model is in training mode, every slide and step has its draws, and the unselected tiles come along."""
    it, classifier, optimiser = learner()
    targets = np.array([[1.0, 0.0], [0.0, 1.0]])
    batch = _batch([_planned("x", *targets[0]), _planned("y", *targets[1])], classifier.encoder.width, targets)
    others = np.full((3, classifier.encoder.width), 2.0, np.float32)
    batch = batch._replace(picks=[pick._replace(others=others) for pick in batch.picks])
    classifier.eval()
    it.step(classifier, optimiser, batch)
    first = [bag[2] for bag in seen["bags"]]
    assert seen["is_training"]
    assert all(bag[1].tolist() == others.tolist() for bag in seen["bags"])
    it.step(classifier, optimiser, batch._replace(moments=[Moment(1, i, 6, step=1) for i in range(2)]))
    assert len({*first, *(bag[2] for bag in seen["bags"])}) == 4


def test_tiles_are_augmented_anew_each_time(learner, seen: dict[str, Any], tiny_settings: ModelSettings) -> None:  # type: ignore[no-untyped-def]
    """Flips and turns alone: each tile keeps its pixels and changes their places, and other ones in another epoch."""
    it, classifier, optimiser = learner(augment={"hed_jitter": 0.0})
    tiles = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)

    class Drawn(PixelBags):
        def tiles(self, planned: Planned, rows: np.ndarray) -> Any:
            yield tiles[rows]

    it.bags = Drawn(tiny_settings, ReadSettings())
    slide, targets = _planned("s", 1.0, 0.0), np.array([[1.0, 0.0]])
    learned = []
    for epoch in (1, 2):
        batch = Batch([slide], [Pick(np.arange(6), None, None, None, None)], [Moment(epoch, 0, 6)], targets)
        it.step(classifier, optimiser, batch)
        learned.append(seen["bags"][0][0].numpy())
        assert np.array_equal(np.sort(learned[-1].reshape(6, -1)), np.sort(tiles.reshape(6, -1)))
        assert not np.array_equal(learned[-1], tiles)
    assert not np.array_equal(*learned)


def test_fault_111_a_gradient_that_is_not_finite_reaches_no_weight(learner, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A finite loss may have one: the step stops with epoch, step, slides and rate, and every weight is what it was."""
    it, classifier, optimiser = learner()
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    real = step_module.slide_loss

    def loss(outputs: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        return real(outputs, *args, **more) + (outputs.sum() * 0.0).sqrt()  # 0 with an infinite slope

    monkeypatch.setattr(step_module, "slide_loss", loss)
    batch = _batch([_planned("s", 1.0, 0.0)], classifier.encoder.width, np.array([[1.0, 0.0]]))
    with pytest.raises(ModelError, match=r"gradient is not finite.*epoch 1, step 1; slides s; learning rate 0.001") as caught:
        it.step(classifier, optimiser, batch)
    assert caught.value.code == "E_NOT_FINITE"
    assert all(torch.equal(before[k], v) for k, v in classifier.state_dict().items())
