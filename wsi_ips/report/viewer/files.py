"""Open slides and read ledgers, a few at a time, behind slide ids.

A slide is shown only when its content is that of the file which was classified; a map is never laid over another one.
Errors of this room carry sentences that may be shown to anyone: no path and no file name.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from wsi_ips.errors import ConfigError, SlideError, WsiIpsError
from wsi_ips.report.heatmap import Scale
from wsi_ips.report.maps import TileMap, find_map, tile_map
from wsi_ips.report.viewer.index import RunIndex, SlideEntry
from wsi_ips.report.viewer.pyramid import Overview, overview_shift, read_overview
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.slide.metadata import STRICT_METHOD, fingerprint
from wsi_ips.slide.reader import Slide, open_slide

__all__ = ["Ledgers", "LentSlide", "NotShownError", "OpenSlides", "known_file"]

_AGAIN_SECONDS = 60.0  # after which an overview with parts that could not be read is read again


class NotShownError(WsiIpsError):
    """Something cannot be shown; the message says why, in words for a person.

    Args:
        code: "missing", "changed", "unreadable", "none".
        message: free of paths.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LentSlide:
    """An open slide and its overview, shared by the requests that need them."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self._lock = threading.Lock()
        self._overview: Overview | None = None
        self._read_at = 0.0

    def overview(self, shift: int) -> Overview | None:
        """Read the overview if tiles of this shift need it; the first caller reads, the others wait."""
        first = overview_shift(self.slide)
        if first is None or shift < first:
            return None
        with self._lock:
            found = self._overview
            if found is None or (found.n_failed and time.monotonic() - self._read_at > _AGAIN_SECONDS):
                found = self._overview = read_overview(self.slide, first)
                self._read_at = time.monotonic()
            return found


class _Held:
    """A place for one slide: opened by the first user, closed after the last."""

    def __init__(self) -> None:
        self.users = 0
        self.lock = threading.Lock()
        self.lent: LentSlide | None = None


class OpenSlides:
    """The slides that are open, least recently used first.

    Args:
        index: of the run.
        limit: how many stay open when nobody uses them.
    """

    def __init__(self, index: RunIndex, limit: int = 4) -> None:
        self._index, self._limit = index, limit
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()

    @contextlib.contextmanager
    def lend(self, entry: SlideEntry) -> Iterator[LentSlide]:
        """Lend an open slide for the length of a `with`.

        Raises:
            NotShownError: the file is missing, is not the one that was classified, or cannot be opened.
        """
        known = known_file(self._index, entry)
        key = (entry.slide_id, str(known.get("sha256")))
        with self._lock:
            held = self._held.setdefault(key, _Held())
            held.users += 1
            self._held.move_to_end(key)
        try:
            with held.lock:
                if held.lent is None:
                    held.lent = LentSlide(self._open(entry, known))
            yield held.lent
        finally:
            with self._lock:
                held.users -= 1
                if held.lent is None and not held.users:  # tried again at the next request
                    self._held.pop(key, None)
                self._close_beyond(self._limit)

    def close(self) -> None:
        """Close every slide that nobody uses."""
        with self._lock:
            self._close_beyond(0)

    def _close_beyond(self, limit: int) -> None:
        for key, held in list(self._held.items()):
            if len(self._held) <= limit:
                return
            if not held.users:
                del self._held[key]
                if held.lent is not None:
                    held.lent.slide.close()

    def _open(self, entry: SlideEntry, known: dict[str, Any]) -> Slide:
        if entry.path is None:
            raise NotShownError("none", "This row was labelled without a slide file, so there is none to show.")
        try:
            found = fingerprint(entry.path, strict=known.get("method") == STRICT_METHOD)
        except OSError as error:
            raise NotShownError(
                "missing", "The slide file is not where the run found it. If the slides have moved, start the viewer "
                "with --slide-root and their new folder.",
            ) from error  # fmt: skip
        if found != known:
            raise NotShownError(
                "changed", "The slide file is not the one that was classified: its content differs. It is not shown; "
                "classify it again, or bring the old file back.",
            )  # fmt: skip
        try:
            return open_slide(entry.path, entry.mpp, icc=self._index.icc)
        except (SlideError, OSError) as error:
            why = f" ({error.code})" if isinstance(error, SlideError) else ""
            raise NotShownError("unreadable", f"The slide file cannot be opened{why}.") from error


def known_file(index: RunIndex, entry: SlideEntry) -> dict[str, Any]:
    """Look up by which content a slide was classified; empty where nothing says so."""
    identity = (index.folder.read_record(entry.slide_id) or {}).get("identity", {})
    return identity.get("slide", identity.get("file")) or {}  # "slide": labelled from a file of features


class Ledgers:
    """Predictions of the slides looked at last, and their maps.

    Args:
        index: of the run.
        limit: how many are kept.
    """

    def __init__(self, index: RunIndex, limit: int = 4) -> None:
        self._index, self._limit = index, limit
        self._lock = threading.Lock()
        self._read: OrderedDict[tuple[str, int, int], tuple[SlidePrediction, dict[tuple[str, Scale], TileMap]]]
        self._read = OrderedDict()

    def prediction(self, entry: SlideEntry) -> SlidePrediction:
        """Read what the pass found on a slide.

        Raises:
            NotShownError: there is no ledger, or it cannot be read.
        """
        return self._find(entry)[0]

    def map(self, entry: SlideEntry, name: str, scale: Scale) -> tuple[SlidePrediction, TileMap]:
        """Take a map out of a slide's prediction; `name` is one of `maps.list_maps`.

        Raises:
            NotShownError: there is no ledger, or it has no places on a slide.
            ConfigError: no such map.
        """
        prediction, maps = self._find(entry)
        if prediction.size0 == (0, 0):
            raise NotShownError("none", "This slide was labelled from features without places: there is no map.")
        if (name, scale) not in maps:
            maps[name, scale] = tile_map(prediction, find_map(prediction, name), scale)
        return prediction, maps[name, scale]

    def _find(self, entry: SlideEntry) -> tuple[SlidePrediction, dict[tuple[str, Scale], TileMap]]:
        if not entry.is_labelled:
            raise NotShownError("none", "This slide has no label, so there is no map.")
        with self._lock:  # one reads, the others wait: HDF5 is read by one thread at a time anyway
            try:
                path = self._index.folder.slide_file(entry.slide_id, f"{entry.slide_id}.ledger.h5")
                found = path.stat()
                key = (entry.slide_id, found.st_mtime_ns, found.st_size)
                if key not in self._read:
                    self._read[key] = (read_ledger(path), {})
            except (OSError, ConfigError) as error:
                raise NotShownError("none", "The ledger of this slide is missing or cannot be read: there is no map.") from error
            self._read.move_to_end(key)
            while len(self._read) > self._limit:
                self._read.popitem(last=False)
            if entry.cells.get("model_hash", "") not in ("", self._read[key][0].model_hash):
                raise NotShownError("changed", "This slide has been classified anew by another model; the table follows when the run ends.")
            return self._read[key]
