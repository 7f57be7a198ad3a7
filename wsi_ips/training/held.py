"""Slides whose tiles are decoded once: what was read is kept in memory, up to a budget, for all epochs and all fits.

Training reads the same tiles over and over, and on small tiles the decoder takes as long as the encoder. A slide whose
tiles are all held is not even opened. What does not fit is read from the file each time; no pixel depends on it.
Images that are no files come from a function instead, and are held by whoever wrote it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from wsi_ips.manifest import SlideRecord
from wsi_ips.slide.protocol import Region, Slide
from wsi_ips.slide.reader import open_slide, read_into

__all__ = ["HeldSlides", "Opener"]

Opener = Callable[[SlideRecord], Slide]


class HeldSlides:
    """Opens slides; mutable in what it holds. Safe to use from several threads.

    Args:
        budget_gb: pixels kept, GiB; 0 keeps nothing.
        opener: gives a record's slide where it is no file; None opens files. Without a budget its slides are used as they are.
    """

    def __init__(self, budget_gb: float = 0.0, opener: Opener | None = None) -> None:
        self.opener, self._budget = opener, int(min(budget_gb, 1e9) * 2**30)
        self._room = self._budget
        self._lock = threading.Lock()
        self._regions: dict[tuple[str, str], dict[tuple[int, ...], Region]] = {}  # by path and colour handling

    def open(self, record: SlideRecord, icc: str) -> Slide:
        """Give a slide to be used with `with`; its file is opened when something is asked that is not held.

        Raises:
            SlideError: then, or now when nothing of it is held yet.
        """
        if self.opener is not None and not self._budget:
            return self.opener(record)
        held = self._regions.setdefault((record.slide_path, icc), {})
        slide = _HeldSlide(record, icc, held, self._keep, self.opener)
        if not held:
            slide.opened()
        return cast(Slide, slide)

    def keep_only(self, record: SlideRecord, corners0: np.ndarray) -> None:
        """Let go of what was read of a slide but for tiles with these top-left corners, (n, 2) level-0 px."""
        wanted = set(map(tuple, corners0.tolist()))
        for (path, _), held in self._regions.items():
            if path == record.slide_path:
                for key in [k for k in held if k[:2] not in wanted]:
                    self._room += held.pop(key).pixels.nbytes

    def forget(self) -> None:
        """Let go of everything."""
        self._regions.clear()
        self._room = self._budget

    def _keep(self, held: dict[tuple[int, ...], Region], key: tuple[int, ...], region: Region) -> None:
        with self._lock:
            if region.pixels.nbytes <= self._room and key not in held:
                self._room -= region.pixels.nbytes
                held[key] = region


class _HeldSlide:
    """A slide that reads each rectangle from its file at most once, while there is room."""

    def __init__(
        self, record: SlideRecord, icc: str, held: dict[tuple[int, ...], Region], keep: Any, opener: Opener | None
    ) -> None:  # fmt: skip
        self._record, self._icc, self._held, self._keep, self._opener = record, icc, held, keep, opener
        self._lock = threading.Lock()
        self._slide: Slide | None = None

    def opened(self) -> Slide:
        """The slide itself."""
        with self._lock:
            if self._slide is None:
                self._slide = self._opener(self._record) if self._opener else open_slide(self._record.slide_path, self._record.mpp, icc=self._icc)  # type: ignore[arg-type]
            return self._slide

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """See `Slide.read_region`; what comes back must not be written to."""
        key = (x0, y0, level, width_px, height_px)
        found = self._held.get(key)
        if found is None:
            found = self.opened().read_region(*key)
            self._keep(self._held, key, found)
        return found

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """See `TileSlide.read_into`."""
        key = (x0, y0, level, out.shape[1], out.shape[0], shrink)
        found = self._held.get(key)
        if found is None:
            n_missing = read_into(self.opened(), out, x0, y0, level, shrink)
            self._keep(self._held, key, Region(out.copy(), n_missing))
            return n_missing
        out[...] = found.pixels
        return found.n_missing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened(), name)

    def close(self) -> None:
        """Close the file where it was opened."""
        with self._lock:
            if self._slide is not None:
                self._slide.close()
                self._slide = None

    def __enter__(self) -> _HeldSlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
