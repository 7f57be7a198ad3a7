"""Exact gradients at constant memory: encode, learn on embeddings, encode again.

The head is tiny and the encoder is what costs memory. Pass 1 encodes all tiles without keeping activations and takes
the loss's gradient with respect to the (B, M, D) embeddings; pass 2 encodes the tiles again, a micro-batch at a time,
and pushes that gradient through. By the chain rule the sum is the plain gradient, because a tile's embedding depends
on that tile alone (the encoder keeps its statistics frozen and has no dropout).

Shapes: B slides, M tiles each, S tile side, C channels, D embedding, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier

__all__ = ["Step", "two_pass_backward"]

Loss = Callable[[Tensor], Tensor]  # (B, P) logits -> scalar


class Step(NamedTuple):
    """What a backward pass gives besides the gradients in the parameters."""

    loss: Tensor  # scalar, detached
    outputs: Tensor  # (B, P), detached


def two_pass_backward(
    classifier: IPSClassifier, tiles: Tensor, mask: Tensor | None, loss_fn: Loss, micro_batch: int
) -> Step:
    """Add the gradient of a loss to the parameters' `.grad`, as `loss.backward()` would.

    Args:
        classifier: the model, on any device.
        tiles: (B, M, S, S, C) uint8, on any device; moved a micro-batch at a time.
        mask: (B, M) bool, True where there is a tile; None when all are. Padding is never encoded.
        loss_fn: logits (B, P) to a scalar.
        micro_batch: tiles encoded with gradient at a time; memory depends on it, the result does not.

    Raises:
        ModelError: `E_NOT_FINITE` when the loss is not finite; no gradient was added then.
    """
    b, m = tiles.shape[:2]
    keep = torch.ones(b, m, dtype=torch.bool) if mask is None else mask.cpu()
    places = keep.flatten().nonzero()[:, 0]  # (n,) of the B x M tiles
    flat = tiles.flatten(0, 1)
    learns = any(p.requires_grad for p in classifier.encoder.parameters())
    embed = classifier.encode if learns else classifier.encoder
    with torch.no_grad():
        parts = [embed(part) for _, part in _micro_batches(flat, places, micro_batch)]
    width = classifier.dim if learns else classifier.encoder.width
    found = torch.cat(parts) if parts else classifier.attention.query.new_zeros(0, width)
    leaf = found.detach().requires_grad_(learns)  # (n, W or D)
    features = leaf if learns else classifier.project(leaf)
    device = features.device
    bags = features.new_zeros(b * m, classifier.dim).index_copy(0, places.to(device), features).unflatten(0, (b, m))
    outputs = classifier.outputs(bags, keep.to(device))
    loss = loss_fn(outputs)
    if not bool(torch.isfinite(loss)):
        raise ModelError(
            f"the loss is {loss.item()}; outputs {outputs.detach().flatten()[:8].tolist()}", "E_NOT_FINITE"
        )
    loss.backward()
    if learns and leaf.grad is not None:
        for rows, part in _micro_batches(flat, places, micro_batch):
            classifier.encode(part).backward(leaf.grad[rows])
    return Step(loss.detach(), outputs.detach())


def _micro_batches(flat: Tensor, places: Tensor, micro_batch: int) -> Iterator[tuple[slice, Tensor]]:
    """Give the real tiles (k, S, S, C), with where they stand among the n."""
    for start in range(0, len(places), micro_batch):
        chosen = places[start : start + micro_batch]
        yield slice(start, start + len(chosen)), flat[chosen.to(flat.device)]
