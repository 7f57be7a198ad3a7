"""One entry of the embedding cache: parts of a few thousand tiles as HDF5, and an index with their SHA-256.

HDF5 is built in memory and written with plain Python: writing straight to a full disk kills the process.

Shapes: N tiles, n some of them, W width.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np

from wsi_ips.errors import WsiIpsError

__all__ = ["CACHE_SCHEMA_VERSION", "INDEX", "DamagedEntryError", "EntryWriter", "StoredEmbeddings", "StoredPart", "json_bytes",
           "seal"]  # fmt: skip

CACHE_SCHEMA_VERSION = 1
INDEX = "index.json"
_PART_TILES = 4096  # tiles a file: bounds memory
_KEEP_FREE = 1 << 30  # bytes of the disk that the cache leaves to the results


class DamagedEntryError(WsiIpsError):
    """An entry of the cache whose files are not what its index says; it counts as absent."""


class StoredPart(NamedTuple):
    """One file of an entry."""

    rows: np.ndarray  # (n,) int64 rows of the grid, rising
    embeddings: np.ndarray  # (n, W) float16
    n_missing: np.ndarray  # (n,) int64, px of the tile that the slide's file does not hold


class Keeper(Protocol):
    """The cache, as a writer sees it."""

    folder: Path
    max_bytes: int
    trouble: str  # why nothing more is stored

    def publish(self, temporary: Path, ingredients: dict[str, Any], n_bytes: int) -> None:
        """Give a finished folder its name."""

    def fail(self, error: OSError) -> None:
        """Remember why nothing more is stored."""


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
        said = self._parts[i]
        try:
            data = (self.folder / _part_name(i)).read_bytes()
            if hashlib.sha256(data).hexdigest() != said["sha256"]:
                raise DamagedEntryError(f"part {i} of {len(self._parts)} has changed")
            with h5py.File(io.BytesIO(data), "r") as f:
                return StoredPart(f["rows"][()], f["embeddings"][()], f["n_missing"][()])
        except (OSError, KeyError) as error:
            raise DamagedEntryError(f"part {i} of {len(self._parts)} cannot be read ({error})") from error


class EntryWriter:
    """Fills one entry, from row 0 on; mutable. Never raises for the cache's sake: it gives up and says so in `trouble`."""

    def __init__(self, keeper: Keeper, ingredients: dict[str, Any]) -> None:
        self._keeper, self._ingredients = keeper, ingredients
        self._temporary = keeper.folder / f".new-{uuid.uuid4().hex}"
        self._waiting: list[StoredPart] = []
        self._parts: list[dict[str, Any]] = []
        self._n_tiles = self._n_bytes = self._width = self._n_missing = 0
        self._is_open = not keeper.trouble

    def add(self, rows: np.ndarray, embeddings: np.ndarray, n_missing: np.ndarray) -> None:
        """Take the next rows (n,), their embeddings (n, W) float32, which must be float16 numbers, and (n,) missing px."""
        if not self._is_open:
            return
        with np.errstate(over="ignore"):
            half = embeddings.astype(np.float16)
        if not np.array_equal(half, embeddings) or rows[0] != self._n_tiles:
            self.abandon()  # what cannot be given back bit for bit is not kept
            return
        self._waiting.append(StoredPart(rows.astype(np.int64), half, n_missing.astype(np.int64)))
        self._n_tiles += len(rows)
        self._n_missing += int(np.count_nonzero(n_missing))
        self._width = half.shape[1]
        if sum(len(part.rows) for part in self._waiting) >= _PART_TILES:
            self._flush()

    def finish(self, n_tiles: int, colour: dict[str, float] | None) -> None:
        """Give the entry its name, if all N tiles are there."""
        if self._is_open and self._waiting:
            self._flush()
        if not self._is_open or self._n_tiles != n_tiles:
            self.abandon()
            return
        index = {"schema_version": CACHE_SCHEMA_VERSION, "ingredients": self._ingredients, "n_tiles": n_tiles, "width": self._width,
                 "n_missing": self._n_missing, "colour": colour, "parts": self._parts}  # fmt: skip
        try:
            data = json_bytes(index | {"sha256": seal(index)})
            (self._temporary / INDEX).write_bytes(data)
            self._keeper.publish(self._temporary, self._ingredients, self._n_bytes + len(data))
        except OSError as error:
            self._keeper.fail(error)
        except ValueError:
            pass  # a colour that is not finite; kept is only what can be given back
        self.abandon()  # what was renamed is no longer there

    def abandon(self) -> None:
        """Throw away what was written."""
        self._is_open, self._waiting = False, []
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _flush(self) -> None:
        rows, embeddings, n_missing = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting = []
        with h5py.File("part", "w", driver="core", backing_store=False) as f:
            f.create_dataset("rows", data=rows)
            f.create_dataset("embeddings", data=embeddings)
            f.create_dataset("n_missing", data=n_missing)
            f.flush()
            data = bytes(f.id.get_file_image())
        self._n_bytes += len(data)
        if self._n_bytes > self._keeper.max_bytes:
            self.abandon()  # it would push everything else out, and itself
            return
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._temporary).free < _KEEP_FREE + len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (self._temporary / _part_name(len(self._parts))).write_bytes(data)
        except OSError as error:
            self._keeper.fail(error)
            self.abandon()
            return
        self._parts.append({"n": len(rows), "sha256": hashlib.sha256(data).hexdigest()})


def _part_name(i: int) -> str:
    return f"{i:06d}.h5"


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Write JSON that is the same for the same content."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def seal(index: Mapping[str, Any]) -> str:
    """Hash an index, but for the hash itself."""
    return hashlib.sha256(json_bytes({k: v for k, v in index.items() if k != "sha256"})).hexdigest()
