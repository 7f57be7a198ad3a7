"""Features that a later step needs again, put by in a temporary file while a slide streams past.

An unnamed file that goes with the process, written and read in plain blocks: what is mapped would count as memory.

Shapes: N tiles, n of a block, D width of the features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np

from wsi_ips.errors import StoppedError

__all__ = ["FeatureSpool"]

_BLOCK_BYTES = 2 << 20  # of features; what the head makes of a block in float64 is some ten times as much


class FeatureSpool:
    """A growing (N, D) float32 array on disk; mutable. To be used in a `with` block."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="wsi-ips-")  # noqa: SIM115 (closed with the spool)
        self._width = 0
        self.n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, features: np.ndarray) -> None:
        """Append (n, D) float32.

        Raises:
            StoppedError: the folder for temporary files is full.
        """
        self._width = features.shape[1]
        try:
            self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(features, np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            raise StoppedError(
                f"the features of {self.n_rows + len(features)} tiles do not fit into {tempfile.gettempdir()} "
                f"({error.strerror or error}); set TMPDIR to a folder with more room, or leave --evidence bag out"
            ) from error
        self.n_rows += len(features)

    def blocks(self) -> Iterator[np.ndarray]:
        """Read all rows in order, some megabytes at a time: (n, D) float32."""
        row_bytes = 4 * max(1, self._width)
        n_a_block = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(0, self.n_rows, n_a_block):
            n = min(n_a_block, self.n_rows - start)
            self._file.seek(start * row_bytes)
            yield np.frombuffer(self._file.read(n * row_bytes), np.float32).reshape(n, self._width)
