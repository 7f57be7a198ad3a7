"""Filling one entry of the embedding cache as a pass goes, and going on where a pass was interrupted.

A part is written every few thousand tiles or some seconds, with its hash and the state of what else a pass counts. When
the process is killed, or told to end, the next pass over the same tiles takes the folder over: it reads the parts back,
which gives the same numbers as encoding again (tests hold that bit for bit), and encodes behind them. A folder that a
living process fills is left to it. HDF5 is built in memory and written with plain Python: writing straight to a full disk kills the process.

Shapes: N tiles, n some of them, W width.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_ips.engine.cacheentry import (
    CACHE_SCHEMA_VERSION,
    INDEX,
    UNFINISHED,
    DamagedEntryError,
    StoredPart,
    json_bytes,
    part_bytes,
    part_name,
    read_part,
    seal,
)
from wsi_ips.locking import is_alive, this_process

__all__ = ["EntryWriter"]

_PART_TILES = 4096  # tiles a file: bounds memory
_PART_SECONDS = 20.0  # after which a smaller one is written: at most so much of a pass is lost
_KEEP_FREE = 1 << 30  # bytes of the disk that the cache leaves to the results


class Keeper(Protocol):
    """The cache, as a writer sees it."""

    folder: Path
    max_bytes: int
    trouble: str  # why nothing more is stored
    is_transient: bool  # whether an entry is kept only until its slide is done

    def publish(self, temporary: Path, ingredients: dict[str, Any], n_bytes: int) -> None:
        """Give a finished folder its name."""

    def fail(self, error: OSError) -> None:
        """Remember why nothing more is stored."""


class EntryWriter:
    """Fills one entry, from row 0 on; mutable. Never raises for the cache's sake: it gives up and says so in `trouble`.

    Args:
        keeper: the cache.
        ingredients: what the entry is named by.
        chunk_size: tiles of the chunks that are added; what was written in others is not taken up.
    """

    def __init__(self, keeper: Keeper, ingredients: dict[str, Any], chunk_size: int) -> None:
        self._keeper, self._ingredients, self._chunk_size = keeper, ingredients, chunk_size
        stem = f".new-{hashlib.sha256(json_bytes(ingredients)).hexdigest()[:32]}-"
        self._temporary = keeper.folder / f"{stem}{uuid.uuid4().hex}"
        self._waiting: list[StoredPart] = []
        self._colour: dict[str, Any] | None = None
        self._parts: list[dict[str, Any]] = []
        self._left: list[dict[str, Any]] = []  # parts that an interrupted pass left and nobody has read yet
        self._n_bytes = 0
        self._written = time.monotonic()
        self._is_open = not keeper.trouble
        if self._is_open and _take_over(keeper.folder, stem, self._temporary):
            self._left = self._left_parts()
            self._note(this_process())

    @property
    def colour(self) -> dict[str, Any] | None:
        """State of `ColourStatistics` after the rows that this entry holds."""
        return self._colour

    def earlier(self) -> Iterator[StoredPart]:
        """Give what an interrupted pass left, from row 0 on, as far as it is sound; to be called first, and to its end."""
        while self._is_open and self._left:
            said = self._left[0]
            try:
                part = read_part(self._temporary / part_name(len(self._parts)), said["sha256"])
            except DamagedEntryError:
                self._left = []
                break
            self._parts.append(self._left.pop(0))
            self._colour, self._n_bytes = said["colour"], self._n_bytes + said["bytes"]
            yield part
        self._written = time.monotonic()

    def add(
        self, rows: np.ndarray, embeddings: np.ndarray, n_missing: np.ndarray, failed: np.ndarray | None = None,
        colour: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Take the next rows.

        Args:
            rows: (n,).
            embeddings: (n, W) float32, which must be float16 numbers.
            n_missing: (n,) px.
            failed: (n,) bool, tiles that could not be read; an entry with such tiles serves a pass that goes on only.
            colour: state of `ColourStatistics` after these rows.
        """
        if not self._is_open:
            return
        with np.errstate(over="ignore"):
            half = embeddings.astype(np.float16)
        if not np.array_equal(half, embeddings) or rows[0] != self._n_tiles:
            self.abandon()  # what cannot be given back bit for bit is not kept
            return
        failed = np.zeros(len(rows), bool) if failed is None else failed.copy()
        self._waiting.append(StoredPart(rows.astype(np.int64), half, n_missing.astype(np.int64), failed))
        self._colour = colour
        is_late = time.monotonic() - self._written >= _PART_SECONDS
        if is_late or sum(len(part.rows) for part in self._waiting) >= _PART_TILES:
            self._flush()

    def finish(self, n_tiles: int, colour: dict[str, float] | None) -> None:
        """Give the entry its name, if all N tiles are there and were read."""
        if not self._parts and self._keeper.is_transient:
            self.abandon()  # a pass so short is sooner done again than kept
        if self._is_open and self._waiting:
            self._flush()
        if not (self._is_open and self._parts) or self._n_tiles != n_tiles or any(part["n_failed"] for part in self._parts):
            self.abandon()
            return
        index = {"schema_version": CACHE_SCHEMA_VERSION, "ingredients": self._ingredients, "n_tiles": n_tiles, "width": self._parts[0]["width"],
                 "n_missing": sum(part["n_missing"] for part in self._parts), "colour": colour,
                 "parts": [{"n": part["n"], "sha256": part["sha256"]} for part in self._parts]}  # fmt: skip
        try:
            data = json_bytes(index | {"sha256": seal(index)})
            (self._temporary / INDEX).write_bytes(data)
            self._keeper.publish(self._temporary, self._ingredients, self._n_bytes + len(data))
        except OSError as error:
            self._keeper.fail(error)
        except ValueError:
            pass  # a colour that is not finite; kept is only what can be given back
        self.abandon()  # what was renamed is no longer there

    def leave(self) -> None:
        """Put everything by for a later writer, which may be another process; after `finish` or `abandon` nothing."""
        if self._is_open and self._waiting:
            self._flush()
        if self._is_open and (self._parts or self._left):
            self._note(None)
        self._is_open = False

    def abandon(self) -> None:
        """Throw away what was written."""
        self._is_open, self._waiting = False, []
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def _n_tiles(self) -> int:
        return sum(part["n"] for part in self._parts) + sum(len(part.rows) for part in self._waiting)

    def _flush(self) -> None:
        part = StoredPart(*(np.concatenate(column) for column in zip(*self._waiting, strict=True)))
        self._waiting, self._written = [], time.monotonic()
        data = part_bytes(part)
        self._n_bytes += len(data)
        if self._n_bytes > self._keeper.max_bytes:
            self.abandon()  # it would push everything else out, and itself
            return
        try:
            if not self._parts:  # else it is there, unless another process took it for left behind
                self._temporary.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._temporary).free < _KEEP_FREE + len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (self._temporary / part_name(len(self._parts))).write_bytes(data)
        except OSError as error:
            self._keeper.fail(error)
            self.abandon()
            return
        self._parts.append({
            "n": len(part.rows), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width": part.embeddings.shape[1],
            "n_missing": int(np.count_nonzero(part.n_missing)), "n_failed": int(part.failed.sum()), "colour": self._colour,
        })  # fmt: skip
        self._note(this_process())

    def _note(self, owner: dict[str, Any] | None) -> None:
        """Say what is there, and whose it is."""
        left = {"ingredients": self._ingredients, "chunk_size": self._chunk_size, "parts": [*self._parts, *self._left], "owner": owner}
        note = self._temporary / UNFINISHED
        try:
            data = json_bytes(left | {"sha256": seal(left)})
            half = note.with_suffix(".tmp")
            half.write_bytes(data)
            half.replace(note)
        except OSError as error:
            self._keeper.fail(error)
            self.abandon()
        except ValueError:  # colours that are not finite
            self.abandon()

    def _left_parts(self) -> list[dict[str, Any]]:
        try:
            left = json.loads((self._temporary / UNFINISHED).read_text(encoding="utf-8"))
            is_ours = left["sha256"] == seal(left) and left["ingredients"] == self._ingredients and left["chunk_size"] == self._chunk_size
            return list(left["parts"]) if is_ours else []
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _take_over(folder: Path, stem: str, mine: Path) -> bool:
    """Give a folder that an interrupted pass left another name, by which it is this writer's; False where there is none."""
    for left in sorted(folder.glob(f"{stem}*")):
        with contextlib.suppress(OSError):  # somebody else was faster
            if not _is_in_work(left):
                left.rename(mine)
                return True
    return False


def _is_in_work(left: Path) -> bool:
    """Tell whether the process that fills a folder lives, as far as can be told from here."""
    probe = left / f"probe.{os.getpid()}"
    probe.touch()
    try:  # by the clock of that file system alone
        silent_seconds = probe.stat().st_mtime - (left / UNFINISHED).stat().st_mtime
        owner = json.loads((left / UNFINISHED).read_text(encoding="utf-8"))["owner"]
        return owner is not None and is_alive(owner, silent_seconds)
    except FileNotFoundError:
        return True  # its first part is being written; it goes with time
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    finally:
        probe.unlink(missing_ok=True)
