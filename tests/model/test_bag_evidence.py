"""Leave-one-out over the whole bag: what really removing each tile gives, in blocks of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from wsi_ips.errors import ModelError
from wsi_ips.model.bag_evidence import bag_evidence
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.ensemble import EnsembleClassifier


def _blocks(features: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (features[i : i + size] for i in range(0, len(features), size))


def _features(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def _removed(classifier: IPSClassifier, features: np.ndarray) -> np.ndarray:
    """Label the bag, and each bag that is really one tile smaller, by the head itself: (N, P)."""
    head = classifier.double_head()
    x = torch.from_numpy(features)
    whole = head.label(x)
    return np.stack([(whole - head.label(torch.cat([x[:i], x[i + 1 :]]))).numpy() for i in range(len(x))])


def _sharpen(classifier: IPSClassifier, features: np.ndarray, row: int, nats: float) -> None:
    """Turn a tile so that the first head's logit stands `nats` above what it was."""
    with torch.no_grad():
        probe = torch.zeros(1, classifier.dim)
        eye = classifier.head_logits(torch.eye(classifier.dim)) - classifier.head_logits(probe)
        direction = eye[:, 0, 0].numpy()
    features[row] += (nats * direction / (direction @ direction)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("nats", [0.0, 8.0, 60.0])
def test_it_equals_really_removing_each_tile(make_classifier, size: int, nats: float) -> None:
    """Two tasks, blocks of any size, and a tile that holds next to all of a head's weight."""
    classifier = make_classifier()
    features = _features(11, classifier.dim)
    _sharpen(classifier, features, 6, nats)
    found = bag_evidence(classifier, _blocks(features, size), 11)
    assert found.shape == (11, 4)
    assert found.dtype == np.float32
    assert np.allclose(found, _removed(classifier, features), atol=1e-4, rtol=1e-5)
    assert np.abs(found).max() > 1e-2


def test_beside_a_tile_that_holds_all_the_weight_the_others_are_still_told_apart(make_classifier) -> None:
    """Without the dominating tile the others speak; where it stays, leaving another out changes little but not noise."""
    classifier = make_classifier()
    features = _features(9, classifier.dim)
    _sharpen(classifier, features, 0, 25.0)
    found, wanted = bag_evidence(classifier, _blocks(features, 4), 9), _removed(classifier, features)
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-12)


def test_equal_tiles_and_one_tile(make_classifier) -> None:
    """Ties are nobody's loss: equal tiles have equal evidence, none; a lone tile leaves the query alone."""
    classifier = make_classifier()
    same = np.repeat(_features(1, classifier.dim), 6, axis=0)
    assert np.allclose(bag_evidence(classifier, _blocks(same, 4), 6), 0.0, atol=1e-6)
    alone = bag_evidence(classifier, _blocks(same[:1], 4), 1)
    assert np.allclose(alone, _removed(classifier, same[:1]), atol=1e-6)
    assert np.allclose(alone, classifier.read_out(same[:1]).evidence, atol=1e-6)


def test_of_a_bag_that_is_all_selected_it_is_the_evidence(make_classifier) -> None:
    """With N = m both ask the same question."""
    classifier = make_classifier()
    features = _features(7, classifier.dim)
    assert np.allclose(bag_evidence(classifier, _blocks(features, 2), 7), classifier.read_out(features).evidence, atol=1e-6)


def test_an_ensemble_answers_with_the_mean_of_its_members(make_classifier) -> None:
    """Each member pools its own part of the features."""
    members = [make_classifier(seed=i) for i in range(3)]
    parts = [_features(8, m.dim, seed=i) for i, m in enumerate(members)]
    wanted = np.mean([_removed(m, part) for m, part in zip(members, parts, strict=True)], axis=0)
    found = bag_evidence(EnsembleClassifier(members), _blocks(np.concatenate(parts, axis=1), 3), 8)
    assert np.allclose(found, wanted, atol=1e-6)


def test_a_context_model_pools_all_tiles_too(make_classifier) -> None:
    """Whether unselected tiles enter the label makes no difference here."""
    features = _features(9, 8)
    plain, context = make_classifier(), make_classifier(context=True)
    assert np.array_equal(*(bag_evidence(c, _blocks(features, 4), 9) for c in (plain, context)))


def test_a_wrong_number_of_rows_is_refused(make_classifier) -> None:
    """Half of a bag is no bag."""
    classifier = make_classifier()
    with pytest.raises(ModelError, match="5 rows of features for 6 tiles"):
        bag_evidence(classifier, _blocks(_features(5, classifier.dim), 2), 6)
