"""Tiles that are read once and needed twice: a few in memory, the rest in a temporary file.

The exact gradient goes over a step's tiles two times. Holding them all would make memory grow with M; reading and
augmenting them again would cost the decoder's time twice. So the first some megabytes stay in memory and the rest is
written to an unnamed file that goes with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch

__all__ = ["TileSpool"]

_HELD_BYTES = 32 << 20


class TileSpool:
    """A growing (m, S, S, C) uint8 array that is read by slices; mutable.

    Args:
        held_bytes: how much stays in memory.
    """

    def __init__(self, held_bytes: int = _HELD_BYTES) -> None:
        self._held_bytes = held_bytes
        self._parts: list[torch.Tensor] = []
        self._n_held, self._n = 0, 0
        self._file: IO[bytes] | None = None
        self._tile: tuple[int, ...] = ()

    def append(self, tiles: torch.Tensor) -> None:
        """Add (n, S, S, C) uint8."""
        self._tile = self._tile or tuple(tiles.shape[1:])
        size = int(np.prod(self._tile))
        n_fit = len(tiles) if self._file is None else 0
        n_fit = min(n_fit, max(0, self._held_bytes // size - self._n_held))
        if n_fit:
            self._parts.append(tiles[:n_fit].clone())
            self._n_held += n_fit
        if n_fit < len(tiles):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="wsi-ips-")  # noqa: SIM115 (closed with the spool)
            self._file.seek((self._n - self._n_held + n_fit) * size)
            self._file.write(tiles[n_fit:].contiguous().numpy().tobytes())
        self._n += len(tiles)

    def __len__(self) -> int:
        return self._n

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, S, S, C)."""
        return (self._n, *self._tile)

    def is_floating_point(self) -> bool:
        """No: these are tiles."""
        return False

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Give the tiles in order, at most `size` at a time."""
        for start in range(0, self._n, size):
            yield self[start : start + size]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        start, stop, _ = rows.indices(self._n)
        held = torch.cat(self._parts) if len(self._parts) > 1 else self._parts[0] if self._parts else None
        if held is not None:
            self._parts = [held]
        parts = [held[start : min(stop, self._n_held)]] if held is not None and start < self._n_held else []
        if stop > self._n_held and self._file is not None:
            size = int(np.prod(self._tile))
            first = max(start, self._n_held) - self._n_held
            count = stop - self._n_held - first
            self._file.seek(first * size)
            raw = np.frombuffer(bytearray(self._file.read(count * size)), np.uint8)
            parts.append(torch.from_numpy(raw).reshape(count, *self._tile))
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
        self._parts = []
