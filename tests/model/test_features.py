"""Embeddings of another tool in the place of an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_input
from wsi_ips.model.features import FeatureInput


@pytest.fixture
def classifier(make_classifier) -> IPSClassifier:
    """Vectors of 10 in, D = 12."""
    settings = make_classifier(dim=12).settings.replace(encoder={"name": "features", "width": 10})
    torch.manual_seed(0)
    return IPSClassifier(build_input(settings.encoder, settings.tile.size_px), settings).eval()


def test_embeddings_are_taken_as_they_are(classifier: IPSClassifier) -> None:
    """Any float type, no rounding, nothing that learns; the label follows as from an encoder's embeddings."""
    x = np.random.default_rng(0).normal(size=(7, 10)).astype(np.float32)
    assert not classifier.takes_tiles
    assert classifier.width == 10
    assert torch.equal(classifier.embed(torch.from_numpy(x)), torch.from_numpy(x))
    assert classifier.encode(torch.from_numpy(x).half()).shape == (7, 12)
    assert classifier.scan(x, 4).logits.shape == (7, 2, 2)
    assert np.array_equal(classifier.scan(x[:3], 4).features, classifier.scan(x, 4).features[:3])
    assert classifier.encoder.set_trainable(-1) == 0
    assert classifier.encoder.parameter_groups() == []
    assert classifier.double().embed(torch.from_numpy(x)).dtype == torch.float64


def test_a_bundle_of_embeddings_opens_again(classifier: IPSClassifier, tmp_path: Path) -> None:
    """Same bits after save and load; the configuration says that there is no encoder."""
    x = np.random.default_rng(1).normal(size=(5, 10)).astype(np.float32)
    save_bundle(tmp_path / "m", classifier, classifier.settings, card="")
    bundle = load_bundle(tmp_path / "m")
    assert bundle.config["architecture"] == "features"
    assert bundle.single.encoder.width == 10
    assert bundle.classifier.embedding_hash == classifier.embedding_hash
    assert np.array_equal(bundle.classifier.scan(x, 4).logits, classifier.scan(x, 4).logits)


def test_pixels_and_other_widths_are_refused(classifier: IPSClassifier, tiles: torch.Tensor) -> None:
    """The message says what is taken and what came."""
    for call in (classifier.scan, classifier.embed_tiles):
        with pytest.raises(ModelError, match=r"takes embeddings \(n, 10\).*uint8 \(4, 32, 32, 3\)"):
            call(tiles, 4)
    with pytest.raises(ModelError, match=r"got torch\.float32 \(3, 9\)"):
        classifier.scan(np.zeros((3, 9), np.float32), 3)
    with pytest.raises(ModelError, match=r"set encoder\.width"):
        build_input(EncoderSettings(name="features"), 32)
    assert FeatureInput(3).hash != FeatureInput(4).hash
