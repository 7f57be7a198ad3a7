"""A slide with faults where you want them: wraps another one, to try what a program does when reading goes wrong.

    slide = FaultySlide(open_slide("a.svs"), [Fault("error", Box0(512, 256, 1, 1), level=0)])

A fault waits at a place. A read that touches it raises, stalls, ends the process or finds no pixels there, each time or
so many times; every other read is the wrapped slide's own. A `token` lets a fault happen once for all processes: the
worker that comes after the one that died finds the file, and the place sound.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wsi_ips.errors import Note, TileReadError
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.slide.protocol import Level, Region, Slide
from wsi_ips.slide.reader import offered_shrinks, read_into
from wsi_ips.slide.regions import touches

__all__ = ["Fault", "FaultySlide"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where and how often."""

    kind: Literal["error", "stall", "die", "missing"]
    """`error`: `TileReadError`; `stall`: the read comes late; `die`: SIGKILL to this process; `missing`: no px, white."""
    at: Box0 | None = None
    """Level-0 px; a read that touches them meets the fault. None: any read."""
    level: int | None = None
    """Only reads of this level; None: of all."""
    times: int | None = None
    """The first so many reads that touch it; None: every one."""
    seconds: float = 0.0
    """Of a stall."""
    token: Path | None = None
    """File that is made when the fault happens; where it exists, the fault is over."""


class FaultySlide:
    """The `TileSlide` protocol over another slide, with faults.

    Args:
        slide: whose pixels are read; closed with this one.
        faults: tried in this order; several may meet one read.
    """

    def __init__(self, slide: Slide, faults: Sequence[Fault]) -> None:
        self._slide = slide
        self._faults = tuple(faults)
        self._left = [fault.times for fault in faults]
        self._lock = threading.Lock()
        self.n_met = 0  # faults that reads have met
        self.path: str | None = slide.path
        self.n_channels = int(getattr(slide, "n_channels", 3))

    @property
    def name(self) -> str:
        """As of the wrapped slide, like all that follows."""
        return self._slide.name

    @property
    def reader(self) -> str:
        """See `Slide`."""
        return self._slide.reader

    @property
    def levels(self) -> tuple[Level, ...]:
        """See `Slide`."""
        return self._slide.levels

    @property
    def mpp(self) -> Mpp:
        """See `Slide`."""
        return self._slide.mpp

    @property
    def bounds(self) -> Box0:
        """See `Slide`."""
        return self._slide.bounds

    @property
    def tile_corners(self) -> np.ndarray | None:
        """See `Slide`."""
        return self._slide.tile_corners

    @property
    def properties(self) -> dict[str, str]:
        """See `Slide`."""
        return self._slide.properties

    @property
    def notes(self) -> tuple[Note, ...]:
        """See `Slide`."""
        return self._slide.notes

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        """Read a rectangle of a level, or meet a fault; see `Slide.read_region`."""
        holes = self._meet(x0, y0, level, width_px, height_px)
        region = self._slide.read_region(x0, y0, level, width_px, height_px)
        pixels = region.pixels.copy() if holes else region.pixels
        return Region(pixels, region.n_missing + self._blank(pixels, holes, x0, y0, level, 1))

    def shrinks(self, level: int) -> tuple[int, ...]:
        """See `TileSlide.shrinks`."""
        return offered_shrinks(self._slide, level)

    def read_into(self, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        """Read a rectangle of a level into `out`, or meet a fault; see `TileSlide.read_into`."""
        holes = self._meet(x0, y0, level, out.shape[1] * shrink, out.shape[0] * shrink)
        return read_into(self._slide, out, x0, y0, level, shrink) + self._blank(out, holes, x0, y0, level, shrink)

    def close(self) -> None:
        """Close the wrapped slide."""
        self._slide.close()

    def __enter__(self) -> FaultySlide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("an open slide cannot be pickled; pass its path and open it where it is used")

    def _meet(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> list[Box0]:
        """Do what the faults of a read do; give the places whose px are missing."""
        downsample = self.levels[level].downsample
        holes = []
        for i, fault in enumerate(self._faults):
            box = fault.at or self.bounds
            is_here = fault.at is None or touches(box, x0, y0, width_px * downsample, height_px * downsample)
            if not is_here or fault.level not in (None, level) or not self._happens(i, fault):
                continue
            if fault.kind == "error":
                raise TileReadError("E_TILE", f"{self.name}: no pixels at level-0 px ({x0}, {y0}), level {level} (a made fault)")
            if fault.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "stall":
                time.sleep(fault.seconds)
            else:
                holes.append(box)
        return holes

    def _happens(self, number: int, fault: Fault) -> bool:
        with self._lock:
            left = self._left[number]
            if left == 0 or (fault.token is not None and fault.token.exists()):
                return False
            self._left[number] = None if left is None else left - 1
            if fault.token is not None:
                fault.token.touch()
            self.n_met += 1
            return True

    def _blank(self, pixels: np.ndarray, holes: Sequence[Box0], x0: int, y0: int, level: int, shrink: int) -> int:
        """Make white what lies in holes; count it in px of the level."""
        if not holes:
            return 0
        step0 = self.levels[level].downsample * shrink
        gone = np.zeros(pixels.shape[:2], bool)
        for box in holes:
            left, top = int((box.x0 - x0) // step0), int((box.y0 - y0) // step0)
            right, bottom = -int(-(box.x0 + box.width0 - x0) // step0), -int(-(box.y0 + box.height0 - y0) // step0)
            gone[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
        pixels[gone] = 255
        return int(np.count_nonzero(gone)) * shrink * shrink
