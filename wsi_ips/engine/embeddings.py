"""The embedding cache: what an encoder made of a slide, kept under a name that follows from everything it depends on.

A folder a slide: `<cache>/<2 hex>/<key>/`, key = SHA-256 of the ingredients (slide, grid, encoder, arithmetic, ...), so a
change of any of them is another name and nothing can be stale. It is filled under a name of its own and renamed at the
end: whole or not there, safe for several processes, of which the slower throws its copy away. What is damaged counts as
absent. A cache that cannot be written is told once and the work goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_ips.engine.cacheentry import INDEX, UNFINISHED, StoredEmbeddings, json_bytes, seal
from wsi_ips.engine.entrywriter import EntryWriter
from wsi_ips.errors import ConfigError
from wsi_ips.slide.metadata import fingerprint

__all__ = ["EmbeddingCache", "cache_place", "engine_place", "open_cache"]

_DEFAULT_GB = 50.0
_KEY = re.compile(r"[0-9a-f]{64}")
_LEFT_BEHIND = re.compile(r"\.(new-[0-9a-f]{32}-|old-)[0-9a-f]{32}")
_STALE_SECONDS = 86_400.0  # what a killed process left behind goes after a day


def cache_place(asked: str | None = None) -> Path | None:
    """Say where the cache is: what was asked for, else WSI_IPS_CACHE, else the user's cache folder; None when off.

    >>> cache_place("off") is None, cache_place("/data/cache").as_posix()
    (True, '/data/cache')
    """
    place = asked or os.environ.get("WSI_IPS_CACHE", "")
    if place.lower() == "off":
        return None
    if place:
        return Path(place).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "wsi-ips", "embeddings").absolute()


def engine_place(asked: str | None = None) -> Path | None:
    """Say where inference engines keep converted encoders: in the cache, beside its entries; None when it is off."""
    place = cache_place(asked)
    return place / "engines" if place else None


def open_cache(asked: str | None = None, *, strict: bool = False) -> EmbeddingCache | None:
    """Open the cache at its place (see `cache_place`); None when it is off. Nothing is made before the first entry.

    Args:
        asked: folder, "off", or None for the default place.
        strict: know slides by all their bytes instead of samples.

    Raises:
        ConfigError: WSI_IPS_CACHE_GB is no size.
    """
    place, size = cache_place(asked), os.environ.get("WSI_IPS_CACHE_GB", "") or str(_DEFAULT_GB)
    try:
        max_gb = float(size)
    except ValueError:
        max_gb = -1.0
    if not 0.0 < max_gb < 1e9:
        raise ConfigError(f"WSI_IPS_CACHE_GB={size}: expected gigabytes, 50 for instance; --cache off does without")
    return EmbeddingCache(place, max_gb, strict=strict) if place else None


class EmbeddingCache:
    """A folder of embeddings; several processes may use it at once.

    Args:
        folder: where; made with the first entry.
        max_gb: above so many gigabytes (10^9 bytes) the entries used least recently go.
        strict: know slides by all their bytes instead of samples.
        is_transient: keep an entry only until its slide is done (`done`): for a run without a cache that is interrupted.
    """

    def __init__(
        self, folder: str | Path, max_gb: float = _DEFAULT_GB, *, strict: bool = False, is_transient: bool = False
    ) -> None:
        self.folder = Path(folder).absolute()
        self.is_transient = is_transient
        self._in_work: dict[str, Any] | None = None
        self.max_bytes = int(max_gb * 1e9)
        self.strict = strict
        self.trouble = ""  # why nothing more is stored; "" while all is well
        self._told: dict[str, dict[str, Any]] = {}
        self._added = self.max_bytes  # bytes since the folder was last counted; the first entry has it counted

    def tell_fingerprint(self, path: str, found: Mapping[str, Any]) -> None:
        """Pass on a slide's fingerprint, just taken as strictly as this cache asks for, for the next look-up alone."""
        self._told = {path: dict(found)}

    def fingerprint(self, path: str) -> dict[str, Any] | None:
        """Take a slide's fingerprint; None when it cannot be read."""
        try:
            return self._told.pop(path, None) or fingerprint(path, strict=self.strict)
        except OSError:
            return None

    def find(self, ingredients: Mapping[str, Any]) -> StoredEmbeddings | None:
        """Look an entry up; one that is not sound is removed. Its parts are checked as they are read."""
        wanted = _plain(ingredients)
        folder = self._entry(wanted)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["sha256"] != seal(index) or index["ingredients"] != wanted:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            if folder.exists():
                self._remove(folder)
            return None
        with contextlib.suppress(OSError):  # a cache that is only read from still serves
            os.utime(folder / INDEX)
        return StoredEmbeddings(folder, index)

    def writer(self, ingredients: Mapping[str, Any], chunk_size: int) -> EntryWriter:
        """Begin an entry, or go on with one that an interrupted pass left; see `EntryWriter`."""
        return EntryWriter(self, _plain(ingredients), chunk_size)

    def start(self, ingredients: Mapping[str, Any]) -> StoredEmbeddings | None:
        """Look an entry up for a pass that begins; see `find`."""
        self._in_work = _plain(ingredients)
        return self.find(ingredients)

    def done(self) -> None:
        """Hear that what was made of the latest pass is safe."""
        if self.is_transient and self._in_work is not None:
            self._remove(self._entry(self._in_work))

    def remove(self, entry: StoredEmbeddings) -> None:
        """Take a damaged entry away."""
        self._remove(entry.folder)

    def fail(self, error: OSError) -> None:
        """Remember why nothing more is stored, without the place: the sentence goes into results."""
        what = "what an interrupted slide goes on from" if self.is_transient else "the embedding cache"
        self.trouble = self.trouble or f"{what} cannot be written ({error.strerror or error}); going on without it"

    def publish(self, temporary: Path, ingredients: dict[str, Any], n_bytes: int) -> None:
        """Give a finished folder its name, unless another process was first; then keep to the size limit.

        Raises:
            OSError: it cannot be renamed.
        """
        target = self._entry(ingredients)
        target.parent.mkdir(exist_ok=True)
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            return  # what the other process wrote holds the same numbers
        (target / UNFINISHED).unlink(missing_ok=True)  # not before: a pass that dies here can be gone on with
        self._added += n_bytes
        if self._added > self.max_bytes // 50:  # counting touches every entry
            self._added = 0
            self._make_room()

    def _entry(self, ingredients: dict[str, Any]) -> Path:
        key = hashlib.sha256(json_bytes(ingredients)).hexdigest()
        return self.folder / key[:2] / key

    def _make_room(self) -> None:
        """Remove the entries used least recently above the limit, and what killed processes left."""
        entries, now = [], time.time()
        for place in self.folder.iterdir():  # other people's files may lie here, too: only our names are touched
            with contextlib.suppress(OSError):  # another process may be removing it
                if _LEFT_BEHIND.fullmatch(place.name) and now - place.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)
        for folder in (f for f in self.folder.glob("??/*") if _KEY.fullmatch(f.name) and f.name[:2] == f.parent.name):
            with contextlib.suppress(OSError):
                size = sum(f.stat().st_size for f in folder.iterdir())
                entries.append(((folder / INDEX).stat().st_mtime_ns, size, folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries):
            if total <= self.max_bytes:
                break
            self._remove(folder)
            total -= size

    def _remove(self, folder: Path) -> None:
        """Remove an entry at one stroke: a reader finds all of it or nothing."""
        gone = self.folder / f".old-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _plain(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    """Bring ingredients to what JSON gives back, so that they compare equal."""
    return dict(json.loads(json_bytes(ingredients)))
