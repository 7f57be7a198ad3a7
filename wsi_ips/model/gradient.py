"""Exact gradients at constant memory: encode, learn on embeddings, encode again.

The head is tiny and the encoder is what costs memory. Pass 1 encodes the tiles without keeping activations and takes
the loss's gradient with respect to the (m, W) embeddings of each bag; pass 2 encodes the tiles again, a micro-batch at
a time, and pushes that gradient through. By the chain rule the sum is the plain gradient, because a tile's embedding
depends on that tile alone (the encoder keeps its statistics frozen and has no dropout).

The head works on a bag by itself, with dropout from a seed of its own; the encoder takes the tiles of several bags at
once where they fit, so what a bag gives depends on its company in the last bits alone.

Shapes: B bags, m tiles of one, n unselected tiles, S tile side, C channels, W encoder width, P outputs, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import HeadOut, IPSClassifier

__all__ = ["BagInput", "Loss", "Step", "TileSource", "bytes_per_tile", "two_pass_backward"]

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, P), relative entropies (B, T) -> scalar


class TileSource(Protocol):
    """Tiles that need not lie in memory; gone through twice, the same both times."""

    def __len__(self) -> int:
        """m."""

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Give (size, S, S, C) uint8 in order, the last one shorter."""


class BagInput(NamedTuple):
    """What a step learns from of one slide."""

    instances: Tensor | TileSource  # (m, S, S, C) uint8 tiles, or (m, W) float embeddings: the encoder is not asked
    others: Tensor | None = None  # (n, W) embeddings of unselected tiles that enter the label
    seed: int = 0  # of the head's dropout
    rows: np.ndarray | None = None  # (m,) of the instances in their grid, for a model with positions
    other_rows: np.ndarray | None = None  # (n,)


class Step(NamedTuple):
    """What a backward pass gives besides the gradients in the parameters."""

    loss: Tensor  # scalar, detached
    outputs: Tensor  # (B, P), detached


def two_pass_backward(classifier: IPSClassifier, bags: Sequence[BagInput], loss_fn: Loss, micro_batch: int) -> Step:
    """Add the gradient of a loss to the parameters' `.grad`, as `loss.backward()` would.

    An error, out of memory among them, leaves some gradients added and others not: zero them and call again, with a
    smaller micro-batch if memory was short. The result does not depend on it but for rounding.

    Args:
        classifier: the model, on any device.
        bags: on any device; tiles are moved a micro-batch at a time.
        loss_fn: logits (B, P) and relative entropies (B, T) to a scalar; see `IPSClassifier.head`.
        micro_batch: tiles encoded with gradient at a time; memory depends on it.

    Raises:
        ModelError: `E_NOT_FINITE` when the loss is not finite; no gradient was added then.
    """
    learns = any(p.requires_grad for p in classifier.encoder.parameters())
    leaves = _embeddings(classifier, bags, micro_batch, learns=learns)
    found = [_head(classifier, leaf, bag) for leaf, bag in zip(leaves, bags, strict=True)]
    outputs = torch.stack([one.outputs for one in found])
    loss = loss_fn(outputs, torch.stack([one.entropy for one in found]))
    if not bool(torch.isfinite(loss)):
        raise ModelError(
            f"the loss is {loss.item()}; outputs {outputs.detach().flatten()[:8].tolist()}", "E_NOT_FINITE"
        )
    loss.backward()
    gradients = [leaf.grad for leaf in leaves]
    if not any(gradient is None for gradient in gradients):
        for group in _groups(bags, micro_batch):
            own = [gradients[piece.bag][piece.start : piece.start + len(piece.tiles)] for piece in group]  # type: ignore[index]
            classifier.embed(torch.cat([piece.tiles for piece in group])).backward(torch.cat(own))
    return Step(loss.detach(), outputs.detach())


def bytes_per_tile(classifier: IPSClassifier, tiles: Tensor) -> int:
    """Measure what the backward pass keeps of a tile in the encoder; 0 when nothing there learns.

    Args:
        classifier: on the device, in the precision and with the open stages that will learn.
        tiles: (k, S, S, C) uint8; with k of 2 or more, what does not grow with k is not counted.
    """
    one = _saved_bytes(classifier, tiles[:1])
    if len(tiles) < 2:
        return one
    return -(-max(0, _saved_bytes(classifier, tiles) - one) // (len(tiles) - 1))


class _Piece(NamedTuple):
    """Some tiles of one bag."""

    bag: int
    start: int
    tiles: Tensor


def _groups(bags: Sequence[BagInput], micro_batch: int) -> Iterator[list[_Piece]]:
    """Go over all bags' tiles in groups of at most `micro_batch`, in order; small bags share one."""
    group: list[_Piece] = []
    for number, bag in enumerate(bags):
        if _is_embedded(bag.instances):
            continue
        start = 0
        for tiles in bag.instances.split(micro_batch):
            if sum(len(piece.tiles) for piece in group) + len(tiles) > micro_batch:
                yield group
                group = []
            if len(tiles):
                group.append(_Piece(number, start, tiles))
            start += len(tiles)
    if group:
        yield group


def _embeddings(classifier: IPSClassifier, bags: Sequence[BagInput], micro_batch: int, *, learns: bool) -> list[Tensor]:
    """Give (m, W) of each bag without a graph; leaves that collect their gradients where an encoder learns from them."""
    empty = classifier.attention.query.new_zeros(0, classifier.width)
    parts: list[list[Tensor]] = [[empty] for _ in bags]
    with torch.no_grad():
        for group in _groups(bags, micro_batch):
            found = classifier.embed(torch.cat([piece.tiles for piece in group]))
            for piece, own in zip(group, found.split([len(piece.tiles) for piece in group]), strict=True):
                parts[piece.bag].append(own)
    return [
        bag.instances.detach().to(classifier.device) if _is_embedded(bag.instances) else torch.cat(own).requires_grad_(learns)
        for bag, own in zip(bags, parts, strict=True)
    ]


def _is_embedded(instances: Tensor | TileSource) -> TypeGuard[Tensor]:
    return isinstance(instances, Tensor) and instances.is_floating_point()


def _head(classifier: IPSClassifier, embeddings: Tensor, bag: BagInput) -> HeadOut:
    with _dropout_from(bag.seed, embeddings.device):
        return classifier.head(classifier.encode(embeddings, bag.rows), bag.others, bag.other_rows)


@contextmanager
def _dropout_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from a seed of its own; the generators are as before afterwards.

    The generators themselves are set: `torch.manual_seed` costs as much as the whole head.
    """
    on_gpu = device.type == "cuda"
    index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    generator = torch.cuda.default_generators[index] if on_gpu else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _saved_bytes(classifier: IPSClassifier, tiles: Tensor) -> int:
    own = {t.untyped_storage().data_ptr() for t in classifier.state_dict().values()}
    sizes: dict[int, int] = {}  # by address: several views of one storage are kept once

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = classifier.embed(tiles)  # while its graph lives no address is used twice
        del kept
    return sum(sizes.values())
