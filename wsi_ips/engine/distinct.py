"""Tiles of the same bytes are encoded once: for images that are blank for the most part.

An encoder gives a tile the same embedding whatever comes with it in a batch of one fixed shape, so a copy is exact.

Shapes: n tiles, S side, C channels, W width of an embedding.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from wsi_ips.model.ensemble import Classifier

__all__ = ["DistinctTiles", "batch_of", "encode_tiles"]

_BATCH = 32  # a chunk's few different tiles do not fill a large batch
_KNOWN = 64  # tiles remembered from chunk to chunk


def batch_of(batch: int, *, same_once: bool) -> int:
    """Tell in how large batches tiles go through the encoder; the last bits of an embedding depend on that."""
    return min(batch, _BATCH) if same_once else batch


class DistinctTiles:
    """Embeds tiles and remembers, for one pass with the same weights, those that came more than once; mutable."""

    def __init__(self) -> None:
        self._known: dict[bytes, np.ndarray] = {}
        self.n_encoded = 0

    def embed(self, classifier: Classifier, tiles: np.ndarray | Tensor, batch: int) -> np.ndarray:
        """Embed (n, S, S, C) uint8 tiles: (n, W) float32, as `embed_tiles` in batches of `batch_of(batch)`."""
        pixels = tiles if isinstance(tiles, np.ndarray) else tiles.cpu().numpy()
        keys = [tile.tobytes() for tile in pixels]
        places: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
        new = [key for key in places if key not in self._known]
        found = classifier.embed_tiles(pixels[[places[key][0] for key in new]], batch_of(batch, same_once=True))
        self.n_encoded += len(new)
        out = np.empty((len(keys), found.shape[1]), np.float32)
        for key, row in zip(new, found, strict=True):
            out[places[key]] = row
            if len(places[key]) > 1 and len(self._known) < _KNOWN:
                self._known[key] = row
        for key in places.keys() & self._known.keys():
            out[places[key]] = self._known[key]
        return out


def encode_tiles(
    classifier: Classifier, tiles: np.ndarray | Tensor, batch: int, distinct: DistinctTiles | None
) -> tuple[np.ndarray, int]:
    """Embed tiles, by `distinct` where there is one: (n, W) float32, and how many went through the encoder."""
    if distinct is None:
        return classifier.embed_tiles(tiles, batch), len(tiles)
    before = distinct.n_encoded
    return distinct.embed(classifier, tiles, batch), distinct.n_encoded - before
