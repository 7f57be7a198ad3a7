"""Two passes give the plain gradient, at the memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from plain_head import plain_outputs

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.gradient import BagInput, bytes_per_tile, one_pass_backward, two_pass_backward

TARGET = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


def _loss(outputs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    cross = torch.nn.functional.binary_cross_entropy_with_logits(outputs, TARGET.to(outputs.dtype))
    return cross - 0.3 * entropy.mean()


def _bags(tiles: torch.Tensor) -> list[BagInput]:
    """Two slides: one of five tiles, one of two."""
    return [BagInput(tiles[:5], seed=1), BagInput(tiles[5:], seed=2)]


def _plain(classifier: IPSClassifier, bags: list[BagInput]) -> dict[str, torch.Tensor]:
    classifier.zero_grad()
    found = []
    for bag in bags:
        torch.manual_seed(bag.seed)
        found.append(classifier.head(classifier.encode(bag.instances), bag.others))
    _loss(torch.stack([f.outputs for f in found]), torch.stack([f.entropy for f in found])).backward()
    return _gradients(classifier)


def _gradients(classifier: IPSClassifier) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in classifier.named_parameters() if p.grad is not None}


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative L2 distance of any parameter's gradient; tiny ones are measured against the largest.

    The query's gradient nearly cancels on bags of noise (1e-4 of the others), so its float32 rounding says nothing.
    """
    assert a.keys() == b.keys()
    largest = max(float(g.norm()) for g in a.values())
    return max(float((a[n] - b[n]).norm() / max(float(a[n].norm()), 1e-3 * largest)) for n in a)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("micro_batch", [1, 3, 10])
@pytest.mark.parametrize(("dim", "stages"), [(8, -1), (12, -1), (12, 2)])
def test_the_gradient_is_the_plain_one(
    make_classifier, tiles: torch.Tensor, dtype: torch.dtype, bound: float, micro_batch: int, dim: int, stages: int
) -> None:
    """For any micro-batch, with a short bag and dropout, with or without projector, whole or half frozen encoder."""
    classifier = make_classifier(dim=dim, dropout=0.3).to(dtype).train()
    classifier.encoder.precision = "float32"
    classifier.encoder.set_trainable(stages)
    bags = _bags(tiles)
    wanted = _plain(classifier, bags)
    classifier.zero_grad()
    step = two_pass_backward(classifier, bags, _loss, micro_batch)
    assert _distance(wanted, _gradients(classifier)) < bound
    assert step.outputs.shape == (2, 4)
    assert torch.isfinite(step.loss)


def test_a_frozen_encoder_is_run_once_and_the_projector_still_learns(make_classifier, tiles: torch.Tensor) -> None:
    """Nothing to learn in the encoder: no second pass, the same gradients for all that learns."""
    classifier = make_classifier(dim=12).double().train()
    classifier.encoder.set_trainable(0)
    bags = _bags(tiles)
    wanted = _plain(classifier, bags)
    classifier.zero_grad()
    seen: list[int] = []
    handle = classifier.encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    two_pass_backward(classifier, bags, _loss, 3)
    handle.remove()
    assert _distance(wanted, _gradients(classifier)) < 1e-9
    assert any(name.startswith("projector") for name in wanted)
    assert sum(seen) == 7


def test_tiles_are_encoded_twice_and_micro_batches_bound_the_memory(make_classifier, tiles: torch.Tensor) -> None:
    """Two slides with seven tiles between them: twice seven tiles are encoded, three at most at a time."""
    classifier = make_classifier().train()
    bags = _bags(tiles)
    seen: list[int] = []
    handle = classifier.encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    two_pass_backward(classifier, bags, _loss, 3)
    handle.remove()
    assert sum(seen) == 14
    assert max(seen) == 3


def test_gradients_add_up_over_steps(make_classifier, tiles: torch.Tensor) -> None:
    """As `backward` does: a second call adds to what stands in `.grad`."""
    classifier = make_classifier().double().train()
    bags = _bags(tiles)
    two_pass_backward(classifier, bags, _loss, 4)
    once = _gradients(classifier)
    two_pass_backward(classifier, bags, _loss, 4)
    assert _distance({n: 2 * g for n, g in once.items()}, _gradients(classifier)) < 1e-9


def test_a_bag_without_tiles_still_teaches_the_head(make_classifier, tiles: torch.Tensor) -> None:
    """No tile: the query's answer alone, and nothing is NaN."""
    classifier = make_classifier().train()
    step = two_pass_backward(classifier, [BagInput(tiles[:0]), BagInput(tiles[:2])], _loss, 4)
    assert torch.isfinite(step.loss)
    assert all(torch.isfinite(g).all() for g in _gradients(classifier).values())


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_a_bag_does_not_depend_on_its_company(make_classifier, tiles: torch.Tensor, micro_batch: int) -> None:
    """Its outputs under dropout are the same bits alone, first or last in a step; another seed drops other parts."""
    classifier = make_classifier(dim=12, dropout=0.5).train()
    bag, other = _bags(tiles)

    def outputs(*bags: BagInput) -> torch.Tensor:
        return two_pass_backward(classifier, bags, lambda z, _entropy: z.sum(), micro_batch).outputs

    alone = outputs(bag)[0]
    assert torch.equal(alone, outputs(bag, other)[0])
    assert torch.equal(alone, outputs(other, other, bag)[2])
    assert not torch.equal(alone, outputs(bag._replace(seed=9))[0])


def test_dropout_leaves_the_global_generator_alone(make_classifier, tiles: torch.Tensor) -> None:
    """The seeds of bags are no seeds of anything else."""
    classifier = make_classifier(dropout=0.5).train()
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    two_pass_backward(classifier, _bags(tiles), _loss, 4)
    assert torch.equal(torch.rand(2), wanted)


class _Spool:
    """Tiles that are handed out in parts only."""

    def __init__(self, tiles: torch.Tensor) -> None:
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        return (self._tiles[i : i + size] for i in range(0, len(self), size))


def test_tiles_need_not_lie_in_memory(make_classifier, tiles: torch.Tensor) -> None:
    """What gives tiles in parts teaches as a tensor of them does, also an empty one."""
    classifier = make_classifier(dim=12).double().train()
    wanted = _plain(classifier, _bags(tiles))
    classifier.zero_grad()
    two_pass_backward(classifier, [b._replace(instances=_Spool(b.instances)) for b in _bags(tiles)], _loss, 3)
    assert _distance(wanted, _gradients(classifier)) < 1e-12
    two_pass_backward(classifier, [BagInput(_Spool(tiles[:0])), BagInput(tiles[:1])], _loss, 3)


def test_embeddings_skip_the_encoder(make_classifier, tiles: torch.Tensor) -> None:
    """Float instances: the encoder is not run and gets no gradient; the rest learns as from the tiles."""
    classifier = make_classifier(dim=12, dropout=0.3).double().train()
    wanted = _plain(classifier, _bags(tiles))
    embeddings = classifier.embed(tiles).detach()
    classifier.zero_grad()
    handle = classifier.encoder.register_forward_hook(lambda *_: pytest.fail("the encoder was run"))
    two_pass_backward(classifier, [BagInput(embeddings[:5], seed=1), BagInput(embeddings[5:], seed=2)], _loss, 3)
    handle.remove()
    found = _gradients(classifier)
    assert not any(name.startswith("encoder") for name in found)
    assert _distance({n: g for n, g in wanted.items() if not n.startswith("encoder")}, found) < 1e-12


def test_the_context_teaches_the_head_but_gets_no_gradient_itself(
    make_classifier, tiles: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles as context give the gradient of the undivided bag, less what went through their own embeddings."""
    monkeypatch.setattr("wsi_ips.model.classifier._OTHERS_BLOCK", 2)
    classifier = make_classifier(dim=12).double().train()
    others = classifier.embed(tiles[2:]).detach().requires_grad_()
    bag = BagInput(tiles[:2], others)
    features = torch.cat([classifier.encode(tiles[:2]), classifier.project(others.detach())])
    wanted_outputs = plain_outputs(classifier, features)[None]
    wanted_outputs.square().sum().backward()
    wanted = _gradients(classifier)
    classifier.zero_grad()
    step = two_pass_backward(classifier, [bag], lambda z, _entropy: z.square().sum(), 4)
    assert torch.allclose(step.outputs, wanted_outputs, atol=1e-12, rtol=0)
    assert _distance(wanted, _gradients(classifier)) < 1e-10
    assert others.grad is None


def test_short_of_memory_the_step_can_be_made_again(make_classifier, tiles: torch.Tensor) -> None:
    """An error in pass 2, gradients zeroed, a smaller micro-batch: the plain gradient."""
    classifier = make_classifier(dim=12, dropout=0.3).double().train()
    wanted = _plain(classifier, _bags(tiles))
    classifier.zero_grad()

    def refuse(_module: object, args: tuple[torch.Tensor], _out: object) -> None:
        if torch.is_grad_enabled() and len(args[0]) > 2:
            raise torch.OutOfMemoryError("short of memory")

    handle = classifier.encoder.register_forward_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        two_pass_backward(classifier, _bags(tiles), _loss, 4)
    classifier.zero_grad()
    two_pass_backward(classifier, _bags(tiles), _loss, 2)
    handle.remove()
    assert _distance(wanted, _gradients(classifier)) < 1e-12


class _Scale(torch.nn.Module):
    """Multiplies by numbers made from a parameter: kept for the backward pass once, however many tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.log = torch.nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.log.exp()


def test_bytes_a_tile_are_counted(make_classifier, tiles: torch.Tensor) -> None:
    """A known net keeps the input of each layer a tile; what is kept once is not a tile's; frozen, nothing is kept."""
    classifier = make_classifier()
    layers = (torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 32), torch.nn.Flatten(), _Scale())
    classifier.encoder.net = torch.nn.Sequential(*layers)
    classifier.encoder.precision = "float32"
    a_tile, once = 4 * (32 * 32 * (3 + 4) + 8), 4 * 8
    assert bytes_per_tile(classifier, tiles[:2]) == a_tile
    assert bytes_per_tile(classifier, tiles[:5]) == a_tile
    assert bytes_per_tile(classifier, tiles[:1]) == a_tile + once
    classifier.encoder.requires_grad_(False)
    assert bytes_per_tile(classifier, tiles) == 0


def test_fault_111_a_loss_that_is_not_finite_stops_before_any_gradient(make_classifier, tiles: torch.Tensor) -> None:
    """The step is refused with the numbers, and the parameters' gradients stay as they were."""
    classifier = make_classifier().train()
    bags = _bags(tiles)
    with pytest.raises(ModelError, match="loss is nan") as caught:
        two_pass_backward(classifier, bags, lambda outputs, _entropy: outputs.sum() * float("nan"), 4)
    assert caught.value.code == "E_NOT_FINITE"
    assert not _gradients(classifier)


def test_batch_statistics_learn_in_one_plain_pass(make_classifier, tiles: torch.Tensor) -> None:
    """The gradient is the plain one of norms in training mode over all tiles of the step, whose statistics follow."""
    classifier = make_classifier(dim=12).double().train()
    bags, norm = _bags(tiles), classifier.encoder.net.bn1
    frozen = _plain(classifier, bags)
    before = norm.running_mean.clone()
    classifier.zero_grad()
    step = one_pass_backward(classifier, bags, _loss)
    found = _gradients(classifier)
    moved = norm.running_mean.clone()
    assert not any(m.training for m in classifier.encoder.net.modules())

    classifier.zero_grad()
    for m in classifier.encoder.net.modules():
        m.train(isinstance(m, torch.nn.BatchNorm2d))
    whole = classifier.encode(tiles)
    outputs = torch.stack([classifier.head(part).outputs for part in whole.split([5, 2])])
    entropy = torch.stack([classifier.head(part).entropy for part in whole.split([5, 2])])
    _loss(outputs, entropy).backward()
    assert torch.allclose(step.outputs, outputs, atol=1e-10)
    assert _distance(found, _gradients(classifier)) < 1e-10
    assert _distance(found, frozen) > 1e-2
    assert not torch.equal(before, moved)
