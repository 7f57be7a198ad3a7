"""Decoded file tiles of a slide, kept while neighbours need them: bounded, shared by threads, each decoded once.

Tiles of a grid are read row by row, so what is needed again soon is what was used last. A borrowed tile is never thrown
out; a thread that wants a tile another is decoding waits for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["TileCache"]

_MAX_BYTES = 64 << 20  # two rows of file tiles of 512 px under a band of the grid


class _Slot:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.n_users = 1
        self.is_filled = False
        self.filling = threading.Lock()  # held by who fills


class TileCache:
    """Arrays by key, least recently used first to go.

    Args:
        max_bytes: of arrays that are kept; what is borrowed at one time may exceed it.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slots

    @contextmanager
    def borrow(self, key: Hashable, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> Iterator[np.ndarray]:
        """Lend the array of a key, not to be changed; where it is not there, `fill` makes it, in one thread.

        Args:
            key: of the array.
            shape: of the array, uint8; the same for all calls with this key.
            fill: writes all of it; what it raises is raised, and nothing is kept.
        """
        slot = self._take(key, shape, fill)
        try:
            yield slot.pixels
        finally:
            with self._lock:
                slot.n_users -= 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._slots.clear()
            self._n_bytes = 0

    def _take(self, key: Hashable, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> _Slot:
        while True:
            with self._lock:
                slot = self._slots.get(key)
                if slot is None:
                    slot = self._slots[key] = _Slot(self._room(shape))
                    slot.filling.acquire()
                    break
                self._slots.move_to_end(key)
                slot.n_users += 1
            if slot.is_filled:
                return slot
            with slot.filling:  # until the other thread is done
                pass
            if slot.is_filled:
                return slot
            # it failed there and is forgotten: try again here, to raise the error here too
        try:
            fill(slot.pixels)
            slot.is_filled = True
        except BaseException:
            with self._lock:
                if self._slots.get(key) is slot:
                    del self._slots[key]
                    self._n_bytes -= slot.pixels.nbytes
            raise
        finally:
            slot.filling.release()
        return slot

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Find memory for an array: that of the oldest one not lent where the limit is reached, else new."""
        n_bytes = int(np.prod(shape))
        spare: np.ndarray | None = None
        while self._n_bytes + n_bytes > self._max_bytes:
            oldest = next((k for k, s in self._slots.items() if not s.n_users), None)
            if oldest is None:
                break
            spare = self._slots.pop(oldest).pixels
            self._n_bytes -= spare.nbytes
        self._n_bytes += n_bytes
        return spare if spare is not None and spare.shape == shape else np.empty(shape, np.uint8)
