"""Where inside a tile the evidence comes from: the gradient of a logit weighs the last feature map's channels.

The whole selected bag is read out, one tile of it differentiable and the others at their stored features, so the map
says what this tile does to the slide's label in its company. Everything in float32, whatever the run computed in.

The cells of a feature map do not lie where even division of the tile would put them: strided convolutions that pad by
half a kernel centre their cells up to half a cell too far left and up. How far is measured, by where the energy of the
middle cells' gradient on the pixels has its centre, and all cells are moved by that.

Shapes: k tiles, S side, C channels of a feature map, (h, w) its cells, m selected, D embedding, T tasks, P outputs.

Source: Selvaraju et al., Grad-CAM, ICCV 2017; here the sign is kept, where the paper drops what is negative.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import as_tensor, normalised
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.ensemble import Classifier, EnsembleClassifier
from wsi_ips.results import Pooled

__all__ = ["CamMaps", "within_tile_maps"]

_BATCH = 4  # tiles at a time
_N_PROBES = 4  # noisy tiles that cells are placed by: on real ones whole regions may leave a unit silent


class CamMaps(NamedTuple):
    """Signed maps of some tiles."""

    maps: np.ndarray  # (k, T, S, S) float32; the mean over the cells is gradient times features, in units of the logit
    cells: tuple[int, int]  # (h, w) of the first encoder's feature map


def within_tile_maps(
    classifier: Classifier, tiles: np.ndarray, values: np.ndarray, directions: np.ndarray, context: Pooled | None = None
) -> CamMaps:
    """Find where in the first k selected tiles the label's evidence comes from.

    Args:
        classifier: in eval mode, on any device; an ensemble's map is the sum over its encoders.
        tiles: (k, S, S, 3) uint8 of the first k selected.
        values: (m, D) float32, features of all selected tiles as the ledger has them.
        directions: (T, P), what is added up of the outputs for each task: one logit, or the mean of some.
        context: the pooled unselected tiles, where they enter the label.

    Raises:
        ModelError: an encoder without a spatial feature map, a transformer for instance, or a model without encoder.
    """
    members: list[IPSClassifier] = list(classifier.members) if isinstance(classifier, EnsembleClassifier) else [classifier]  # type: ignore[arg-type]
    encoders = _distinct_encoders(members)
    with torch.autocast(classifier.device.type, enabled=False), torch.enable_grad():
        x = [normalised(as_tensor(tiles), e.mean, e.std) for e in encoders]
        features = [_feature_maps(e, one) for e, one in zip(encoders, x, strict=True)]  # (k, C, h, w) each
        places = [_cell_places(e) for e in encoders]
        bag = torch.from_numpy(np.asarray(values, np.float32)).to(classifier.device)
        towards = torch.from_numpy(np.asarray(directions, np.float32)).to(classifier.device)
        read = _ReadOut(members, encoders, bag, context)
        side = tiles.shape[1]
        maps = np.zeros((len(tiles), len(directions), side, side), np.float32)
        for i in range(len(tiles)):
            leaves = [f[i : i + 1].detach().clone().requires_grad_() for f in features]
            outputs = read.outputs(leaves, i)
            for t, direction in enumerate(towards):
                gradients = torch.autograd.grad(direction @ outputs, leaves, retain_graph=True)
                for encoder, leaf, gradient, place in zip(encoders, leaves, gradients, places, strict=True):
                    maps[i, t] += _spread(_cam(encoder, leaf, gradient), place, side)
    first = _channels_first(encoders[0], features[0]) if encoders else torch.zeros(0, 0, 0, 0)
    return CamMaps(maps, (first.shape[2], first.shape[3]))


class _ReadOut:
    """The label as a function of one tile's feature maps."""

    def __init__(
        self, members: list[IPSClassifier], encoders: list[Encoder], bag: Tensor, context: Pooled | None
    ) -> None:
        self._members, self._encoders = members, encoders
        self._parts = bag.chunk(len(members), dim=1)
        self._contexts: list[tuple[Tensor, Tensor] | None] = [None] * len(members)
        if context is not None:
            norm, mean = (torch.from_numpy(x).to(bag) for x in context)
            self._contexts = list(zip(norm.chunk(len(members), 1), mean.chunk(len(members), 1), strict=True))

    def outputs(self, leaves: list[Tensor], row: int) -> Tensor:
        """Outputs (P,) with the bag's `row` computed from its feature maps."""
        embeddings = [_call(e, "forward_head", leaf) for e, leaf in zip(self._encoders, leaves, strict=True)]
        found = []
        for member, part, context in zip(self._members, self._parts, self._contexts, strict=True):
            own = next(x for e, x in zip(self._encoders, embeddings, strict=True) if e is member.encoder)
            features = member.project(own)
            if member.positions is not None:
                features = features + (part[row] - features).detach()  # its place, which no pixel changes
            bag = torch.cat([part[:row], features, part[row + 1 :]])
            found.append(_outputs(member, bag, context))
        return torch.stack(found).mean(0)


def _outputs(member: IPSClassifier, features: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
    """Outputs (P,) of a bag (m, D), differentiable; what `read_out` computes without gradient in float64."""
    a = member.attention
    logits = a.head_logits(features)  # (m, T, H)
    values = a.values(features)[:, None].expand(-1, a.n_queries, -1, -1)  # (m, T, H, Dk)
    if context is not None:
        logits, values = torch.cat([logits, context[0][None]]), torch.cat([values, context[1][None]])
    z = a.finish(torch.einsum("mth,mthd->thd", logits.softmax(0), values))
    return torch.cat([head(z[t]) for t, head in enumerate(member.heads)])


def _distinct_encoders(members: list[IPSClassifier]) -> list[Encoder]:
    found: list[Encoder] = []
    for member in members:
        if not isinstance(member.encoder, Encoder):
            raise ModelError("this model takes features, not tiles: there is nothing to look into")
        if all(member.encoder is not e for e in found):
            found.append(member.encoder)
    return found


@torch.no_grad()
def _feature_maps(encoder: Encoder, x: Tensor) -> Tensor:
    """The last feature maps of normalised tiles (k, C, S, S), as the network lays them out.

    Raises:
        ModelError: it has none that its vector is computed from.
    """
    name = encoder.architecture.name
    if not all(hasattr(encoder.net, part) for part in ("forward_features", "forward_head")):
        raise ModelError(f"encoder {name}: its feature map cannot be reached, so there are no maps within tiles")
    found = torch.cat([_call(encoder, "forward_features", part) for part in x.split(_BATCH)])
    if found.ndim != 4:
        raise ModelError(
            f"encoder {name}: gives {tuple(found.shape)} and no feature map in rows and columns, so there are no "
            "maps within tiles; convolutional encoders have them"
        )
    again, whole = _call(encoder, "forward_head", found[:1]), encoder.net(x[:1])
    if again.shape != whole.shape or not torch.allclose(again, whole, rtol=1e-3, atol=1e-4):
        raise ModelError(f"encoder {name}: computes its vector from more than the last feature map; no maps within tiles")
    return found


def _call(encoder: Encoder, part: str, x: Tensor) -> Tensor:
    found: Tensor = getattr(encoder.net, part)(x)
    return found


def _channels_first(encoder: Encoder, x: Tensor) -> Tensor:
    """(k, C, h, w), also of networks that keep channels last."""
    n = int(getattr(encoder.net, "num_features", x.shape[1]))
    return x if x.shape[1] == n or x.shape[3] != n else x.permute(0, 3, 1, 2)


def _cam(encoder: Encoder, leaf: Tensor, gradient: Tensor) -> np.ndarray:
    """Weigh the channels by the mean of their gradient: (h, w) float64, times the cells, so that its mean counts all."""
    a, g = _channels_first(encoder, leaf.detach())[0], _channels_first(encoder, gradient)[0]
    weights = g.mean(dim=(1, 2))
    cam = torch.einsum("c,chw->hw", weights, a) * a[0].numel()
    return cam.double().cpu().numpy()


@lru_cache(maxsize=8)  # seconds for a large network, and the same for every slide
def _cell_places(encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Measure where rows (h,) and columns (w,) of cells lie, tile px."""
    a = encoder.architecture
    noise = np.random.default_rng(0).integers(0, 256, (_N_PROBES, a.tile_px, a.tile_px, a.in_channels), np.uint8)
    x = normalised(torch.from_numpy(noise), encoder.mean, encoder.std).requires_grad_()
    found = _channels_first(encoder, _call(encoder, "forward_features", x)).sum(dim=(0, 1))  # (h, w)
    places = []
    for axis in (0, 1):
        lines = found.sum(dim=1 - axis)
        even = (np.arange(len(lines)) + 0.5) * a.tile_px / len(lines)
        middle = sorted({(len(lines) - 1) // 2, len(lines) // 2})  # what these see is cut off alike on both sides
        centres = [_centre(torch.autograd.grad(lines[i], x, retain_graph=True)[0], axis) for i in middle]
        shift = float(np.mean(np.array(centres) - even[middle]))
        places.append(even + shift if np.isfinite(shift) else even)
    return places[0], places[1]


def _centre(gradient: Tensor, axis: int) -> float:
    energy = gradient.double().square().sum(dim=(0, 1, 3 - axis))  # along rows (axis 0) or columns
    at = torch.arange(len(energy), dtype=torch.float64, device=energy.device) + 0.5
    return float((energy * at).sum() / energy.sum())


def _spread(cam: np.ndarray, places: tuple[np.ndarray, np.ndarray], side: int) -> np.ndarray:
    """Interpolate (h, w) between its cells' places to (S, S); beyond the outermost cells their value goes on."""
    at = np.arange(side) + 0.5
    wide = np.stack([np.interp(at, places[1], row) for row in cam])  # (h, S)
    return np.stack([np.interp(at, places[0], column) for column in wide.T], axis=1)
