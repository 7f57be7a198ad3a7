"""Finished pictures, kept in memory up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

__all__ = ["ByteCache"]


class ByteCache:
    """Bytes by key; what was used least recently goes first. Safe to use from several threads.

    >>> cache = ByteCache(5)
    >>> cache.put("a", b"123"); cache.put("b", b"456")
    >>> cache.get("a"), cache.get("b")
    (None, b'456')
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._held = limit_bytes, 0
        self._lock = threading.Lock()
        self._items: OrderedDict[object, bytes] = OrderedDict()

    def get(self, key: object) -> bytes | None:
        """Find what is kept under a key."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: object, data: bytes) -> None:
        """Keep bytes, and let go of others beyond the limit."""
        with self._lock:
            self._held += len(data) - len(self._items.pop(key, b""))
            self._items[key] = data
            while self._held > self._limit and self._items:
                self._held -= len(self._items.popitem(last=False)[1])
