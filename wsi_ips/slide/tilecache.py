"""Decoded file tiles of a slide, kept while neighbours need them: bounded, shared by threads, each decoded once.

Tiles of a grid are read row by row, so what is needed again soon is what was used last. An array that somebody still
holds is never written again; a thread that wants a tile another is decoding waits for it.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

__all__ = ["TileCache"]

_MAX_BYTES = 64 << 20  # two rows of file tiles of 512 px under a band of the grid


class _Slot:
    __slots__ = ("filling", "is_filled", "pixels")

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.is_filled = False
        self.filling = threading.Lock()  # held by who fills


_EMPTY = _Slot(np.zeros(0))
_ALONE = sys.getrefcount(_EMPTY.pixels)  # of an array that nothing but its slot holds


class TileCache:
    """Arrays by key, least recently used first to go.

    Args:
        max_bytes: of arrays that are kept; what callers hold at one time may exceed it.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slots

    def get(self, key: Hashable, shape: tuple[int, int, int], fill: Callable[[np.ndarray], None]) -> np.ndarray:
        """Give the array of a key, not to be changed; where it is not there, `fill` makes it, in one thread.

        It stays what it is as long as the caller holds it or a view of it.

        Args:
            key: of the array.
            shape: of the array, uint8; the same for all calls with this key.
            fill: writes all of it; what it raises is raised, and nothing is kept.
        """
        while True:
            with self._lock:
                slot = self._slots.get(key)
                if slot is None:
                    pixels = self._room(shape)
                    slot = self._slots[key] = _Slot(pixels)
                    slot.filling.acquire()
                    break
                self._slots.move_to_end(key)
                pixels = slot.pixels  # held from here on: nobody else will write it
            if slot.is_filled:
                return pixels
            with slot.filling:  # until the other thread is done
                pass
            if slot.is_filled:
                return pixels
            # it failed there and is forgotten: try again here, to raise the error here too
        try:
            fill(pixels)
            slot.is_filled = True
        except BaseException:
            with self._lock:
                if self._slots.get(key) is slot:
                    del self._slots[key]
                    self._n_bytes -= pixels.nbytes
            raise
        finally:
            slot.filling.release()
        return pixels

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._slots.clear()
            self._n_bytes = 0

    def _room(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Find memory for an array: that of the oldest one nobody holds where the limit is reached, else new."""
        n_bytes = shape[0] * shape[1] * shape[2]
        spare: np.ndarray | None = None
        while self._n_bytes + n_bytes > self._max_bytes:
            oldest = next((k for k, s in self._slots.items() if s.is_filled and sys.getrefcount(s.pixels) == _ALONE), None)
            if oldest is None:
                break
            spare = self._slots.pop(oldest).pixels
            self._n_bytes -= spare.nbytes
        self._n_bytes += n_bytes
        return spare if spare is not None and spare.shape == shape else np.empty(shape, np.uint8)
