"""The classifier: read-out, evidence, scanning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_head import plain_outputs, plain_weights

from wsi_ips.config import AttentionSettings, TaskSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.evidence import leave_one_out


@pytest.mark.parametrize(("dim", "norm"), [(8, "layer"), (12, "layer"), (12, "batch"), (None, "layer")])
def test_outputs_of_all_tasks_stand_side_by_side(
    make_classifier, tiles: torch.Tensor, dim: int | None, norm: str
) -> None:
    """One binary and one three-class task give P = 4 logits, from pixels, with or without a projector."""
    classifier = make_classifier(dim=dim)
    if norm == "batch":
        settings = classifier.settings.replace(
            attention=AttentionSettings(dim=dim, n_heads=2, projector_norm=norm).model_dump()
        )
        classifier = IPSClassifier(classifier.encoder, settings).eval()
    features = classifier.encode(tiles)
    assert features.shape == (7, dim or 8)
    assert classifier.head_logits(features).shape == (7, 2, 2)
    assert classifier.head(features).outputs.shape == (4,)
    assert classifier.n_outputs == 4


def test_each_task_reads_its_own_query(make_classifier) -> None:
    """Changing one task's query moves that task's logits and no other's."""
    classifier = make_classifier()
    features = torch.randn(5, 8)
    before = classifier.head(features).outputs
    with torch.no_grad():
        classifier.attention.query[1] += torch.linspace(-3, 3, 8)
    after = classifier.head(features).outputs
    assert torch.equal(before[:1], after[:1])
    assert (before[1:] != after[1:]).all()


def test_fault_107_an_empty_bag_is_the_query_alone(make_classifier) -> None:
    """No tile pools to zero: the learned query goes through the MLP, and nothing is NaN."""
    classifier = make_classifier()
    a = classifier.attention
    z = a.norm_pooled(a.query)
    alone = a.norm_out(z + a.mlp(z))
    wanted = torch.cat([head(alone[t]) for t, head in enumerate(classifier.heads)])
    assert torch.allclose(classifier.head(torch.zeros(0, 8)).outputs, wanted, atol=1e-6)


def test_the_read_out_agrees_with_learning_and_repeats_itself(make_classifier) -> None:
    """The label's function gives the training path's logits, and the same bits each time it is asked."""
    classifier = make_classifier()
    values = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    found = classifier.read_out(values)
    assert found.outputs.dtype == found.evidence.dtype == np.float32
    trained = plain_outputs(classifier, torch.from_numpy(values))
    assert np.allclose(found.outputs, trained.detach().numpy(), atol=1e-5)
    classifier.train()  # neither mode nor precision around the call may touch the label
    with torch.autocast("cpu", torch.bfloat16):
        again = classifier.read_out(torch.from_numpy(values))
    assert np.array_equal(found.outputs, again.outputs)
    assert np.array_equal(found.evidence, again.evidence)


def test_evidence_is_what_really_removing_the_tile_changes(make_classifier) -> None:
    """50 random bags, also of one and two tiles and with one tile holding nearly all: equal to removal to 1e-9."""
    rng = np.random.default_rng(1)
    classifier = make_classifier(n_heads=4).double()
    for number in range(50):
        m = (1, 2, 3, 9)[number % 4]
        bag = torch.from_numpy(rng.normal(size=(m, 8)) * (1.0, 5.0, 60.0)[number % 3])
        outputs, without = leave_one_out(classifier.attention, classifier.heads, bag)
        assert torch.allclose(outputs, plain_outputs(classifier, bag), atol=1e-9, rtol=0)
        removed = [plain_outputs(classifier, torch.cat([bag[:i], bag[i + 1 :]])) for i in range(m)]
        assert torch.allclose(without, torch.stack(removed), atol=1e-9, rtol=0), (number, m)


def test_evidence_with_one_dominating_tile(make_classifier) -> None:
    """When one tile holds all weight that float64 can show, leaving it out still gives the rest's own softmax."""
    classifier = make_classifier().double()
    bag = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probe = torch.autograd.functional.jacobian(lambda x: classifier.head_logits(x)[0, 0], bag[:1])[0, 0]
    bag[2] = probe * (80 / (probe @ probe))
    assert plain_weights(classifier.attention, bag)[2, 0, 0] == 1.0
    removed = plain_outputs(classifier, bag[[0, 1, 3]])
    assert torch.allclose(
        leave_one_out(classifier.attention, classifier.heads, bag).without[2], removed, atol=1e-9, rtol=0
    )


def test_fault_063_and_110_scanning_does_not_depend_on_how_many_tiles_come(make_classifier, tiles: torch.Tensor) -> None:
    """Features and logits of a tile are the same bits in a full chunk and in a last, short one."""
    classifier = make_classifier(dim=12)
    whole = classifier.scan(tiles.numpy(), 4)
    assert whole.features.shape == (7, 12)
    assert whole.logits.shape == (7, 2, 2)
    short = classifier.scan(tiles[:5], 4)
    assert np.array_equal(short.features, whole.features[:5])
    assert np.array_equal(short.logits, whole.logits[:5])
    assert classifier.scan(tiles[:0], 4).logits.shape == (0, 2, 2)


@pytest.mark.parametrize("dim", [None, 12])
def test_cached_embeddings_scan_to_the_same_bits(make_classifier, tiles: torch.Tensor, dim: int | None) -> None:
    """Tiles, their embeddings, and the float16 copy of these that a cache keeps: one result."""
    classifier = make_classifier(dim=dim)
    whole = classifier.scan(tiles, 4)
    embeddings = classifier.embed_tiles(tiles.numpy(), 4)
    assert embeddings.shape == (7, 8)
    assert embeddings.dtype == np.float32
    stored = embeddings.astype(np.float16)
    stored.flags.writeable = False
    for given in (embeddings, stored):
        found = classifier.scan(given, 4)
        assert np.array_equal(found.features, whole.features)
        assert np.array_equal(found.logits, whole.logits)
    assert classifier.embed_tiles(tiles[:0], 4).shape == (0, 8)
    with pytest.raises(ModelError, match=r"expected \(n, 8\), got \(2, 9\)"):
        classifier.scan(np.zeros((2, 9), np.float32), 4)


def test_values_are_what_attention_pools(make_classifier) -> None:
    """Features times the value weights, head by head, in float64."""
    classifier = make_classifier(dim=12)
    features = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    wanted = classifier.double().attention.values(torch.from_numpy(features)).detach().numpy()
    assert classifier.values(features).shape == (5, 2, 6)
    assert np.allclose(classifier.values(features), wanted, atol=1e-14)


def test_fault_110_scanning_encodes_batches_of_one_shape(
    make_classifier, tiles: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: whatever comes, encoder, projector and attention see `batch` tiles: kernels differ in their last bits between shapes."""
    classifier = make_classifier()
    seen = []
    for name in ("embed", "project", "head_logits"):
        real = getattr(classifier, name)
        monkeypatch.setattr(classifier, name, lambda x, real=real: (seen.append(len(x)), real(x))[1])
    for n in (7, 3, 1):
        classifier.scan(tiles[:n], 4)
    assert set(seen) == {4}


def test_fault_105_scanning_says_which_tile_is_not_finite(make_classifier, tiles: torch.Tensor) -> None:
    """Numbers that are not finite never become a label."""
    classifier = make_classifier()
    with torch.no_grad():
        classifier.attention.to_key.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="tile 0 of a chunk of 7") as caught:
        classifier.scan(tiles, 4)
    assert caught.value.code == "E_NOT_FINITE"
    with pytest.raises(ModelError, match="not finite"):
        classifier.read_out(np.zeros((2, 8), np.float32))


def test_fault_071_parts_that_do_not_belong_together_are_refused(make_classifier) -> None:
    """Tile size of encoder and settings, width of features: a mismatch names both numbers."""
    classifier = make_classifier()
    with pytest.raises(ModelError, match="32 px tiles, the settings cut 64 px"):
        IPSClassifier(classifier.encoder, classifier.settings.replace(tile={"size_px": 64}))
    with pytest.raises(ModelError, match=r"expected \(m, 8\)"):
        classifier.read_out(np.zeros((2, 9), np.float32))


def test_regression_and_ordinal_tasks(make_classifier) -> None:
    """A number has one output, K ordered classes have K - 1."""
    tasks = (
        TaskSettings(name="age", kind="regression"),
        TaskSettings(name="g", kind="ordinal", classes=("1", "2", "3")),
    )
    assert make_classifier(tasks=tasks).head(torch.randn(3, 8)).outputs.shape == (3,)


def test_a_batch_norm_projector_learns_its_statistics_from_a_sample(make_classifier) -> None:
    """Set once from embeddings, they give mean 0 and variance 1 there, and training does not move them."""
    classifier = make_classifier(dim=12)
    settings = classifier.settings.replace(attention={"dim": 12, "n_heads": 2, "projector_norm": "batch"})
    classifier = IPSClassifier(classifier.encoder, settings).train()
    sample = torch.randn(500, 8)
    classifier.set_projector_statistics(sample)
    normalised = classifier.projector[:3](sample)
    assert torch.allclose(normalised.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(normalised.var(0), torch.ones(12), atol=1e-3)
    before = classifier.project(sample)
    classifier.project(sample + 3).sum().backward()
    assert torch.equal(classifier.project(sample), before)
