"""The gate before every request: who may ask, and what every answer says to the browser.

* A `Host` header that is not this server's is refused, on loopback too: a page elsewhere may have pointed its own name
  at this machine.
* Beyond loopback a token is needed, once in the address, then as a cookie that scripts cannot read and other sites
  cannot send.
* Nothing is changed but by POST from our own page.
* Every answer carries a policy that lets the page load from here alone.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
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


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    hosts: frozenset[str]  # names in the `Host` header, lower case, without port
    is_any_address: bool = False  # bound to all addresses: any literal address is ours
    token: str = ""  # "": none needed
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
    return Access(frozenset(names), is_any, token, f"wsi_ips_view_{port}")


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
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_ours(host):
            return 400, "this address does not belong to the viewer", []
        if scope["method"] == "POST" and not _is_own_origin(headers, host):
            return 403, "marks are taken from the viewer's own page only", []
        if not self._access.token:
            return None
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
        name = _host_name(host)
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


def _host_name(host: str) -> str:
    """Take the port off a `Host` header.

    >>> [_host_name(h) for h in ("localhost:8123", "[::1]:80", "EXAMPLE.org", "")]
    ['localhost', '::1', 'example.org', '']
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_own_origin(headers: dict[bytes, bytes], host: str) -> bool:
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    return origin in (f"http://{host.lower()}", f"https://{host.lower()}")


def _with_policy(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    named = {name.lower() for name, _ in headers}
    if b"cache-control" not in named:
        headers.append((b"cache-control", b"private, no-store"))
    return [*((n, v) for n, v in headers if n.lower() not in _HEADERS), *_HEADERS.items()]
