"""Maps within tiles: exact to first order, each encoder's own, and a clear word where there can be none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import Architecture, Encoder
from wsi_ips.model.ensemble import EnsembleClassifier
from wsi_ips.model.features import FeatureInput
from wsi_ips.model.saliency import within_tile_maps
from wsi_ips.results import Pooled

DIRECTIONS = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])  # the second task's middle class


class _Patches(nn.Module):
    """Cells that do not overlap, so that interpolation keeps the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.conv = nn.Conv2d(3, width, 8, 8)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _patchy(make_classifier, seed: int = 0, width: int = 8, **options: object) -> IPSClassifier:
    base = make_classifier(seed=seed, **options)
    torch.manual_seed(seed)
    architecture = Architecture("patches", {}, 3, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear")
    classifier = IPSClassifier(Encoder(_Patches(width), architecture), base.settings).eval()
    for name, parameter in classifier.named_parameters():
        if name.startswith("attention.query"):
            nn.init.normal_(parameter)
    return classifier


def _slopes(classifier, values: np.ndarray, k: int, context: Pooled | None = None, step: float = 1e-3) -> np.ndarray:
    """What each task's logit gains by a little more of a tile's features: (k, 2), by differences."""
    rows = []
    for i in range(k):
        ends = []
        for sign in (1, -1):
            bag = values.copy()
            bag[i] *= 1.0 + sign * step
            ends.append(DIRECTIONS @ classifier.read_out(bag, context).outputs.astype(np.float64))
        rows.append((ends[0] - ends[1]) / (2 * step))
    return np.array(rows)


@pytest.mark.parametrize("with_context", [False, True])
def test_a_maps_mean_is_gradient_times_features(make_classifier, tiles: torch.Tensor, with_context: bool) -> None:
    """To first order the map adds up to what the tile does to the logit, in its company, for each task.

    Exactly so over the cells; over the px to two per cent here, since cells are placed where they are measured to lie.
    """
    classifier = _patchy(make_classifier, context=with_context)
    rng = np.random.default_rng(0)
    context = Pooled(rng.normal(size=(2, 2)), rng.normal(size=(2, 2, 4))) if with_context else None
    values = classifier.scan(tiles, 7).features
    found = within_tile_maps(classifier, tiles[:3].numpy(), values, DIRECTIONS, context)
    assert (found.maps.shape, found.cells) == ((3, 2, 32, 32), (4, 4))
    slopes = _slopes(classifier, values, 3, context)
    assert np.abs(slopes).max() > 1e-3
    assert np.allclose(found.maps.mean(axis=(2, 3)), slopes, atol=0.02 * np.abs(slopes).max() + 1e-4)
    assert (found.maps < 0).any()
    assert (found.maps > 0).any()


def test_an_ensemble_adds_its_encoders_up(make_classifier, tiles: torch.Tensor) -> None:
    """Members with encoders of their own: the sum of their maps is what all of them do to the mean."""
    members = [_patchy(make_classifier, seed=i) for i in range(2)]
    ensemble = EnsembleClassifier(members)
    values = ensemble.scan(tiles, 7).features
    found = within_tile_maps(ensemble, tiles[:2].numpy(), values, DIRECTIONS)
    slopes = _slopes(ensemble, values, 2)
    assert np.allclose(found.maps.mean(axis=(2, 3)), slopes, atol=0.02 * np.abs(slopes).max() + 1e-4)


def test_a_timm_network_with_one_cell_gives_a_flat_map(make_classifier, tiles: torch.Tensor) -> None:
    """A ResNet on 32 px ends in a single cell: nothing within the tile can be told, and the map says so."""
    classifier = make_classifier()
    found = within_tile_maps(classifier, tiles[:2].numpy(), classifier.scan(tiles, 7).features, DIRECTIONS)
    assert found.cells == (1, 1)
    assert np.ptp(found.maps, axis=(2, 3)).max() == 0.0
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "none"])
def test_without_a_feature_map_it_says_so(make_classifier, name: str) -> None:
    """Transformers keep no rows and columns; a model that takes features has no tiles."""
    classifier = make_classifier()
    if name == "none":
        classifier.encoder = FeatureInput(8)
    else:
        from wsi_ips.config import EncoderSettings
        from wsi_ips.model.encoder import build_encoder

        kwargs = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}
        classifier.encoder = build_encoder(EncoderSettings(name=name, weights="none", kwargs=kwargs), 32)
    with pytest.raises(ModelError, match=r"takes features, not tiles|no feature map in rows and columns"):
        within_tile_maps(classifier, np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 8), np.float32), DIRECTIONS)
