"""In which numbers a model computes: the type embeddings are stored in, batches of one shape, bfloat16, hashes.

Embeddings are rounded to float16 the moment they are made, whether they will be stored or not. So a pass that finds
them in a cache and one that encodes the tiles again see the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor", "hash_tensors", "in_fixed_batches", "is_bf16_native", "normalised", "round_to_stored"]


class _RoundToHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_to_stored(embeddings: Tensor) -> Tensor:
    """Round float32 embeddings to float16 and back; the gradient passes unchanged (straight-through).

    A value beyond 65504 becomes infinite, which scanning refuses. Other types, float64 in tests, stay as they are.
    """
    return _RoundToHalf.apply(embeddings) if embeddings.dtype == torch.float32 else embeddings


def normalised(tiles: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bring uint8 tiles (n, S, S, C) to what a network takes: (n, C, S, S), channels-last in memory.

    Args:
        tiles: on any device.
        mean, std: (1, C, 1, 1) of px scaled to 0..1; their type and device are the result's.
    """
    x = tiles.to(mean.device).permute(0, 3, 1, 2).to(mean.dtype)
    return x.mul_(1.0 / (255.0 * std)).sub_(mean / std)  # in place: x is a fresh copy


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """See an array as a tensor; one that must not be written, of a mapped file for instance, is copied."""
    return torch.from_numpy(np.require(array, requirements=("C", "W"))) if isinstance(array, np.ndarray) else array


def hash_tensors(head: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash a text and named tensors (type, shape, content): 64 hex digits."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def in_fixed_batches(
    function: Callable[[Tensor], Tensor], tiles: Tensor, batch: int, threads: Executor | None = None
) -> Tensor:
    """Apply a function to tiles in batches of one fixed size, the last padded with zeros.

    Kernels differ in their last bits between batch shapes; with one shape a tile's embedding does not depend on how
    many tiles came with it.

    Args:
        function: (batch, ...) -> (batch, ...).
        tiles: (n, ...); n may be 0 only if the function accepts it.
        batch: size of a batch.
        threads: that take batches; None does them here, one after another.
    """

    def one(start: int) -> Tensor:
        part = tiles[start : start + batch]
        n = len(part)
        if 0 < n < batch:
            part = torch.cat([part, part.new_zeros(batch - n, *part.shape[1:])])
        return function(part)[:n]

    starts = range(0, max(len(tiles), 1), batch)
    return torch.cat(list(threads.map(one, starts) if threads is not None else map(one, starts)))


def is_bf16_native(device_type: str) -> bool:
    """Tell whether a kind of device multiplies in bfloat16 in hardware."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return _cpu_has_bf16()
    return False


def _cpu_has_bf16() -> bool:
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(probe()) for probe in probes if probe is not None)
