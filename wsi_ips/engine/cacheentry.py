"""One entry of the embedding cache: parts of up to a few thousand tiles as HDF5, and an index with their SHA-256.

HDF5 is built in memory and written with plain Python: writing straight to a full disk kills the process.

Shapes: N tiles, n some of them, W width.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from wsi_ips.errors import WsiIpsError
from wsi_ips.hdf5 import refuse_foreign

__all__ = ["CACHE_SCHEMA_VERSION", "INDEX", "UNFINISHED", "DamagedEntryError", "StoredEmbeddings", "StoredPart", "json_bytes", "part_bytes",
           "part_name", "read_part", "seal"]  # fmt: skip

CACHE_SCHEMA_VERSION = 1
_MOST_BYTES = 1 << 30  # of a part
INDEX = "index.json"
UNFINISHED = "unfinished.json"  # of an entry that is being written, see entrywriter.py


class DamagedEntryError(WsiIpsError):
    """An entry of the cache whose files are not what its index says; it counts as absent."""


class StoredPart(NamedTuple):
    """One file of an entry."""

    rows: np.ndarray  # (n,) int64 rows of the grid, rising
    embeddings: np.ndarray  # (n, W) float16
    n_missing: np.ndarray  # (n,) int64, px of the tile that the slide's file does not hold
    failed: np.ndarray  # (n,) bool, tiles that could not be read: none in a finished entry


class StoredEmbeddings:
    """An entry that was found."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.n_tiles = int(index["n_tiles"])
        self.width = int(index["width"])
        self.n_missing = int(index["n_missing"])  # tiles with px that the slide's file does not hold
        self.colour: dict[str, float] | None = index["colour"]  # see colour.py
        self._parts: list[dict[str, Any]] = index["parts"]

    def parts(self) -> Iterator[StoredPart]:
        """Read the parts in order, each checked.

        Raises:
            DamagedEntryError: a part is gone or is not what was written.
        """
        return (self._read(i) for i in range(len(self._parts)))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the embeddings of some rows (n,) in their order: (n, W) float32.

        Raises:
            DamagedEntryError: as `parts`.
        """
        out = np.empty((len(rows), self.width), np.float32)
        start = 0
        for i, said in enumerate(self._parts):
            inside = (rows >= start) & (rows < start + said["n"])
            if inside.any():
                out[inside] = self._read(i).embeddings[rows[inside] - start]
            start += said["n"]
        return out

    def _read(self, i: int) -> StoredPart:
        return read_part(self.folder / part_name(i), self._parts[i]["sha256"])


def part_bytes(part: StoredPart) -> bytes:
    """Lay a part out as HDF5."""
    with h5py.File("part", "w", driver="core", backing_store=False) as f:
        f.create_dataset("rows", data=part.rows)
        f.create_dataset("embeddings", data=part.embeddings)
        f.create_dataset("n_missing", data=part.n_missing)
        if part.failed.any():
            f.create_dataset("failed", data=part.failed)
        f.flush()
        return bytes(f.id.get_file_image())


def read_part(path: Path, sha256: str) -> StoredPart:
    """Read a file of an entry.

    Raises:
        DamagedEntryError: it is gone or is not what was written.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedEntryError(f"part {path.name} has changed")
        with h5py.File(io.BytesIO(data), "r") as f:
            refuse_foreign(f, _MOST_BYTES)
            rows = f["rows"][()]
            failed = f["failed"][()] if "failed" in f else np.zeros(len(rows), bool)
            return StoredPart(rows, f["embeddings"][()], f["n_missing"][()], failed)
    except (OSError, KeyError, ValueError) as error:
        raise DamagedEntryError(f"part {path.name} cannot be read ({error})") from error


def part_name(i: int) -> str:
    """Name the file of part i."""
    return f"{i:06d}.h5"


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Write JSON that is the same for the same content."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def seal(index: Mapping[str, Any]) -> str:
    """Hash an index, but for the hash itself."""
    return hashlib.sha256(json_bytes({k: v for k, v in index.items() if k != "sha256"})).hexdigest()
