"""The curves say what the head says of a bag with tiles taken away: nothing is approximated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_head import plain_outputs

from wsi_ips.config import AttentionSettings, EncoderSettings, ModelSettings, TaskSettings
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.ensemble import EnsembleClassifier
from wsi_ips.model.faithful import N_RANDOM, measure_faithfulness, removal_counts
from wsi_ips.model.features import FeatureInput
from wsi_ips.results import Pooled
from wsi_ips.tasks import call_value, split_outputs


def _features(n: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_every_subset_gets_the_label_of_that_very_bag(make_classifier) -> None:
    """Each of 40 random subsets, labelled together, equals the head run on those tiles alone, to 1e-9."""
    classifier, x = make_classifier(), _features(9)
    kept = np.random.default_rng(0).random((40, 9)) < 0.5
    kept[0] = True
    kept[:, 4] |= ~kept.any(1)
    together = classifier.label_subsets(x, kept)
    head = classifier.double_head()
    alone = [head.label(x[torch.from_numpy(k)]).numpy() for k in kept]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-9)


def test_a_subset_without_the_tile_that_outweighs_all_is_still_exact(make_classifier) -> None:
    """With one logit 2000 nats above the others, the bag without that tile is pooled from its own largest term."""
    classifier, x = make_classifier(), _features(6)
    logits = classifier.head_logits(x)[:, 0, 0]
    x[2] = x[2] * (3000.0 / (logits[2].abs() + 1e-3))
    kept = ~np.eye(6, dtype=bool)
    head = classifier.double_head()
    alone = [head.label(x[torch.from_numpy(k)]).numpy() for k in kept]
    np.testing.assert_allclose(classifier.label_subsets(x, kept), np.stack(alone), atol=1e-9)


def test_an_empty_subset_is_the_query_alone_and_a_context_always_stays(make_classifier) -> None:
    """Without tiles the query speaks; with a context the context does."""
    classifier, x = make_classifier(context=True), _features(4)
    none = np.zeros((1, 4), bool)
    alone = classifier.double_head().label(x[:0]).numpy()
    np.testing.assert_allclose(classifier.label_subsets(x, none)[0], alone, atol=1e-12)
    other = _features(1, seed=5)
    context = Pooled(classifier.head_logits(other)[0].detach().double().numpy(),
                     classifier.values(other.numpy())[0][None].repeat(2, 0))  # fmt: skip
    only = classifier.double_head().label(other).numpy()
    np.testing.assert_allclose(classifier.label_subsets(x, none, context)[0], only, atol=1e-6)


def test_an_ensemble_labels_subsets_by_the_mean_of_its_members(make_classifier) -> None:
    """Two members, each asked with its own half of the features."""
    members = [make_classifier(0), make_classifier(1)]
    kept = np.random.default_rng(1).random((5, 7)) < 0.6
    x = torch.cat([_features(7, 1), _features(7, 2)], 1)
    expected = np.mean([m.label_subsets(part, kept) for m, part in zip(members, x.chunk(2, 1), strict=True)], axis=0)
    np.testing.assert_allclose(EnsembleClassifier(members).label_subsets(x, kept), expected, atol=1e-12)


def test_curves_are_the_call_along_each_order(make_classifier) -> None:
    """Deletion by evidence at k is the call of the bag without the k first by evidence; insertion that of them alone."""
    classifier, x = make_classifier(), _features(20)
    read_out = classifier.read_out(x)
    attention = classifier.head_logits(x).softmax(0).mean(2).detach().numpy()
    found = measure_faithfulness(classifier, x.numpy(), None, attention, read_out.evidence, read_out.outputs)
    assert found.counts.tolist() == [*range(1, 17), 20]
    assert found.orders == ("attention", "evidence", *["random"] * N_RANDOM)
    assert found.deletion.shape == found.insertion.shape == (2, 22, 17)
    tasks, head = classifier.settings.tasks, classifier.double_head()
    for t, task in enumerate(tasks):
        of = split_outputs(read_out.outputs, tasks)[t]
        assert found.whole[t] == pytest.approx(float(call_value(of, task, of)), abs=1e-6)
        order = np.argsort(-attention[:, t], kind="stable")
        for k in (1, 3, 16):
            for curves, rows in ((found.deletion, order[k:]), (found.insertion, order[:k])):
                logits = split_outputs(head.label(x[rows.copy()]).numpy(), tasks)[t]
                assert curves[t, 0, k - 1] == pytest.approx(float(call_value(logits, task, of)), abs=1e-6)
    # all kept is the whole, all removed is the query alone, whatever the order
    np.testing.assert_allclose(found.insertion[:, :, -1], np.repeat(found.whole[:, None], 22, 1), atol=1e-6)
    assert np.ptp(found.deletion[:, :, -1], axis=1).max() < 1e-6


def test_removing_by_evidence_lowers_the_call_and_random_orders_differ(make_classifier) -> None:
    """The first tile by evidence towards the call lowers it, for a positive and a negative call alike."""
    classifier = make_classifier()
    signs = set()
    for seed in range(12):
        x = _features(24, seed)
        with torch.no_grad():
            classifier.heads[0].weight.mul_(-1)
            classifier.heads[0].bias.mul_(-1)
        read_out = classifier.read_out(x)
        attention = classifier.head_logits(x).softmax(0).mean(2).detach().numpy()
        found = measure_faithfulness(classifier, x.numpy(), None, attention, read_out.evidence, read_out.outputs)
        signs.add(bool(read_out.outputs[0] > 0))
        assert found.deletion[0, 1, 0] < found.whole[0]
        assert found.deletion[0, 1, 0] <= found.deletion[0, 2:, 0].min() + 1e-6
        assert np.unique(found.deletion[0, 2:, 3]).size > 10
    assert signs == {True, False}


def test_counts_rise_to_all_tiles() -> None:
    """1 to 16, powers of two, all; never more than there are."""
    assert removal_counts(1).tolist() == [1]
    assert removal_counts(5).tolist() == [1, 2, 3, 4, 5]
    assert removal_counts(64).tolist() == [*range(1, 17), 32, 64]


def test_evidence_of_5000_tiles_is_what_really_removing_each_changes() -> None:
    """m = 5,000 at D = 512: outputs and 60 tiles' evidence equal a plain float32 softmax over the others, to 1e-4."""
    torch.manual_seed(0)
    tasks = (TaskSettings(classes=("no", "yes")),)
    settings = ModelSettings(encoder=EncoderSettings(name="features", width=512), tasks=tasks,
                             attention=AttentionSettings(dim=512, n_heads=8))  # fmt: skip
    classifier = IPSClassifier(FeatureInput(512), settings).eval()
    bag = torch.randn(5000, 512, generator=torch.Generator().manual_seed(1)) * 3.0
    found = classifier.read_out(bag)
    whole = plain_outputs(classifier, bag)
    assert abs(float(found.outputs[0] - whole[0])) < 1e-4
    heaviest = classifier.head_logits(bag).amax((1, 2)).topk(30).indices.tolist()
    for i in [*heaviest, *range(0, 5000, 167)]:
        without = plain_outputs(classifier, torch.cat([bag[:i], bag[i + 1 :]]))
        assert abs(float(found.evidence[i, 0]) - float(whole[0] - without[0])) < 1e-4
