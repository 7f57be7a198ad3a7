"""Open handles of one slide: one borrower at a time each, none survives an error, none crosses a fork.

A handle of OpenSlide that erred answers nothing any more, good tiles included; one of TiffSlide shared through fork
returns wrong pixels in silence. So a read borrows a handle, and a handle that raised is closed, not given back.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from wsi_ips.errors import ConfigError

__all__ = ["HandlePool"]


class _Closable(Protocol):
    def close(self) -> None: ...


H = TypeVar("H", bound=_Closable)


class HandlePool(Generic[H]):
    """As many handles as reads run at once.

    Args:
        name: of the slide, for messages.
        opener: opens one more handle.
    """

    def __init__(self, name: str, opener: Callable[[], H]) -> None:
        self._name = name
        self._opener = opener
        self._idle: list[tuple[int, H]] = []  # with the thread that used it last
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()

    def check(self) -> None:
        """Refuse to go on where handles must not be used.

        Raises:
            ConfigError: the slide is closed, or was opened in another process.
        """
        if os.getpid() != self._pid:
            where = f"opened in process {self._pid}, read in {os.getpid()}"
            raise ConfigError(f"{self._name}: {where}; open a slide in the process that reads it")
        if self._closed:
            raise ConfigError(f"{self._name}: the slide is closed")

    @contextlib.contextmanager
    def borrow(self) -> Iterator[H]:
        """Lend a handle; it comes back unless the block raises.

        Raises:
            ConfigError: as `check`.
        """
        with self._lock:
            self.check()
            handle = self._take()
        if handle is None:
            handle = self._opener()
        try:
            yield handle
        except BaseException:
            handle.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append((threading.get_ident(), handle))
                return
        handle.close()

    def close(self) -> None:
        """Close the idle handles; borrowed ones close when they come back."""
        if os.getpid() != self._pid:
            return  # the handles belong to the parent
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, handle in idle:
            handle.close()

    def _take(self) -> H | None:
        """Take the idle handle this thread used last, else any: TiffSlide keeps state per thread."""
        if not self._idle:
            return None
        own = threading.get_ident()
        i = next((i for i, (thread, _) in enumerate(self._idle) if thread == own), -1)
        return self._idle.pop(i)[1]
