"""The whole model: encoder, projector, cross-attention and one linear head a task.

`embed_tiles` and `scan` serve the pass over all tiles; `head` serves learning; `read_out` is the one function that
turns the selected tiles' stored features into the label and its evidence, wherever a label is made or checked.

Shapes: B slides, n tiles, m selected tiles, S tile side, C channels, W encoder width, D embedding, T tasks, H heads,
Dk = D / H, P outputs.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import as_tensor, in_fixed_batches
from wsi_ips.model.attention import CrossAttention, Part, relative_entropy
from wsi_ips.model.embedder import Embedder
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.evidence import (
    DoubleHead,
    LeaveOneOut,
    ReadOut,
    double_head,
    label_subsets,
    leave_one_out,
    rounded_read_out,
)
from wsi_ips.model.features import FeatureInput
from wsi_ips.model.positions import Rows, add_positions, position_table
from wsi_ips.results import Pooled

__all__ = ["HeadOut", "IPSClassifier", "ReadOut", "Scan", "rounded_read_out"]

_OTHERS_BLOCK = 4096  # unselected tiles pooled at a time while learning


class Scan(NamedTuple):
    """What the pass over all tiles keeps of a chunk."""

    features: np.ndarray  # (n, D) float32
    logits: np.ndarray  # (n, T, H) float32


class HeadOut(NamedTuple):
    """One bag's outputs while learning; both carry gradients."""

    outputs: Tensor  # (P,), logits of all tasks
    entropy: Tensor  # (T,), of the attention within the selected, relative to uniform: 1 is uniform


class IPSClassifier(nn.Module):
    """Encoder (or embeddings made elsewhere) + attention + task heads.

    Raises:
        ModelError: widths, heads or tile sizes that do not go together.
    """

    positions: Tensor | None

    def __init__(self, encoder: Encoder | FeatureInput, settings: ModelSettings) -> None:
        super().__init__()
        side_px = encoder.architecture.tile_px if isinstance(encoder, Encoder) else settings.tile.size_px
        if side_px != settings.tile.size_px:
            raise ModelError(f"the encoder takes {side_px} px tiles, the settings cut {settings.tile.size_px} px")
        a = settings.attention
        self.settings = settings
        self.dim = a.dim or encoder.width
        self.encoder = encoder
        self.embedder: Embedder | None = None  # encodes in the encoder's place without gradient, see engines.use_engine
        self.projector = _projector(encoder.width, self.dim, a.projector_norm)
        self.attention = CrossAttention(self.dim, len(settings.tasks), a.n_heads, a.dropout)
        self.heads = nn.ModuleList(nn.Linear(self.dim, task.n_outputs) for task in settings.tasks)
        places = None if a.positions is None else position_table(a.positions, self.dim)
        self.register_buffer("positions", places, persistent=False)  # the settings say it all

    @property
    def n_outputs(self) -> int:
        """P."""
        return sum(task.n_outputs for task in self.settings.tasks)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.encoder.device

    @property
    def takes_tiles(self) -> bool:
        """Whether there is an encoder; else the instances are embeddings."""
        return isinstance(self.encoder, Encoder)

    @property
    def width(self) -> int:
        """W, length of what `embed_tiles` gives."""
        return self.encoder.width

    @property
    def embedding_hash(self) -> str:
        """Identity of what `embed_tiles` computes, 64 hex digits: encoder and the arithmetic it runs in."""
        compute = self.embedder.compute if self.embedder else self.encoder.compute
        return hashlib.sha256(f"{self.encoder.hash} {compute}".encode()).hexdigest()

    def train(self, mode: bool = True) -> IPSClassifier:
        """Set the mode; encoder and projector keep their statistics, so only the head's dropout changes."""
        super().train(mode)
        self.projector.eval()
        return self

    def embed(self, tiles: Tensor) -> Tensor:
        """Embed (n, S, S, C) uint8 tiles as (n, W); a model without encoder takes (n, W) as it is."""
        return self.encoder(tiles)

    def project(self, embeddings: Tensor) -> Tensor:
        """Bring embeddings (..., W) of any float type to (..., D) in the type of the weights."""
        with torch.autocast(self.device.type, enabled=False):
            x = embeddings.to(self.attention.query)
            flat: Tensor = self.projector(x.flatten(0, -2))
            return flat.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def set_projector_statistics(self, embeddings: Tensor) -> None:
        """Take the statistics of a projector with batch norm from a sample of the encoder's embeddings (n, W).

        They stay frozen in training, as all statistics here do; a projector with layer norm has none.
        """
        if isinstance(self.projector, nn.Sequential) and isinstance(norm := self.projector[2], nn.BatchNorm1d):
            sample = self.projector[:2](embeddings)
            norm.running_mean = sample.mean(0)
            norm.running_var = sample.var(0)

    def encode(self, instances: Tensor, rows: Rows = None) -> Tensor:
        """Bring uint8 tiles (n, S, S, C) or embeddings (n, W) to features (n, D); `rows`: see `scan`."""
        projected = self.project(instances if instances.is_floating_point() else self.embed(instances))
        return add_positions(projected, self.positions, rows)

    def head_logits(self, features: Tensor) -> Tensor:
        """Attention logits (..., n, T, H) of features (..., n, D)."""
        return self.attention.head_logits(features)

    def values(self, features: np.ndarray) -> np.ndarray:
        """What each tile contributes to a pool: features (n, D) to (n, H, Dk) float64, computed on the CPU.

        In float64, so that what a `ContextPool` was given of a tile can be taken out of it again.
        """
        weight = self.attention.to_value.weight.detach().cpu().double().numpy()
        values = np.asarray(features, np.float64) @ weight.T
        return values.reshape(len(values), self.attention.n_heads, -1)

    @torch.inference_mode()
    def embed_tiles(self, tiles: np.ndarray | Tensor, batch: int) -> np.ndarray:
        """Embed (n, S, S, C) uint8 tiles without gradient, in batches of one fixed size: (n, W) float32.

        An engine keeps to a batch of its own. Every number is one that float16 can hold, so a float16 copy loses nothing.
        """
        x = as_tensor(tiles)
        if not len(x):
            return np.zeros((0, self.width), np.float32)
        return self._embedded(x, batch).float().cpu().numpy()

    def _embedded(self, instances: Tensor, batch: int) -> Tensor:
        return self.embedder(instances) if self.embedder else in_fixed_batches(self.embed, instances, batch)

    @torch.inference_mode()
    def scan(self, instances: np.ndarray | Tensor, batch: int, rows: Rows = None) -> Scan:
        """Embed and score instances without gradient, in batches of one fixed size.

        Tiles and what `embed_tiles` gave for them lead to the same bits.

        Args:
            instances: (n, S, S, C) uint8 tiles or (n, W) float embeddings.
            batch: how many at a time; the last batch is padded, so that numbers do not depend on n.
            rows: (n,) of the tiles in their grid; a model with `attention.positions` needs them, others do not look.

        Raises:
            ModelError: `E_NOT_FINITE` with the tile's place among these; embeddings of another width; rows, see `positions`.
        """
        x = as_tensor(instances)
        if not len(x):
            shape = (0, self.attention.n_queries, self.attention.n_heads)
            return Scan(np.zeros((0, self.dim), np.float32), np.zeros(shape, np.float32))
        if not x.is_floating_point() or not self.takes_tiles:
            x = self._embedded(x, batch)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ModelError(f"embeddings: expected (n, {self.width}), got {tuple(x.shape)}")
        features = add_positions(in_fixed_batches(self.project, x, batch), self.positions, rows)
        # logits too come in batches of one shape
        logits = in_fixed_batches(self.head_logits, features, batch)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).flatten(1).all(1)).nonzero()[0])
            raise ModelError(f"tile {row} of a chunk of {len(x)}: its attention logits are not finite", "E_NOT_FINITE")
        return Scan(features.float().cpu().numpy(), logits.float().cpu().numpy())

    def head(self, features: Tensor, others: Tensor | None = None, other_rows: Rows = None) -> HeadOut:
        """Give one bag's outputs, differentiable.

        Args:
            features: (m, D) of the selected tiles; m may be 0, then the query alone (or the others) speak.
            others: (n, W) embeddings of unselected tiles that enter the label, of any float type, on any device. They
                get no gradient; projector, keys and values do. Pooled in blocks whose activations are computed again
                in the backward pass, so that memory does not grow with n.
            other_rows: (n,) of the others in their grid, see `scan`.
        """
        parts = [] if others is None else self._pool_blocks(others.detach(), other_rows)
        with torch.autocast(self.device.type, enabled=False):
            logits = self.attention.head_logits(features)  # (m, T, H)
            whole = torch.cat([logits, *(part.log_norm[None] for part in parts)])
            weights = whole.softmax(0)
            pooled = torch.einsum("mth,mhd->thd", weights[: len(logits)], self.attention.values(features))
            for weight, part in zip(weights[len(logits) :], parts, strict=True):
                pooled = pooled + weight[..., None] * part.mean
            z = self.attention.finish(pooled)  # (T, D)
            outputs = torch.cat([head(z[t]) for t, head in enumerate(self.heads)])
            return HeadOut(outputs, relative_entropy(logits))

    def _pool_blocks(self, others: Tensor, rows: Rows) -> list[Part]:
        starts = range(0, len(others), _OTHERS_BLOCK)
        known = (None if rows is None else rows[i : i + _OTHERS_BLOCK] for i in starts)
        return [self._pool_block(*two) for two in zip(others.split(_OTHERS_BLOCK), known, strict=True)]

    def _pool_block(self, block: Tensor, rows: Rows) -> Part:
        def pool(x: Tensor) -> Part:
            with torch.autocast(self.device.type, enabled=False):
                return self.attention.pool_part(self.encode(x, rows))

        x = block.to(self.device)
        return (
            checkpoint(pool, x, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else pool(x)
        )

    def read_out(self, features: np.ndarray | Tensor, context: Pooled | None = None) -> ReadOut:
        """Make the label from the selected tiles' features, and each tile's evidence.

        Computed in float64 on the CPU and rounded once, so that the label of a run can be made again from the stored
        `values` and `context`, whatever device and batch made them.

        Args:
            features: (m, D) float32, in the order of the selection.
            context: the pooled unselected tiles, for a model whose label uses them; None when none is unselected.

        Raises:
            ModelError: `E_NOT_FINITE`; a context for a model that uses none.
        """
        return rounded_read_out(self.leave_one_out(features, context))

    def leave_one_out(self, features: np.ndarray | Tensor, context: Pooled | None = None) -> LeaveOneOut:
        """Compute the label's logits, and again without each tile, in float64; see `read_out`."""
        return leave_one_out(self.attention, self.heads, self._selected(features, context), context)

    def label_subsets(
        self, features: np.ndarray | Tensor, kept: np.ndarray, context: Pooled | None = None
    ) -> np.ndarray:
        """Label a bag again from some of its tiles at a time, exactly: (n, P) float64; see `read_out`.

        Args:
            features: (m, D) float32 of the selected tiles.
            kept: (n, m) bool, the tiles of each subset.
            context: the pooled unselected tiles, which always stay.
        """
        x = self._selected(features, context)
        return label_subsets(self.double_head(), x, torch.from_numpy(np.asarray(kept, bool)), context).numpy()

    def double_head(self) -> DoubleHead:
        """Copy the head in float64, to label many bags without evidence; rounded its labels are those of `read_out`."""
        return double_head(self.attention, self.heads)

    def _selected(self, features: np.ndarray | Tensor, context: Pooled | None) -> Tensor:
        x = as_tensor(features)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ModelError(f"features: expected (m, {self.dim}), got {tuple(x.shape)}")
        if context is not None and not self.settings.selection.context:
            raise ModelError("this model's label is read from the selected tiles alone (selection.context is off)")
        return x

    def evidence(self, features: np.ndarray | Tensor) -> np.ndarray:
        """Evidence (m, P) float32 of each selected tile for each output; see `read_out`."""
        return self.read_out(features).evidence


def _projector(width: int, dim: int, norm: str) -> nn.Module:
    if width == dim:
        return nn.Identity()
    last = nn.BatchNorm1d(dim) if norm == "batch" else nn.LayerNorm(dim)
    return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, dim), last, nn.ReLU())
