"""The viewer's patience with its clients: a connection that does not come to the point is closed.

uvicorn waits for ever for the end of a request's head, or of its body, and for ever for a client that does not take its
answer: two hundred such clients would hold two hundred connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["MOST_CONNECTIONS", "PatientProtocol"]

MOST_CONNECTIONS = 64  # a browser opens six
_REQUEST_SECONDS = 5.0  # for a request to be there whole, from the connection's begin or the last answer's end
_ANSWER_SECONDS = 60.0  # for an answer to be made and taken; an overview of a slide without coarse levels is read in it


class PatientProtocol(H11Protocol):
    """A connection with deadlines; those far beyond the limit are not even listened to."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MOST_CONNECTIONS:  # below that a word is said, status 503
            transport.abort()
            return
        self._allow(_REQUEST_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Wait for more of a request, or for its answer."""
        was_whole = self._is_whole()
        super().data_received(data)
        if not was_whole and self._is_whole():
            self._allow(_ANSWER_SECONDS)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._allow(_REQUEST_SECONDS)
        super().on_response_complete()
        if self._is_whole():  # a request that was sent before this answer
            self._allow(_ANSWER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._allow(None)
        super().connection_lost(exc)

    def _is_whole(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _allow(self, seconds: float | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(seconds, self.transport.abort) if seconds is not None else None
