"""What encoding a tile takes of memory, and how many tiles a device therefore takes at once.

Measured in sizes, not in time: one tile passes through the encoder, and the largest layer, input and output together,
is what a batch needs a tile. The same model gives the same number on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wsi_ips.engine.tuning import fitting_batch, host_budget
from wsi_ips.model.ensemble import Classifier

__all__ = ["bytes_a_tile", "choose_batch"]

_ALIVE = 3  # of the largest layer: a branch that waits beside it, the library's working copy
_OF_GPU = 0.8


def choose_batch(classifier: Classifier, tile_bytes: int, memory_bytes: int | None, n_workers: int) -> int:
    """Choose how many tiles go through the encoder at once; the model's chunk where memory allows, or the paper's loop asks.

    Args:
        classifier: on its device.
        tile_bytes: see `bytes_a_tile`.
        memory_bytes: what the worker may use of the host, if that was stated.
        n_workers: that share the machine, or the GPU.
    """
    chosen = classifier.settings.selection
    if chosen.mode == "ips":
        return chosen.chunk_size
    budget = host_budget(memory_bytes, n_workers)
    if classifier.device.type == "cuda":
        budget = int(_OF_GPU * torch.cuda.mem_get_info(classifier.device)[1] / n_workers)  # all of it, free or not
    weights = sum(t.numel() * t.element_size() for t in classifier.state_dict().values())
    return fitting_batch(chosen.chunk_size, tile_bytes, budget - weights)


@torch.inference_mode()
def bytes_a_tile(classifier: Classifier) -> int:
    """Bytes that the encoder holds a tile at most; of several encoders the hungriest, for they take turns."""
    encoders: Iterable[Any] = getattr(classifier, "encoders", None) or [getattr(classifier, "encoder", None)]
    return max(_bytes_of(encoder) for encoder in encoders)


def _bytes_of(encoder: Any) -> int:
    a, largest = encoder.architecture, 0

    def see(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        nonlocal largest
        tensors = [t for t in (*given, *(made if isinstance(made, tuple) else (made,))) if isinstance(t, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

    layers = [m for m in encoder.modules() if not any(m.children())]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        encoder(torch.zeros((1, a.tile_px, a.tile_px, a.in_channels), dtype=torch.uint8))
    finally:
        for hook in hooks:
            hook.remove()
    return _ALIVE * largest + 9 * a.in_channels * a.tile_px**2  # and the tile itself: uint8, and float twice
