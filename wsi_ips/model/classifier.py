"""The whole model: encoder, projector, cross-attention and one linear head a task.

`encode` and `head_logits` serve the pass over all tiles; `outputs` serves learning; `read_out` is the one function
that turns the selected tiles' stored features into the label and its evidence, wherever a label is made or checked.

Shapes: B slides, m selected tiles, S tile side, C channels, W encoder width, D embedding, T tasks, H heads, P outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.attention import CrossAttention
from wsi_ips.model.encoder import Encoder, in_fixed_batches
from wsi_ips.model.evidence import leave_one_out

__all__ = ["IPSClassifier", "ReadOut", "Scan"]


class Scan(NamedTuple):
    """What the pass over all tiles keeps of a chunk."""

    features: np.ndarray  # (n, D) float32
    logits: np.ndarray  # (n, T, H) float32


class ReadOut(NamedTuple):
    """A slide's label and what it rests on."""

    outputs: np.ndarray  # (P,) float32, logits of all tasks
    evidence: np.ndarray  # (m, P) float32, logit(selection) - logit(selection without the tile)


class IPSClassifier(nn.Module):
    """Encoder + attention + task heads.

    Raises:
        ModelError: widths, heads or tile sizes that do not go together.
    """

    def __init__(self, encoder: Encoder, settings: ModelSettings) -> None:
        super().__init__()
        side_px = encoder.architecture.tile_px
        if side_px != settings.tile.size_px:
            raise ModelError(f"the encoder takes {side_px} px tiles, the settings cut {settings.tile.size_px} px")
        a = settings.attention
        self.settings = settings
        self.dim = a.dim or encoder.width
        self.encoder = encoder
        self.projector = _projector(encoder.width, self.dim, a.projector_norm)
        self.attention = CrossAttention(self.dim, len(settings.tasks), a.n_heads, a.dropout)
        self.heads = nn.ModuleList(nn.Linear(self.dim, task.n_outputs) for task in settings.tasks)

    @property
    def n_outputs(self) -> int:
        """P."""
        return sum(task.n_outputs for task in self.settings.tasks)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.encoder.device

    def train(self, mode: bool = True) -> IPSClassifier:
        """Set the mode; encoder and projector keep their statistics, so only the head's dropout changes."""
        super().train(mode)
        self.projector.eval()
        return self

    def project(self, embeddings: Tensor) -> Tensor:
        """Bring the encoder's (..., W) to (..., D)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            flat: Tensor = self.projector(embeddings.flatten(0, -2))
            return flat.unflatten(0, embeddings.shape[:-1])

    @torch.no_grad()
    def set_projector_statistics(self, embeddings: Tensor) -> None:
        """Take the statistics of a projector with batch norm from a sample of the encoder's embeddings (n, W).

        They stay frozen in training, as all statistics here do; a projector with layer norm has none.
        """
        if isinstance(self.projector, nn.Sequential) and isinstance(norm := self.projector[2], nn.BatchNorm1d):
            sample = self.projector[:2](embeddings)
            norm.running_mean = sample.mean(0)
            norm.running_var = sample.var(0)

    def encode(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles as (n, D) float32, projector included."""
        return self.project(self.encoder(tiles))

    def head_logits(self, features: Tensor) -> Tensor:
        """Attention logits (..., n, T, H) of features (..., n, D)."""
        return self.attention.head_logits(features)

    @torch.inference_mode()
    def scan(self, tiles: np.ndarray | Tensor, batch: int) -> Scan:
        """Embed and score tiles without gradient, in batches of one fixed size.

        Args:
            tiles: (n, S, S, C) uint8.
            batch: tiles encoded at a time; the last batch is padded, so that numbers do not depend on n.

        Raises:
            ModelError: `E_NOT_FINITE` with the tile's place among these.
        """
        x = torch.from_numpy(tiles) if isinstance(tiles, np.ndarray) else tiles
        if not len(x):
            shape = (0, self.attention.n_queries, self.attention.n_heads)
            return Scan(np.zeros((0, self.dim), np.float32), np.zeros(shape, np.float32))
        features = in_fixed_batches(self.encode, x, batch)
        # logits too come in batches of one shape
        logits = in_fixed_batches(self.head_logits, features, batch)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).flatten(1).all(1)).nonzero()[0])
            raise ModelError(f"tile {row} of a chunk of {len(x)}: its attention logits are not finite", "E_NOT_FINITE")
        return Scan(features.float().cpu().numpy(), logits.float().cpu().numpy())

    def outputs(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, P) of all tasks from (B, m, D) features; mask (B, m) bool is True where there is a tile."""
        z = self.attention(features, mask)  # (B, T, D)
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([head(z[:, t]) for t, head in enumerate(self.heads)], dim=-1)

    def read_out(self, features: np.ndarray | Tensor) -> ReadOut:
        """Make the label from the selected tiles' features, and each tile's evidence.

        Computed in float64 on the CPU and rounded once, so that the label of a run can be made again from the stored
        `values`, whatever device and batch made them.

        Args:
            features: (m, D) float32, in the order of the selection.

        Raises:
            ModelError: `E_NOT_FINITE`.
        """
        x = torch.from_numpy(np.ascontiguousarray(features)) if isinstance(features, np.ndarray) else features
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ModelError(f"features: expected (m, {self.dim}), got {tuple(x.shape)}")
        found = leave_one_out(self.attention, self.heads, x)
        if not bool(torch.isfinite(found.outputs).all()):
            raise ModelError(f"the label's logits are not finite: {found.outputs.tolist()}", "E_NOT_FINITE")
        evidence = found.outputs - found.without
        return ReadOut(found.outputs.float().numpy(), evidence.float().numpy())

    def evidence(self, features: np.ndarray | Tensor) -> np.ndarray:
        """Evidence (m, P) float32 of each selected tile for each output; see `read_out`."""
        return self.read_out(features).evidence


def _projector(width: int, dim: int, norm: str) -> nn.Module:
    if width == dim:
        return nn.Identity()
    last = nn.BatchNorm1d(dim) if norm == "batch" else nn.LayerNorm(dim)
    return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, dim), last, nn.ReLU())
