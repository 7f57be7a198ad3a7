"""Starts the viewer: takes the port, says the address, serves until it is stopped."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

from wsi_ips.errors import ConfigError

__all__ = ["Served", "StartOptions", "make_app", "make_server", "serve_run", "take_port"]


class StartOptions(NamedTuple):
    """How to start."""

    host: str = "127.0.0.1"
    port: int = 8123  # 0: any free one
    slide_root: Path | None = None  # folder that holds the slides now
    reviewer: str = ""  # whose marks; "": the page asks
    shows_patients: bool = False
    opens_browser: bool = False


class Served(NamedTuple):
    """An application ready to be served."""

    app: Any  # ASGI
    address: str  # what to open, with the token
    viewer: Any  # to be closed at the end


def make_app(run: str | Path, options: StartOptions, port: int) -> Served:
    """Make the application for a port that is already taken.

    Args:
        run: run folder.
        options: how to start.
        port: where it will listen.

    Raises:
        ConfigError: no run folder, or starlette is not installed.
    """
    _need_libraries()
    from wsi_ips.report.viewer.index import RunIndex
    from wsi_ips.report.viewer.security import Gate, access_for
    from wsi_ips.report.viewer.server import Viewer, ViewerOptions

    token = secrets.token_urlsafe(24)  # on loopback, too: others may be logged in on this machine
    viewer = Viewer(RunIndex(run, options.slide_root), ViewerOptions(options.reviewer, options.shows_patients))
    shown = socket.gethostname() if options.host in ("0.0.0.0", "::", "") else options.host
    name = f"[{shown}]" if ":" in shown else shown
    address = f"http://{name}:{port}/?token={token}"
    return Served(Gate(viewer.app, access_for(options.host, port, token)), address, viewer)


def take_port(host: str, port: int) -> socket.socket:
    """Bind a port, so that a taken one is found before anything else is done.

    Raises:
        ConfigError: it is taken, or the host cannot be bound; says what to do.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host}: this machine has no such address ({error})") from error
    try:
        if socket.has_ipv6 and family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform != "win32":  # there it would share a taken port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(place)
        taken.listen(128)
    except (OSError, OverflowError) as error:
        taken.close()
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({said}); give another --port, or --port 0 for any free one"
        ) from error
    return taken


def make_server(app: Any) -> Any:
    """Make the server for an application: bounded, patient for a few seconds, and silent about what is asked.

    Args:
        app: ASGI, behind the gate.

    Returns:
        A `uvicorn.Server`.
    """
    import uvicorn

    from wsi_ips.report.viewer.patience import MOST_CONNECTIONS, PatientProtocol

    return uvicorn.Server(uvicorn.Config(
        app, http=PatientProtocol, h11_max_incomplete_event_size=16_384, limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=5,
        log_level="error", access_log=False, server_header=False, proxy_headers=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=2,
    ))  # fmt: skip


def serve_run(run: str | Path, options: StartOptions) -> None:
    """Serve the viewer of a run until the process is told to end.

    Args:
        run: run folder.
        options: how to start.

    Raises:
        ConfigError: no run folder, a port that is taken, or starlette and uvicorn are not installed.
    """
    _need_libraries()
    taken = take_port(options.host, options.port)
    try:
        served = make_app(run, options, taken.getsockname()[1])
        print(served.address, flush=True)
        print("Ctrl-C ends the viewer", file=sys.stderr)
        if options.opens_browser:
            import webbrowser

            webbrowser.open(served.address)
        try:
            make_server(served.app).run(sockets=[taken])
        finally:
            served.viewer.close()
    finally:
        taken.close()


def _need_libraries() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'the viewer needs {error.name}, which is not installed; pip install "wsi-ips[viewer]"'
        ) from error
