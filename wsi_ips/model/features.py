"""Embeddings that another tool has made, where an encoder would stand: taken as they are, nothing to learn.

Shapes: n tiles, W width of the embedding, S tile side, C channels.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from wsi_ips.errors import ModelError

__all__ = ["FeatureInput"]


class FeatureInput(nn.Module):
    """Stands in for an encoder when `settings.encoder.name` is "features".

    Raises:
        ModelError: the width is not known.
    """

    place: Tensor

    def __init__(self, width: int | None) -> None:
        super().__init__()
        if width is None or width < 1:
            raise ModelError(f"encoder features: width is {width}; set encoder.width to the length of the vectors")
        self.width = width
        self.register_buffer("place", torch.zeros(0), persistent=False)  # moves with the model

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.place.device

    @property
    def hash(self) -> str:
        """Identity of what `forward` computes, 64 hex digits."""
        return hashlib.sha256(f"features {self.width}".encode()).hexdigest()

    @property
    def compute(self) -> str:
        """Nothing is computed, on any device."""
        return "features"

    def forward(self, embeddings: Tensor) -> Tensor:
        """Take (n, W) of any float type as float32 (float64 when the model is).

        Raises:
            ModelError: pixels, or vectors of another width.
        """
        if not embeddings.is_floating_point() or embeddings.ndim != 2 or embeddings.shape[1] != self.width:
            raise ModelError(
                f"this model takes embeddings (n, {self.width}) that another tool has made (column features_path), "
                f"got {embeddings.dtype} {tuple(embeddings.shape)}"
            )
        return embeddings.to(self.place)

    def set_trainable(self, stages: int) -> int:
        """Nothing can learn here: 0 parameters, whatever is asked."""
        return 0

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """None; see `Encoder.parameter_groups`."""
        return []

    def set_norm_statistics(self, tiles: Tensor) -> None:
        """There are no statistics."""
