"""Two passes give the plain gradient, at the memory of a micro-batch."""

from __future__ import annotations

import pytest
import torch

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.gradient import two_pass_backward

TARGET = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


def _loss(outputs: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs, TARGET.to(outputs.dtype))


def _bags(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two slides of M = 5: one of five tiles, one of two with white padding."""
    padding = torch.full((3, 32, 32, 3), 255, dtype=torch.uint8)
    bags = torch.stack([tiles[:5], torch.cat([tiles[5:], padding])])
    return bags, torch.tensor([[True] * 5, [True, True, False, False, False]])


def _plain(classifier: IPSClassifier, bags: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    classifier.zero_grad()
    features = classifier.encode(bags.flatten(0, 1)).unflatten(0, bags.shape[:2])
    _loss(classifier.outputs(features, mask)).backward()
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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("micro_batch", [1, 3, 10])
@pytest.mark.parametrize(("dim", "stages"), [(8, -1), (12, -1), (12, 2)])
def test_the_gradient_is_the_plain_one(
    make_classifier, tiles: torch.Tensor, dtype: torch.dtype, bound: float, micro_batch: int, dim: int, stages: int
) -> None:
    """For any micro-batch, with a short bag, with or without projector, whole or half frozen encoder."""
    classifier = make_classifier(dim=dim).to(dtype).train()
    classifier.encoder.precision = "float32"
    classifier.encoder.set_trainable(stages)
    bags, mask = _bags(tiles)
    wanted = _plain(classifier, bags, mask)
    classifier.zero_grad()
    step = two_pass_backward(classifier, bags, mask, _loss, micro_batch)
    assert _distance(wanted, _gradients(classifier)) < bound
    assert step.outputs.shape == (2, 4)
    assert torch.isfinite(step.loss)


def test_a_frozen_encoder_is_run_once_and_the_projector_still_learns(make_classifier, tiles: torch.Tensor) -> None:
    """Nothing to learn in the encoder: no second pass, the same gradients for all that learns."""
    classifier = make_classifier(dim=12).double().train()
    classifier.encoder.set_trainable(0)
    bags, mask = _bags(tiles)
    wanted = _plain(classifier, bags, mask)
    classifier.zero_grad()
    seen: list[int] = []
    handle = classifier.encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    two_pass_backward(classifier, bags, mask, _loss, 3)
    handle.remove()
    assert _distance(wanted, _gradients(classifier)) < 1e-9
    assert any(name.startswith("projector") for name in wanted)
    assert sum(seen) == 7


def test_padding_is_never_encoded_and_micro_batches_bound_the_memory(make_classifier, tiles: torch.Tensor) -> None:
    """Two slides with seven tiles between them: twice seven tiles are encoded, three at most at a time."""
    classifier = make_classifier().train()
    bags, mask = _bags(tiles)
    seen: list[int] = []
    handle = classifier.encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    two_pass_backward(classifier, bags, mask, _loss, 3)
    handle.remove()
    assert sum(seen) == 14
    assert max(seen) == 3


def test_gradients_add_up_over_steps(make_classifier, tiles: torch.Tensor) -> None:
    """As `backward` does: a second call adds to what stands in `.grad`."""
    classifier = make_classifier().double().train()
    bags, mask = _bags(tiles)
    two_pass_backward(classifier, bags, mask, _loss, 4)
    once = _gradients(classifier)
    two_pass_backward(classifier, bags, mask, _loss, 4)
    assert _distance({n: 2 * g for n, g in once.items()}, _gradients(classifier)) < 1e-9


def test_no_tiles_at_all_still_teach_the_head(make_classifier, tiles: torch.Tensor) -> None:
    """Bags of padding only have the query's answer; nothing is NaN."""
    classifier = make_classifier().train()
    bags, mask = _bags(tiles)
    step = two_pass_backward(classifier, bags, torch.zeros_like(mask), _loss, 4)
    assert torch.isfinite(step.loss)
    assert all(torch.isfinite(g).all() for g in _gradients(classifier).values())


def test_a_loss_that_is_not_finite_stops_before_any_gradient(make_classifier, tiles: torch.Tensor) -> None:
    """The step is refused with the numbers, and the parameters' gradients stay as they were."""
    classifier = make_classifier().train()
    bags, mask = _bags(tiles)
    with pytest.raises(ModelError, match="loss is nan") as caught:
        two_pass_backward(classifier, bags, mask, lambda outputs: outputs.sum() * float("nan"), 4)
    assert caught.value.code == "E_NOT_FINITE"
    assert not _gradients(classifier)
