"""Statistics that normalisation layers are frozen on, where nobody has trained them yet: measured on training tiles."""

from __future__ import annotations

import numpy as np
import torch

from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.training.bags import Bags, PixelBags, Planned

__all__ = ["measure_norms", "measure_projector"]

_TILES = 512


def measure_norms(classifier: IPSClassifier, learn: list[Planned], bags: PixelBags, seed: int) -> None:
    """Set frozen statistics from random training tiles, about as many from each slide."""
    parts = [t for p, rows in _sample(learn, seed) for t in bags.tiles(p, rows)]
    classifier.encoder.set_norm_statistics(torch.from_numpy(np.concatenate(parts)))


def measure_projector(classifier: IPSClassifier, learn: list[Planned], bags: Bags, seed: int) -> None:
    """The same for the projector, on what the encoder makes of such tiles."""
    classifier.eval()
    parts = [bags.embed_rows(p, rows, classifier) for p, rows in _sample(learn, seed)]
    classifier.set_projector_statistics(torch.from_numpy(np.concatenate(parts)).to(classifier.device))


def _sample(learn: list[Planned], seed: int) -> list[tuple[Planned, np.ndarray]]:
    rng = np.random.default_rng(seed)
    each = max(1, _TILES // len(learn))
    return [(p, rng.permutation(p.n_tiles)[:each]) for p in learn]
