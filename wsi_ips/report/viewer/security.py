"""The gate before every request: who may ask, and what every answer says to the browser.

* A `Host` header that is not this server's name and port is refused, on loopback too: a page elsewhere may have pointed
  its own name at this machine.
* A token is needed, on loopback too, for others may be logged in here: once in the address, then as a cookie that scripts
  cannot read and other sites cannot send.
* What another site's page asks for is refused, but for a link to our page that somebody follows.
* Nothing is changed but by POST from our own page.
* Every answer carries a policy that lets the page load from here alone.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

__all__ = ["Access", "Gate", "access_for", "is_loopback"]

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_POLICY = ("default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
           "frame-ancestors 'none'")  # fmt: skip
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(\d{1,5}))?", re.ASCII)
_MOST_HEADERS = 100


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    hosts: frozenset[str]  # names in the `Host` header, lower case, without port
    port: int
    token: str
    is_any_address: bool = False  # bound to all addresses: any literal address is ours
    cookie: str = "wsi_ips_view"


def is_loopback(host: str) -> bool:
    """Tell whether a host to bind is this machine alone.

    >>> [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access_for(host: str, port: int, token: str) -> Access:
    """Make the rules for a server bound to `host` and `port`."""
    names = {"localhost", "127.0.0.1", "::1", host.lower()}
    is_any = host in ("0.0.0.0", "::", "")
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    # cookies know no ports: two viewers on one machine must not log each other out
    return Access(frozenset(names), port, token, is_any, f"wsi_ips_view_{port}")


class Gate:
    """ASGI middleware around the whole application, its error pages too.

    Args:
        app: what is behind it.
        access: the rules.
    """

    def __init__(self, app: App, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_policy(list(message.get("headers", [])))}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, guarded)
            return
        status, text, extra = refusal
        body = b"" if scope["method"] == "HEAD" else json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), *extra]
        await guarded({"type": "http.response.start", "status": status, "headers": headers})
        await guarded({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Message) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Find why a request is answered here: status, sentence, further headers; None lets it through."""
        if len(scope["headers"]) > _MOST_HEADERS:
            return 431, f"more than {_MOST_HEADERS} headers", []
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            cure = f"a tunnel ends in the same port: ssh -L {self._access.port}:127.0.0.1:{self._access.port} ..."
            return 400, f"this address does not belong to the viewer; {cure}", []
        if not _is_own_site(scope, host):
            return 403, "asked for by a page of another site", []
        if scope["method"] == "POST" and b"origin" not in headers:
            return 403, "marks are taken from the viewer's own page only", []
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == "token"]
        if scope["method"] in ("GET", "HEAD") and any(self._is_token(value) for value in given):
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            # relative to this very path, so that no header chooses where it leads; leading slashes would name a host
            path = "/" + scope.get("raw_path", b"/").decode("latin-1").split("?")[0].lstrip("/\\")
            cookie = f"{self._access.cookie}={self._access.token}; HttpOnly; SameSite=Strict; Path=/"
            where = path + (f"?{rest}" if rest else "")
            return 303, "", [(b"location", where.encode("latin-1")), (b"set-cookie", cookie.encode())]
        if self._has_cookie(headers):
            return None
        return 401, "open the address that `wsi-ips view` printed: it carries the token", []

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None or int(found[3] or 80) != self._access.port:
            return False
        name = found[1] or found[2]
        if name in self._access.hosts:
            return True
        if self._access.is_any_address:
            try:
                ipaddress.ip_address(name)
            except ValueError:
                return False
            return True
        return False

    def _has_cookie(self, headers: dict[bytes, bytes]) -> bool:
        # by hand: SimpleCookie gives up at the first odd cookie, and other servers on this host may have set one
        pairs = [part.strip().partition("=") for part in headers.get(b"cookie", b"").decode("latin-1").split(";")]
        return any(name == self._access.cookie and self._is_token(value) for name, _, value in pairs)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._access.token.encode())


def _is_own_site(scope: Message, host: str) -> bool:
    """Tell whether a request comes from our own page, from a person's hand, or from a program; not from another page."""
    said: dict[bytes, set[str]] = {}
    for name, value in scope["headers"]:
        said.setdefault(name, set()).add(value.decode("latin-1").lower())
    if not said.get(b"origin", set()) <= {f"http://{host}", f"https://{host}"}:
        return False
    is_link = (scope["method"], scope["path"], said.get(b"sec-fetch-mode"), said.get(b"sec-fetch-dest")) == (
        "GET", "/", {"navigate"}, {"document"})  # fmt: skip
    return is_link or said.get(b"sec-fetch-site", set()) <= {"same-origin", "none"}


def _with_policy(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    named = {name.lower() for name, _ in headers}
    if b"cache-control" not in named:
        headers.append((b"cache-control", b"private, no-store"))
    return [*((n, v) for n, v in headers if n.lower() not in _HEADERS), *_HEADERS.items()]
