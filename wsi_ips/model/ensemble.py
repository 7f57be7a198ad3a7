"""Several trained models as one: one selection for all, the label the mean of theirs.

Members' heads stand side by side as heads of one attention, so selection, attention and ledger need no rule of their
own: means over heads are means over members. Members with the same encoder share it, and a tile is encoded once.

Shapes: n tiles, k members, W_j width of encoder j, D embedding of one member, T tasks, H heads of one member,
Dk = D / H, m selected tiles, P outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import as_tensor
from wsi_ips.model.classifier import IPSClassifier, ReadOut, Scan, rounded_read_out
from wsi_ips.model.evidence import LeaveOneOut
from wsi_ips.model.positions import Rows
from wsi_ips.results import Pooled

__all__ = ["Classifier", "EnsembleClassifier"]


class EnsembleClassifier(nn.Module):
    """Predicts like an `IPSClassifier`; learns nothing.

    Args:
        members: from now on parts of this one; those whose encoders compute the same share the first one's.
        encoder_of: number of each member's encoder where that is known already (weights that are loaded later).

    Raises:
        ModelError: no member, or members that differ in more than weights and encoder.
    """

    def __init__(self, members: Sequence[IPSClassifier], encoder_of: Sequence[int] | None = None) -> None:
        super().__init__()
        _check(members)
        seen: dict[str, int] = {}
        self.encoder_of = list(encoder_of or [seen.setdefault(m.encoder.hash, len(seen)) for m in members])
        first = [self.encoder_of.index(j) for j in range(max(self.encoder_of) + 1)]
        for member, j in zip(members, self.encoder_of, strict=True):
            member.encoder = members[first[j]].encoder
        self.encoders = nn.ModuleList(members[i].encoder for i in first)
        self.members = nn.ModuleList(members)
        self._first = first
        if not self.takes_tiles and len(first) > 1:
            raise ModelError(f"members take embeddings of different widths: {[m.width for m in members]}")

    @property
    def settings(self) -> ModelSettings:
        """The first member's; all but the encoder's are common."""
        return self._members[0].settings

    @property
    def dim(self) -> int:
        """Length of the features: k D."""
        return sum(member.dim for member in self._members)

    @property
    def n_outputs(self) -> int:
        """P."""
        return self._members[0].n_outputs

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self._members[0].device

    @property
    def takes_tiles(self) -> bool:
        """Whether there are encoders; else the instances are embeddings."""
        return self._members[0].takes_tiles

    @property
    def width(self) -> int:
        """Length of what `embed_tiles` gives: the sum of W_j over different encoders."""
        return sum(self._members[i].width for i in self._first)

    @property
    def embedding_hash(self) -> str:
        """Identity of what `embed_tiles` computes; with one encoder that of a single model."""
        own = [self._members[i].embedding_hash for i in self._first]
        return own[0] if len(own) == 1 else hashlib.sha256(" ".join(own).encode()).hexdigest()

    @property
    def _members(self) -> list[IPSClassifier]:
        return list(self.members)  # type: ignore[arg-type]  # ModuleList forgets what it holds

    def embed_tiles(self, tiles: np.ndarray | Tensor, batch: int) -> np.ndarray:
        """Embed tiles by every different encoder: (n, sum of W_j) float32; see `IPSClassifier.embed_tiles`."""
        return np.concatenate([self._members[i].embed_tiles(tiles, batch) for i in self._first], axis=1)

    def scan(self, instances: np.ndarray | Tensor, batch: int, rows: Rows = None) -> Scan:
        """Embed and score instances: features (n, k D), logits (n, T, k H); see `IPSClassifier.scan`.

        Raises:
            ModelError: `E_NOT_FINITE`; embeddings of another width.
        """
        x = as_tensor(instances)
        if not x.is_floating_point():
            x = as_tensor(self.embed_tiles(x, batch))
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ModelError(f"embeddings: expected (n, {self.width}), got {tuple(x.shape)}")
        own = x.split([self._members[i].width for i in self._first], dim=1)
        found = [member.scan(own[j], batch, rows) for member, j in zip(self._members, self.encoder_of, strict=True)]
        return Scan(
            np.concatenate([one.features for one in found], axis=1),
            np.concatenate([one.logits for one in found], axis=2),
        )

    def values(self, features: np.ndarray) -> np.ndarray:
        """What each tile contributes to a pool: (n, k D) to (n, k H, Dk) float64."""
        parts = np.split(np.asarray(features), len(self.members), axis=1)
        return np.concatenate([m.values(part) for m, part in zip(self._members, parts, strict=True)], axis=1)

    def read_out(self, features: np.ndarray | Tensor, context: Pooled | None = None) -> ReadOut:
        """Make the label, the mean of the members' outputs, and the evidence, the mean of theirs.

        Args:
            features: (m, k D) float32, in the order of the selection.
            context: log_norm (T, k H) and mean (T, k H, Dk); see `IPSClassifier.read_out`.

        Raises:
            ModelError: `E_NOT_FINITE`; features of another width.
        """
        found = [member.leave_one_out(part, own) for member, part, own in self._parts(features, context)]
        outputs = torch.stack([one.outputs for one in found]).mean(0)
        return rounded_read_out(LeaveOneOut(outputs, torch.stack([one.without for one in found]).mean(0)))

    def label_subsets(
        self, features: np.ndarray | Tensor, kept: np.ndarray, context: Pooled | None = None
    ) -> np.ndarray:
        """Label a bag again from some of its tiles at a time: (n, P) float64; see `IPSClassifier.label_subsets`."""
        return np.mean([m.label_subsets(part, kept, own) for m, part, own in self._parts(features, context)], axis=0)

    def _parts(
        self, features: np.ndarray | Tensor, context: Pooled | None
    ) -> list[tuple[IPSClassifier, Tensor, Pooled | None]]:
        """Give each member its own part of features (m, k D) and context."""
        x = as_tensor(features)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ModelError(f"features: expected (m, {self.dim}), got {tuple(x.shape)}")
        k = len(self.members)
        contexts = [None] * k if context is None else _split_heads(context, k)
        return list(zip(self._members, x.chunk(k, dim=1), contexts, strict=True))

    def evidence(self, features: np.ndarray | Tensor) -> np.ndarray:
        """Evidence (m, P) float32 of each selected tile for each output; see `read_out`."""
        return self.read_out(features).evidence


def _split_heads(context: Pooled, k: int) -> list[Pooled | None]:
    norms, means = np.split(context.log_norm, k, axis=1), np.split(context.mean, k, axis=1)
    return [Pooled(*map(np.ascontiguousarray, pair)) for pair in zip(norms, means, strict=True)]


def _check(members: Sequence[IPSClassifier]) -> None:
    if not members:
        raise ModelError("an ensemble needs at least one member")
    first = members[0]
    for i, member in enumerate(members[1:], 1):
        for name in type(member.settings).model_fields:
            own, wanted = getattr(member.settings, name), getattr(first.settings, name)
            if name != "encoder" and own != wanted:
                raise ModelError(f"member {i} of the ensemble differs from member 0 in {name}: {own} and {wanted}")
        if member.takes_tiles != first.takes_tiles or member.dim != first.dim:
            raise ModelError(
                f"member {i} of the ensemble has features of {member.dim}, member 0 of {first.dim}; "
                "set attention.dim, and take tiles or embeddings in both"
            )


Classifier = IPSClassifier | EnsembleClassifier  # what predicts
