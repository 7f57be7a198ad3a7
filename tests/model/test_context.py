"""Context: the unselected tiles enter the label, exactly, and the evidence of the selected stays exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_head import plain_outputs, plain_weights

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.context import ContextPool
from wsi_ips.model.evidence import leave_one_out
from wsi_ips.results import Pooled


def _pooled(values: np.ndarray, logits: np.ndarray) -> Pooled:
    """Pool (n, H, Dk) and (n, T, H) in one piece, in extended precision."""
    z = logits.astype(np.longdouble)
    log_norm = z.max(0) + np.log(np.exp(z - z.max(0)).sum(0))
    weights = np.exp(z - log_norm)
    mean = (weights[..., None] * values[:, None].astype(np.longdouble)).sum(0)
    return Pooled(log_norm.astype(np.float64), mean.astype(np.float64))


def _bag(n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3, 4)), (spread * rng.normal(size=(n, 2, 3))).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_the_rest_is_the_pool_of_the_unselected(chunk: int, spread: float) -> None:
    """For any chunking, any order and any spread of logits: the direct sum over the unselected, to 1e-9."""
    values, logits = _bag(100, spread, seed=1)
    order = np.random.default_rng(2).permutation(100)
    pool = ContextPool()
    for start in range(0, 100, chunk):
        rows = order[start : start + chunk]
        pool.add(values[rows], logits[rows])
    selected = np.argsort(-logits.sum((1, 2)))[:10]
    rest = np.setdiff1d(np.arange(100), selected)
    found, wanted = pool.rest(values[selected], logits[selected]), _pooled(values[rest], logits[rest])
    assert found is not None
    assert found.log_norm.dtype == found.mean.dtype == np.float64
    assert found.log_norm.shape == (2, 3)
    assert found.mean.shape == (2, 3, 4)
    assert np.abs(found.log_norm - wanted.log_norm).max() < 1e-9
    assert np.abs(found.mean - wanted.mean).max() < 1e-9


@pytest.mark.parametrize("lead", [20.0, 100.0, 2000.0])
def test_the_rest_survives_selected_tiles_that_hold_all_mass(lead: float) -> None:
    """Where the unselected are lost in float64 beside the selected, they are still known to 1e-9 by themselves."""
    values, logits = _bag(50, 2.0, seed=3)
    logits[:5] += lead
    pool = ContextPool()
    pool.add(values, logits)
    found, wanted = pool.rest(values[:5], logits[:5]), _pooled(values[5:], logits[5:])
    assert found is not None
    assert np.abs(found.log_norm - wanted.log_norm).max() < 1e-9
    assert np.abs(found.mean - wanted.mean).max() < 1e-9


def test_nothing_is_left_when_all_are_selected() -> None:
    """m = N has no context; an unused pool has none either."""
    values, logits = _bag(4, 1.0, seed=0)
    pool = ContextPool()
    assert pool.rest(values[:0], logits[:0]) is None
    pool.add(values, logits)
    assert pool.rest(values[[2, 0, 3, 1]], logits[[2, 0, 3, 1]]) is None


def _context(classifier: IPSClassifier, bag: torch.Tensor) -> Pooled:
    """Pool tiles (n, D) of float64 directly."""
    return _pooled(classifier.values(bag.numpy()), classifier.head_logits(bag).detach().numpy())


def test_evidence_with_context_is_what_really_removing_the_tile_changes(make_classifier) -> None:
    """40 random bags, also m = 1 and with one tile or the context holding nearly all: recomputed in full, to 1e-9."""
    rng = np.random.default_rng(4)
    classifier = make_classifier(n_heads=4, context=True).double()
    for number in range(40):
        m, scale = (1, 2, 3, 9)[number % 4], (1.0, 5.0, 60.0)[number % 3]
        bag = torch.from_numpy(rng.normal(size=(m, 8)) * scale)
        others = torch.from_numpy(rng.normal(size=(11, 8)) * scale)
        found = leave_one_out(classifier.attention, classifier.heads, bag, _context(classifier, others))
        whole = torch.cat([bag, others])
        assert torch.allclose(found.outputs, plain_outputs(classifier, whole), atol=1e-9, rtol=0)
        removed = [plain_outputs(classifier, torch.cat([whole[:i], whole[i + 1 :]])) for i in range(m)]
        assert torch.allclose(found.without, torch.stack(removed), atol=1e-9, rtol=0), (number, m)


def test_streaming_gives_the_label_of_the_undivided_bag(make_classifier, tiles: torch.Tensor) -> None:
    """Scan, pool, select, read out: the head over all tiles, and the same bits from stored values and context."""
    classifier = make_classifier(dim=12, context=True)
    scan = classifier.scan(tiles, 3)
    pool, rows = ContextPool(), np.array([5, 1])
    for part in (slice(0, 4), slice(4, 7)):
        pool.add(classifier.values(scan.features[part]), scan.logits[part])
    context = pool.rest(classifier.values(scan.features[rows]), scan.logits[rows])
    found = classifier.read_out(scan.features[rows], context)
    assert np.allclose(found.outputs, plain_outputs(classifier, torch.from_numpy(scan.features)).detach(), atol=1e-5)
    assert not np.allclose(found.outputs, classifier.read_out(scan.features[rows]).outputs, atol=1e-3)
    again = classifier.read_out(scan.features[rows], context)
    assert np.array_equal(found.outputs, again.outputs)
    assert np.array_equal(found.evidence, again.evidence)


def test_a_model_without_context_refuses_one(make_classifier) -> None:
    """The settings say what the label is read from; nothing else gets in."""
    classifier = make_classifier()
    context = _context(classifier.double(), torch.randn(3, 8, dtype=torch.float64))
    with pytest.raises(ModelError, match=r"selection\.context is off"):
        classifier.read_out(np.zeros((2, 8), np.float32), context)


@pytest.mark.parametrize(("m", "n"), [(4, 9), (1, 1), (3, 4), (0, 5)])
def test_the_training_head_equals_the_undivided_computation(
    make_classifier, monkeypatch: pytest.MonkeyPatch, m: int, n: int
) -> None:
    """Outputs and every gradient of selected + others, in blocks of 4, are those of one bag, to 1e-10."""
    monkeypatch.setattr("wsi_ips.model.classifier._OTHERS_BLOCK", 4)
    classifier = make_classifier(dim=12).double()
    generator = torch.Generator().manual_seed(m)
    chosen, others = (torch.randn(k, 8, dtype=torch.float64, generator=generator) for k in (m, n))
    learns = {name: p for name, p in classifier.named_parameters() if not name.startswith("encoder")}

    def gradients(outputs: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(outputs.square().sum(), list(learns.values())))

    whole = plain_outputs(classifier, classifier.project(torch.cat([chosen, others])))
    wanted = gradients(whole)
    divided = classifier.head(classifier.project(chosen), others).outputs
    assert torch.allclose(divided, whole, atol=1e-10, rtol=0)
    for name, a, b in zip(learns, gradients(divided), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=0), name
    with torch.no_grad():
        assert torch.allclose(classifier.head(classifier.project(chosen), others).outputs, whole, atol=1e-10, rtol=0)


def test_blocks_of_others_keep_no_activations(make_classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the backward pass grows by the pooled blocks alone, not by the tiles in them."""
    monkeypatch.setattr("wsi_ips.model.classifier._OTHERS_BLOCK", 64)
    classifier = make_classifier(dim=12)
    others = torch.randn(640, 8)

    def kept(n: int) -> int:
        sizes: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        given = others[:n].clone()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = classifier.head(classifier.project(torch.ones(3, 8)), given)
        del out
        sizes.pop(given.data_ptr(), None)
        return sum(sizes.values())

    features_of_a_block = 64 * 12 * 4
    assert kept(640) - kept(64) < 9 * features_of_a_block / 4


@pytest.mark.parametrize("n_heads", [1, 2])
def test_relative_entropy_is_one_when_uniform_and_none_when_one_tile_holds_all(make_classifier, n_heads: int) -> None:
    """Equal tiles 1, one dominating tile 0, one tile alone 1; its gradient is finite where weights vanish."""
    classifier = make_classifier(n_heads=n_heads).double()
    same = torch.ones(6, 8, dtype=torch.float64)
    assert torch.allclose(classifier.head(same).entropy, torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert classifier.head(same[:1]).entropy.tolist() == [1.0, 1.0]
    classifier = make_classifier(n_heads=1).double()
    probe = torch.autograd.functional.jacobian(lambda x: classifier.head_logits(x)[0, 0], same[:1])[0, 0]
    bag = torch.zeros(3, 8, dtype=torch.float64)
    bag[1] = probe * (2000 / (probe @ probe))
    bag.requires_grad_()
    entropy = classifier.head(bag).entropy[0]
    assert 0 <= entropy.item() < 1e-12
    entropy.backward()
    assert torch.isfinite(bag.grad).all()


def test_relative_entropy_of_two_tiles_is_the_formula(make_classifier) -> None:
    """The mean over heads comes before the logarithm."""
    classifier = make_classifier().double()
    bag = 30 * torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = plain_weights(classifier.attention, bag).mean(2)[:, 0]
    wanted = -(a[0] * a[0].log() + a[1] * a[1].log()) / np.log(2)
    assert torch.allclose(classifier.head(bag).entropy[0], wanted, atol=1e-12, rtol=0)
